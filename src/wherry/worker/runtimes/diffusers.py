# pyright: standard, reportMissingImports=false
"""Runtime `diffusers`: pictures of texts by folders that diffusers saved.

A bundle is such a folder: `model_index.json`, and a folder of each part with its weights as
safetensors. Code in folders is never run, pickles are never read, nothing is downloaded. Pictures
are made one after the other, on all cores; one that nobody waits for any more ends at its next step.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import diffusers
import msgspec
import numpy as np
import torch
from msgspec import Meta

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskInput, Usage
from wherry.models.tasks.text_to_image import (
    MAX_GUIDANCE,
    MAX_SIDE,
    MAX_STEPS,
    Picture,
    PictureRequest,
)
from wherry.worker.cores import count_cores

ONE_PICTURE = Usage(rows=1)
DRAWN_SEEDS = 1 << 32
"""A seed that is drawn is below: every JSON reader can carry it."""
LEAST_GRAIN = 16
"""Sides are a multiple of so many pixels: what an encoder makes one number of, in pairs."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)
"""What diffusers raises of a folder that it cannot open."""
ARGUMENTS = {"negative_prompt": "negative_prompt", "steps": "num_inference_steps",
             "guidance": "guidance_scale"}  # fmt: skip
"""What a request may wish → what diffusers calls it."""


class DiffusersOptions(msgspec.Struct, frozen=True):
    """Options of a bundle."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of weights and sums; processors compute with 16 bits more slowly than with 32."""
    variant: str = ""
    """Which of several weights are read: `fp16` for `model.fp16.safetensors`."""
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    """0 = as many as there are cores."""
    steps: Annotated[int, Meta(ge=0, le=MAX_STEPS)] = 0
    """Where a request says none; 0 = the pipeline's own."""
    guidance: Annotated[float, Meta(ge=0, le=MAX_GUIDANCE)] | None = None
    max_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] = 100
    max_side: Annotated[int, Meta(ge=8, le=MAX_SIDE)] = 1024
    """Longest side of a picture in pixels: memory and time grow with its square."""


class Stopped(Exception):  # noqa: N818 - nothing is wrong: nobody looks at it any more
    """The work was cancelled between two steps."""


class DiffusersRuntime:
    """One pipeline; pictures take turns."""

    max_concurrency = 1

    def load(self, bundle: Bundle, device: str) -> None:
        """Open the folder."""
        self._options = read_options(bundle.manifest.options, DiffusersOptions)
        torch.set_num_threads(self._options.threads or count_cores())
        self._pipeline = open_pipeline(bundle, self._options).to(device)
        self._known = frozenset(inspect.signature(self._pipeline.__call__).parameters)
        if "prompt" not in self._known or "image" in self._known:
            kind = type(self._pipeline).__name__
            raise FormatNotAllowed(f"{kind} does not make pictures of texts alone")
        self._grain = max(LEAST_GRAIN, 2 * getattr(self._pipeline, "vae_scale_factor", 0))
        self._threads = ThreadPoolExecutor(1, "pictures")

    async def stream(
        self, item: TaskInput, cancelled: threading.Event, tenant: str
    ) -> AsyncIterator[Picture]:
        """The picture, or nothing once `cancelled` is set: half a picture is none."""
        arguments = self.arguments_of(item)
        seed = secrets.randbelow(DRAWN_SEEDS) if item.seed is None else item.seed
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._threads, self.draw, arguments, seed, cancelled)
        if pixels is not None:
            size = item.size or pixels.shape[:2]
            yield Picture(
                pixels=pixels, seed=seed, prompt=item.prompt, size=size, usage=ONE_PICTURE
            )

    def arguments_of(self, item: PictureRequest) -> dict[str, Any]:
        """The pipeline's arguments for a request.

        Raises:
            InvalidInput: it wishes what the model has not, or more than the options allow.
        """
        wished = {
            "negative_prompt": item.negative_prompt or None,
            "steps": item.steps,
            "guidance": item.guidance,
        }
        for name, value in wished.items():
            if value is not None and ARGUMENTS[name] not in self._known:
                raise InvalidInput(f"the model has no {name!r}", hint="leave it out", param=name)
        options = self._options
        steps = item.steps or options.steps or None
        if steps is not None and steps > options.max_steps:
            raise InvalidInput(f"at most {options.max_steps} steps are made", param="steps")
        wished |= {"steps": steps}
        wished["guidance"] = options.guidance if item.guidance is None else item.guidance
        arguments = {ARGUMENTS[name]: value for name, value in wished.items() if value is not None}
        return {"prompt": item.prompt, **arguments, **self._size_of(item)}

    def _size_of(self, item: PictureRequest) -> Mapping[str, int]:
        if item.size is None:
            return {}
        if max(item.size) > self._options.max_side:
            raise InvalidInput(
                f"pictures have at most {self._options.max_side} pixels a side", param="size"
            )
        # what the model cannot draw to the pixel is drawn a little larger, and made smaller
        height, width = (-(-side // self._grain) * self._grain for side in item.size)
        return {"height": height, "width": width}

    def draw(
        self, arguments: Mapping[str, Any], seed: int, cancelled: threading.Event
    ) -> np.ndarray | None:
        """Pixels, uint8 [height, width, 3]; None if the work was cancelled.

        Raises:
            InvalidInput: the pipeline refuses an argument, or the model its own picture.
            ModelFailed: it failed.
        """

        def look(pipeline: Any, step: int, time_step: Any, kept: dict[str, Any]) -> dict[str, Any]:
            if cancelled.is_set():
                raise Stopped
            return kept

        watched = {"callback_on_step_end": look} if "callback_on_step_end" in self._known else {}
        try:
            if cancelled.is_set():
                return None
            with torch.inference_mode():
                made = self._pipeline(
                    **arguments,
                    **watched,
                    generator=torch.Generator("cpu").manual_seed(seed),
                    output_type="np",
                )
        except Stopped:
            return None
        except ValueError as error:
            raise InvalidInput(f"the model cannot draw this: {_first_line(error)}") from error
        except RuntimeError as error:
            raise ModelFailed("the model failed on this prompt") from error
        return _pixels_of(made)

    def close(self) -> None:
        """Free the pipeline."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        del self._pipeline


def open_pipeline(bundle: Bundle, options: DiffusersOptions) -> Any:
    """The bundle's pipeline.

    Raises:
        FormatNotAllowed: diffusers cannot open it.
    """
    folder = bundle.main_file.parent
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            variant=options.variant or None,
            dtype=getattr(torch, options.dtype),
        )
    except UNREADABLE as error:
        reason = _first_line(error).replace(str(folder), folder.name)
        raise FormatNotAllowed(f"diffusers cannot open the folder: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _pixels_of(made: Any) -> np.ndarray:
    light = np.asarray(made.images)[0]
    if any(getattr(made, "nsfw_content_detected", None) or ()):
        raise InvalidInput(
            "the model's own safety checker withheld the picture",
            hint="ask for something else, or with another seed",
            param="prompt",
        )
    if not np.isfinite(light).all():
        raise ModelFailed("the model answered with numbers that are not finite")
    return (light * 255).round().astype(np.uint8)  # as diffusers makes its own pictures


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
