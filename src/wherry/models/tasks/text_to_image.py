"""The task `text-to-image`: a text in, a picture out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.errors import InvalidInput
from wherry.models.tasks.fields import read_integer, read_number
from wherry.models.tasks.image_fit import import_pillow
from wherry.models.tasks.png import CONTENT_TYPE, png_text
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, Tensors, TensorSpec
from wherry.models.tasks.text import TextInput, check_text, text_from_plain, texts_from_tensors

MAX_PROMPT_BYTES = 16 << 10
MAX_SIDE = 2048
"""Longest side of a picture that is asked for, in pixels."""
MAX_SEED = (1 << 63) - 1
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0


class PictureRequest(msgspec.Struct, kw_only=True):
    """One picture to make; what is None is the model's choice."""

    prompt: str
    negative_prompt: str = ""
    """What should not be on it."""
    seed: int | None = None
    """The same seed, prompt and model give the same picture; None draws one."""
    size: tuple[int, int] | None = None
    """Height and width in pixels."""
    steps: int | None = None
    """Of a model that works step by step."""
    guidance: float | None = None
    """How closely the prompt is followed, for a model that can choose."""


class Picture(TaskOutput, kw_only=True):
    """A picture that a model made."""

    pixels: np.ndarray
    """uint8 [height, width, channels] as the model made it; channels are 1 (grey) or 3 (RGB)."""
    seed: int
    """What makes it again."""
    prompt: str
    """What it shows as the model understood it: its label, or the whole prompt."""
    size: tuple[int, int] | None = None
    """Height and width that were asked for; None is the model's own."""

    def sized(self) -> np.ndarray:
        """Its pixels in the size that was asked for."""
        if self.size is None or self.size == self.pixels.shape[:2]:
            return self.pixels
        image = import_pillow()
        height, width = self.size
        bare = self.pixels[:, :, 0] if self.pixels.shape[2] == 1 else self.pixels
        resized = image.fromarray(np.ascontiguousarray(bare)).resize((width, height))
        return np.asarray(resized).reshape(height, width, -1)


class TextToImage:
    """A text in, a picture out."""

    name = "text-to-image"
    input_type = PictureRequest
    output_type = Picture
    is_slow_to_encode = True

    def signature(self, config: TaskConfig) -> Signature:
        """Texts in, and a seed for each if one likes; pictures of one size out."""
        inputs = (TensorSpec("text", "BYTES", (-1,)),)
        return Signature(inputs, (TensorSpec("image", "UINT8", (-1, -1, -1, 3)),))

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[PictureRequest]:
        """One item for each element of the tensor `text`; `seed` is INT64 of the same shape."""
        texts = texts_from_tensors({k: v for k, v in tensors.items() if k != "seed"}, config)
        seeds = _seeds_of(tensors.get("seed"), len(texts))
        return [
            PictureRequest(prompt=check_prompt(text), seed=seed)
            for text, seed in zip(texts, seeds, strict=True)
        ]

    def to_tensors(self, outputs: Sequence[Picture], config: TaskConfig) -> dict[str, np.ndarray]:
        """The tensor `image`, UINT8 [n, height, width, 3]."""
        if not outputs:
            return {"image": np.empty((0, 0, 0, 3), dtype=np.uint8)}
        return {"image": np.stack([as_rgb(output.sized()) for output in outputs])}

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> PictureRequest:
        """`{"prompt": "…"}`, and any of the fields of `PictureRequest`, `width` and `height`."""
        text = (
            TextInput(check_text(body["prompt"], config, "prompt"))
            if "prompt" in body
            else text_from_plain(body, config)
        )
        negative = body.get("negative_prompt")
        return PictureRequest(
            prompt=check_prompt(text),
            negative_prompt=check_text(negative, config, "negative_prompt") if negative else "",
            seed=read_integer(body, "seed", 0, MAX_SEED),
            size=_read_size(body),
            steps=read_integer(body, "steps", 1, MAX_STEPS),
            guidance=read_number(body, "guidance", 0, MAX_GUIDANCE),
        )

    def to_plain(self, output: Picture, config: TaskConfig) -> dict[str, Any]:
        """`{"image": base64 of a PNG, "content_type", "seed", "prompt"}`."""
        return {
            "image": png_text(output.sized()),
            "content_type": CONTENT_TYPE,
            "seed": output.seed,
            "prompt": output.prompt,
        }


TEXT_TO_IMAGE = TextToImage()


def check_prompt(item: TextInput) -> str:
    """The text of a prompt; `InvalidInput` if it is too long to be one."""
    text = item.text or ""
    if len(text.encode()) > MAX_PROMPT_BYTES:
        raise InvalidInput(
            f"the prompt has {len(text.encode())} bytes, the limit is {MAX_PROMPT_BYTES}",
            param="prompt",
        )
    return text


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Pixels with three channels."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _read_size(body: Mapping[str, Any]) -> tuple[int, int] | None:
    height = read_integer(body, "height", 1, MAX_SIDE)
    width = read_integer(body, "width", 1, MAX_SIDE)
    if (height is None) != (width is None):
        missing = "height" if height is None else "width"
        raise InvalidInput("'width' and 'height' belong together", param=missing)
    return None if height is None or width is None else (height, width)


def _seeds_of(tensor: np.ndarray | None, count: int) -> list[int | None]:
    if tensor is None:
        return [None] * count
    if tensor.dtype != np.int64 or tensor.size != count or (tensor < 0).any():
        raise InvalidInput(
            f"the tensor 'seed' must be INT64 of {count} numbers, none below 0", param="seed"
        )
    return tensor.reshape(-1).tolist()
