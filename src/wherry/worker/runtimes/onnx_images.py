# pyright: standard
"""ONNX classifiers of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed, WherryError
from wherry.models.bundle import Bundle
from wherry.models.tasks.image import ImageInput, ImageOptions, fit_image, image_options
from wherry.models.tasks.task import TaskOutput, Usage
from wherry.worker.runtimes.onnx_graph import Array, Graph, GraphTensor, rows_agree, trial
from wherry.worker.runtimes.onnx_scores import ScoreHead, check_rows, read_options
from wherry.worker.runtimes.runtime import Prepared

MAX_BATCH_NUMBERS = 1 << 20
"""Pixels times channels in one batch: beyond, a convolution gains nothing but memory."""
TRIAL_SIDE = 64
"""Side of the trial picture for a model that takes any size."""

Layout = Literal["NCHW", "NHWC", "NHW", "flat"]

RANK_BY_LAYOUT: dict[Layout, int] = {"NCHW": 4, "NHWC": 4, "NHW": 3, "flat": 2}


class PixelOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that turns pixels into the graph's numbers.

    `x = (pixel * pixel_scale - mean) / std`; `image_size`, `image_mode`, `image_fit` and `invert`
    are the task's.
    """

    pixel_scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    """One number, or one a channel; in the order of `channel_order`."""
    std: tuple[float, ...] = ()
    channel_order: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["auto", "NCHW", "NHWC", "NHW", "flat"] = "auto"
    """Order of the graph's dimensions; `auto` reads it from the graph's shape."""
    output: str = ""
    """Name of the graph's output; by default `logits`, else the first."""


class OnnxImages:
    """The task `image-classification`."""

    max_batch_cost = 0

    def __init__(self, graph: Graph, bundle: Bundle) -> None:
        if len(graph.inputs) != 1:
            raise FormatNotAllowed(
                f"{graph.file_name!r} takes {len(graph.inputs)} inputs, a classifier of pictures "
                "takes one",
                hint="serve it with the task 'tensor'",
            )
        self.graph = graph
        self.input = graph.inputs[0]
        self.pixels = read_options(bundle, PixelOptions)
        self.options = image_options(bundle.manifest.options)
        self.layout: Layout = find_layout(self.input, self.pixels.layout)
        self.options = with_size_of_graph(self.options, self.input, self.layout)
        self.output = graph.find_output((self.pixels.output, "logits"))
        self.shift, self.factor = self._find_normalisation()
        self.joins_rows, trial = self._try_out()
        self.head = ScoreHead(bundle, trial)
        self.max_batch_rows = self._find_max_batch_rows() if self.joins_rows else 1

    def _find_normalisation(self) -> tuple[Array, Array]:
        channels = 1 if self.options.image_mode == "L" else 3
        mean = np.array(self.pixels.mean or (0.0,), dtype=np.float32)
        std = np.array(self.pixels.std or (1.0,), dtype=np.float32)
        if not {len(mean), len(std)} <= {1, channels} or not (std > 0).all():
            raise InvalidInput(f"mean and std must have 1 or {channels} numbers, std above 0")
        return mean, 1.0 / std

    def _find_max_batch_rows(self) -> int:
        if self.options.image_size is None:
            return 4
        numbers = math.prod(self.options.image_size) * (1 if self.options.image_mode == "L" else 3)
        return max(1, min(64, MAX_BATCH_NUMBERS // numbers))

    def _try_out(self) -> tuple[bool, Array]:
        """Whether pictures may share a run, and the answer to one of them."""
        height, width = self.options.image_size or (TRIAL_SIDE, TRIAL_SIDE)
        random = np.random.default_rng(0)
        pictures = [
            self.prepare(ImageInput(random.integers(0, top, (height, width, 1), np.uint8))).payload
            for top in (256, 64)
        ]
        with trial(self.graph):
            alone = np.concatenate([self.forward([picture]) for picture in pictures])
        if not self.input.has_free_rows:
            return False, alone[0]
        try:
            return rows_agree(alone, self.forward(pictures)), alone[0]
        except WherryError:  # free in the declaration, fixed inside
            return False, alone[0]

    def prepare(self, item: ImageInput) -> Prepared:
        """The picture as the graph's numbers; safe in many threads."""
        fitted = fit_image(item.pixels, self.options)
        if fitted.ndim == 2:
            fitted = fitted[:, :, np.newaxis]
        if self.pixels.channel_order == "BGR":
            fitted = fitted[:, :, ::-1]
        if self.input.dtype.kind == "f":
            scaled = fitted * np.float32(self.pixels.pixel_scale)
            fitted = (scaled - self.shift) * self.factor
        numbers = arrange(fitted, self.layout).astype(self.input.dtype)
        return Prepared(np.ascontiguousarray(numbers), group=numbers.shape)

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One run for all pictures."""
        scores = self.head.scores(self.forward([prepared.payload for prepared in batch]))
        if not np.isfinite(scores).all():
            raise ModelFailed("the model answered with numbers that are not finite")
        return [self.head.output_of(row, Usage(rows=1)) for row in scores]

    def forward(self, pictures: Sequence[Array]) -> Array:
        """Raw numbers of each picture, float32 [pictures, numbers]."""
        feeds = {self.input.name: np.stack(pictures)}
        found = self.graph.run(feeds, [self.output.name])[0]
        check_rows(found, len(pictures))
        return found.astype(np.float32, copy=False).reshape(len(pictures), -1)


def find_layout(tensor: GraphTensor, stated: Layout | Literal["auto"]) -> Layout:
    """The order of the graph's dimensions: as the bundle says, else by where the channels are."""
    shape = tensor.shape
    if stated != "auto":
        if len(shape) != RANK_BY_LAYOUT[stated]:
            raise InvalidInput(f"input {tensor.name!r} of shape {list(shape)} is not {stated!r}")
        return stated
    if len(shape) in (2, 3):
        return "flat" if len(shape) == 2 else "NHW"
    if len(shape) == 4:
        # like Keras, if only the last dimension looks like channels
        return "NHWC" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW"
    raise FormatNotAllowed(
        f"input {tensor.name!r} has shape {list(shape)}, which is not one of pictures",
        hint="serve the model with the task 'tensor'",
    )


def with_size_of_graph(options: ImageOptions, tensor: GraphTensor, layout: Layout) -> ImageOptions:
    """`options` with the size that the graph demands, where it demands one.

    Raises:
        InvalidInput: the bundle says another size or another number of channels.
    """
    sides = {"NCHW": (2, 3), "NHWC": (1, 2), "NHW": (1, 2), "flat": ()}[layout]
    demanded = tuple(tensor.shape[side] for side in sides)
    check_channels(options, tensor, layout)
    if not demanded or not all(isinstance(side, int) for side in demanded):
        return options
    if options.image_size not in (None, demanded):
        raise InvalidInput(
            f"the graph takes pictures of {list(demanded)}, the bundle's image_size is "
            f"{list(options.image_size or ())}"
        )
    return msgspec.structs.replace(options, image_size=demanded)


def check_channels(options: ImageOptions, tensor: GraphTensor, layout: Layout) -> None:
    """The graph takes as many channels as `image_mode` gives; else `InvalidInput`."""
    wanted = {"NCHW": tensor.shape[1], "NHWC": tensor.shape[-1], "NHW": 1, "flat": None}[layout]
    given = 1 if options.image_mode == "L" else 3
    if isinstance(wanted, int) and wanted != given:
        raise InvalidInput(
            f"the graph takes {wanted} channels, image_mode {options.image_mode!r} gives {given}",
            hint="set the option image_mode to 'L' or 'RGB'",
        )


def arrange(picture: Array, layout: Layout) -> Array:
    """A picture [height, width, channels] in the order of the graph, without the rows."""
    if layout == "NCHW":
        return picture.transpose(2, 0, 1)
    if layout == "NHW":
        return picture[:, :, 0]
    return picture.reshape(-1) if layout == "flat" else picture
