"""A picture as a model wants it: size, aspect ratio, border, colour; and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from wherry.errors import InvalidInput, MissingExtra
from wherry.models.tasks.options import read_options

MAX_SIDE = 1 << 16
"""Longest side of a picture, in pixels."""
STRIP_PIXELS = 1 << 18
"""Pixels whose colours are reckoned at once."""


class ImageOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that says what picture the model wants."""

    image_size: tuple[int, int] | None = None
    """Height and width in pixels; None keeps the picture's own."""
    image_mode: Literal["L", "RGB"] = "RGB"
    """Grey or colour."""
    image_fit: Literal["stretch", "crop", "pad"] = "stretch"
    """How another aspect ratio is handled: distort, cut the longer side, or add a border."""
    crop_scale: float = 1.0
    """For `crop`: which part of the shorter side is kept, e.g. 0.875 for 224 out of 256; for
    `stretch`: which part of each side."""
    pad_place: Literal["both", "end"] = "both"
    """For `pad`: the border is on both sides, or only at the right or the bottom."""
    pad_value: int | None = None
    """Grey value of the border, 0 to 255; None is black, white before it is inverted."""
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    """How pixels between pixels are found; all but `nearest` average when they shrink."""
    invert: Literal["never", "always", "auto"] = "never"
    """`auto` turns a picture with a light border into its negative (ink on paper → MNIST)."""


class Frame(msgspec.Struct, frozen=True):
    """How places in a fitted picture are places in the original: `(place + start) * scale`."""

    scale_down: float
    scale_across: float
    top: float = 0.0
    """Rows of the fitted picture between the original's top and its own; negative for a border."""
    left: float = 0.0

    def to_original(self, points: np.ndarray) -> np.ndarray:
        """x, y of points in the fitted picture, [..., 2], as pixels of the original."""
        start = np.array((self.left, self.top), dtype=np.float32)
        return (points + start) * np.array((self.scale_across, self.scale_down), dtype=np.float32)


def image_options(options: Mapping[str, Any]) -> ImageOptions:
    """What the bundle says about its pictures; `InvalidInput` names a wrong option."""
    found = read_options(options, ImageOptions)
    if found.image_size and not all(1 <= side <= MAX_SIDE for side in found.image_size):
        raise InvalidInput(f"image_size must be 1 to {MAX_SIDE}, not {list(found.image_size)}")
    if not 0 < found.crop_scale <= 1:
        raise InvalidInput(f"crop_scale must be above 0 and at most 1, not {found.crop_scale}")
    if not 0 <= (found.pad_value or 0) <= 255:
        raise InvalidInput(f"pad_value must be 0 to 255, not {found.pad_value}")
    return found


def fit_image(pixels: np.ndarray, options: ImageOptions) -> np.ndarray:
    """The picture as the model wants it: uint8 [height, width] for `L`, else [height, width, 3]."""
    invert = options.invert == "always" or (options.invert == "auto" and _has_light_border(pixels))
    is_cut = options.crop_scale < 1 and options.image_fit != "pad"
    if options.image_size and (is_cut or pixels.shape[:2] != options.image_size):
        border = options.pad_value if options.pad_value is not None else 255 if invert else 0
        pixels = _resize(pixels, options, border)
    pixels = _convert_mode(pixels, options.image_mode)
    return np.ascontiguousarray(255 - pixels if invert else pixels)


def frame_of(size: tuple[int, int], options: ImageOptions) -> Frame:
    """Where a picture of `size` (height, width) lies in what `fit_image` makes of it."""
    height, width = size
    if options.image_size is None:
        return Frame(1.0, 1.0)
    wanted_height, wanted_width = options.image_size
    if options.image_fit == "pad":
        inner_height, inner_width = _inner_size(size, options.image_size)
        top, left = _border(options, inner_height, inner_width)
        return Frame(height / inner_height, width / inner_width, -float(top), -float(left))
    left, top, right, bottom = _crop_box(size, options)
    down, across = (bottom - top) / wanted_height, (right - left) / wanted_width
    return Frame(down, across, top / down, left / across)


def _resize(pixels: np.ndarray, options: ImageOptions, border: int) -> np.ndarray:
    image = import_pillow()
    assert options.image_size is not None
    height, width = options.image_size
    squeezed = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    picture = image.fromarray(np.ascontiguousarray(squeezed))
    method = image.Resampling[options.resample.upper()]
    if options.image_fit == "pad":
        picture = _pad(picture, options, border, method)
    else:
        picture = picture.resize((width, height), method, _crop_box(pixels.shape[:2], options))
    return np.asarray(picture).reshape(height, width, pixels.shape[2])


def _pad(picture: Any, options: ImageOptions, border: int, method: Any) -> Any:
    assert options.image_size is not None
    height, width = options.image_size
    inner_height, inner_width = _inner_size((picture.height, picture.width), options.image_size)
    top, left = _border(options, inner_height, inner_width)
    bands = len(picture.getbands())
    colour = border if bands == 1 else (border, border, border, 255)[:bands]
    padded = import_pillow().new(picture.mode, (width, height), colour)
    padded.paste(picture.resize((inner_width, inner_height), method), (left, top))
    return padded


def _inner_size(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """The largest height and width of the same shape that `wanted` holds."""
    scale = min(wanted[0] / size[0], wanted[1] / size[1])
    height, width = (
        min(max(1, round(side * scale)), most) for side, most in zip(size, wanted, strict=True)
    )
    return height, width


def _border(options: ImageOptions, inner_height: int, inner_width: int) -> tuple[int, int]:
    """How far from the top and the left the picture begins."""
    assert options.image_size is not None
    if options.pad_place == "end":
        return 0, 0
    height, width = options.image_size
    return (height - inner_height) // 2, (width - inner_width) // 2


def _crop_box(size: tuple[int, int], options: ImageOptions) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is kept: for `crop` the middle of the wanted shape."""
    assert options.image_size is not None
    (height, width), (wanted_height, wanted_width) = size, options.image_size
    if options.image_fit == "stretch":
        across, down = (side * (1 - options.crop_scale) / 2 for side in (width, height))
        return across, down, width - across, height - down
    scale = min(height / wanted_height, width / wanted_width) * options.crop_scale
    left = (width - wanted_width * scale) / 2
    top = (height - wanted_height * scale) / 2
    return left, top, left + wanted_width * scale, top + wanted_height * scale


def _convert_mode(pixels: np.ndarray, mode: Literal["L", "RGB"]) -> np.ndarray:
    """In strips of rows, for what is reckoned on the way takes many times the pixels' memory."""
    height, width, channels = pixels.shape
    if (channels, mode) == (3, "RGB"):
        return pixels
    converted = np.empty((height, width) if mode == "L" else (height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        converted[top : top + rows] = _convert_strip(pixels[top : top + rows], mode)
    return converted


def _convert_strip(pixels: np.ndarray, mode: Literal["L", "RGB"]) -> np.ndarray:
    if pixels.shape[2] == 4:  # as if the picture lay on white paper
        alpha = pixels[:, :, 3:].astype(np.uint32)
        colour = pixels[:, :, :3] * alpha + 255 * (255 - alpha)
        pixels = ((colour + 127) // 255).astype(np.uint8)
    if mode == "L":
        if pixels.shape[2] == 1:
            return pixels[:, :, 0]
        weights = np.array([299, 587, 114], dtype=np.uint32)  # ITU-R 601, as Pillow's
        return ((pixels @ weights + 500) // 1000).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _has_light_border(pixels: np.ndarray) -> bool:
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])  # (n, channels)
    return float(np.median(_convert_mode(edges[:, np.newaxis], "L"))) > 127


def import_pillow() -> Any:
    """The module `PIL.Image`; `MissingExtra` says how to install it."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "reading or resizing a picture needs the package 'pillow'",
            hint="pip install 'wherry[image]'",
        ) from error
    return Image
