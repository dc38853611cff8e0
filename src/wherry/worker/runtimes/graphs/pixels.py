# pyright: standard
"""Pictures as a graph's numbers: the one place that resizes, scales and arranges for graphs."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.image_fit import Frame, ImageOptions, fit_image, frame_of, image_options
from wherry.models.tasks.options import read_options
from wherry.worker.runtimes.graphs.graph import Array, GraphTensor, Quantisation

MAX_BATCH_NUMBERS = 1 << 23
MAX_CPU_BATCH_NUMBERS = 1 << 17
"""Pixels times channels in one batch: beyond, a convolution gains nothing but memory."""
MAX_BATCH_PICTURES = 64
UNKNOWN_SIZE_BATCH = 4
"""Pictures in one batch where the bundle says no size."""
TRIAL_SIDE = 64
"""Side of the trial picture for a model that takes any size."""

Layout = Literal["NCHW", "NHWC", "NHW", "flat"]

RANK_BY_LAYOUT: dict[Layout, int] = {"NCHW": 4, "NHWC": 4, "NHW": 3, "flat": 2}


class PixelOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that turns pixels into the graph's numbers.

    `x = (pixel * pixel_scale - mean) / std`; `image_size`, `image_mode`, `image_fit` and `invert`
    are the task's.
    """

    pixel_scale: float | None = None
    """1/255 by default; of quantised pixels, what makes the file's numbers of them as they are."""
    mean: float | tuple[float, ...] = ()
    """One number, or one a channel; in the order of `channel_order`."""
    std: float | tuple[float, ...] = ()
    channel_order: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["auto", "NCHW", "NHWC", "NHW", "flat"] = "auto"
    """Order of the graph's dimensions; `auto` reads it from the graph's shape."""


class Pixels:
    """Makes an input tensor of pictures, as the bundle's `[options]` say.

    Args:
        tensor: The graph's input.
        bundle: Its options: those of `PixelOptions`, and the task's `ImageOptions`.
    """

    def __init__(self, tensor: GraphTensor, bundle: Bundle) -> None:
        self._tensor = tensor
        self._pixels = _with_quantisation(
            read_options(bundle.manifest.options, PixelOptions), tensor.quantisation
        )
        self._layout: Layout = find_layout(tensor, self._pixels.layout)
        stated = image_options(bundle.manifest.options)
        self.options = with_size_of_graph(stated, tensor, self._layout)
        stated_scale = self._pixels.pixel_scale
        self._scale = np.float32(1 / 255 if stated_scale is None else stated_scale)
        self._shift, self._factor = self._find_normalisation()

    def _find_normalisation(self) -> tuple[Array, Array]:
        stated = self._pixels
        mean = np.atleast_1d(np.array(stated.mean or 0.0, dtype=np.float32))
        std = np.atleast_1d(np.array(1.0 if stated.std == () else stated.std, dtype=np.float32))
        if not {len(mean), len(std)} <= {1, self._channels} or not (std > 0).all():
            raise InvalidInput(f"mean and std must have 1 or {self._channels} numbers, std above 0")
        shape = (-1, 1, 1) if self._layout == "NCHW" else (-1,)
        return mean.reshape(shape), (1.0 / std).reshape(shape)

    @property
    def _channels(self) -> int:
        return 1 if self.options.image_mode == "L" else 3

    def count_batch(self, device: str) -> int:
        """Pictures that one run gains from."""
        if self.options.image_size is None:
            return UNKNOWN_SIZE_BATCH
        numbers = math.prod(self.options.image_size) * self._channels
        most_numbers = MAX_CPU_BATCH_NUMBERS if device == "cpu" else MAX_BATCH_NUMBERS
        return max(1, min(MAX_BATCH_PICTURES, most_numbers // numbers))

    def to_numbers(self, item: ImageInput) -> Array:
        """The picture in the graph's size, type, scale and order, without the rows; thread-safe."""
        fitted = fit_image(item.pixels, self.options)
        if fitted.ndim == 2:
            fitted = fitted[:, :, np.newaxis]
        if self._pixels.channel_order == "BGR":
            fitted = fitted[:, :, ::-1]
        if self._layout == "NCHW":
            fitted = fitted.transpose(2, 0, 1)
        pixels = np.ascontiguousarray(fitted)  # bytes are cheaper to move than floats
        numbers = self._normalise(pixels) if self._tensor.dtype.kind == "f" else pixels
        return arrange(numbers.astype(self._tensor.dtype, copy=False), self._layout)

    def _normalise(self, pixels: Array) -> Array:
        numbers = np.multiply(pixels, self._scale, dtype=np.float32)
        numbers -= self._shift
        numbers *= self._factor
        return numbers

    def size_of(self, numbers: Array) -> tuple[int, int]:
        """Height and width of a picture that `to_numbers` made."""
        if self.options.image_size is not None:
            return self.options.image_size
        height, width = numbers.shape[1:] if self._layout == "NCHW" else numbers.shape[:2]
        return height, width

    def frame_of(self, item: ImageInput) -> Frame:
        """From the graph's pixels back to the client's."""
        return frame_of(item.size, self.options)

    def trial_pictures(self) -> list[Array]:
        """Two pictures of noise, a bright and a dark one."""
        size = self.options.image_size or (TRIAL_SIDE, TRIAL_SIDE)
        random = np.random.default_rng(0)
        noises = [random.integers(0, top, (*size, 1), np.uint8) for top in (256, 64)]
        return [self.to_numbers(ImageInput(noise)) for noise in noises]


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
    """A picture with the dimensions that the graph has: `NHW` and `flat` have fewer."""
    if layout == "NHW":
        return picture[:, :, 0]
    return picture.reshape(-1) if layout == "flat" else picture


def _with_quantisation(options: PixelOptions, kept: Quantisation | None) -> PixelOptions:
    """The options with the scale that nobody stated: quantised graphs mostly take plain pixels."""
    is_stated = options.pixel_scale is not None or options.mean or options.std
    if is_stated or kept is None or kept.least not in (0, -128):
        return options
    darkest = (kept.least - kept.zero) * kept.scale  # pixel 0 becomes the type's smallest number
    return msgspec.structs.replace(options, pixel_scale=kept.scale, mean=(-darkest,))
