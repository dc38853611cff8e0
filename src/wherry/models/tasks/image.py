"""What tasks of pictures take: numbers, or a file (PNG, JPEG, WebP, GIF, BMP)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from wherry.errors import InvalidInput
from wherry.models.tasks.base64_file import decode_file
from wherry.models.tasks.image_fit import MAX_SIDE, ImageOptions, image_options, import_pillow
from wherry.models.tasks.picture_parts import check_parts
from wherry.models.tasks.task import TaskConfig, Tensors, TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 16 << 20
"""Most pixels of a picture, read from its header before anything is decoded."""
MAX_FILE_BYTES = 32 << 20
MAX_FILES = 1024
"""Most picture files in one request."""
MAX_DECODED_BYTES = 256 << 20
"""Most memory for the pixels of one request's files: a small file may hold a large picture."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Decoders that may see a client's bytes; of an animation, the first frame is taken."""
CHANNELS = (1, 3, 4)
EXIF_ORIENTATION = 0x0112
UPRIGHT = 1
LYING = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""
UNIT_SLACK = 1e-3
"""How far values may leave 0 to 1 and still count as that range: float noise of a resize."""


class ImageInput(msgspec.Struct, tag="image"):
    """One picture."""

    pixels: np.ndarray
    """uint8 [height, width, channels]; channels are 1 (grey), 3 (RGB) or 4 (RGB and alpha). A file
    may have been made smaller while it was read, never below what the model looks at."""
    original_size: tuple[int, int] | None = None
    """Height and width of the client's picture, upright, in pixels; None: those of `pixels`."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the client's picture."""
        return self.original_size or self.pixels.shape[:2]


class Box(msgspec.Struct, frozen=True):
    """A part of a picture, in pixels of it as people see it."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float

    def within(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, every pixel that it touches, cut at the picture's edges.

        Raises:
            InvalidInput: nothing of the picture lies in it.
        """
        left, top = max(0, math.floor(self.xmin)), max(0, math.floor(self.ymin))
        right, bottom = min(width, math.ceil(self.xmax)), min(height, math.ceil(self.ymax))
        if left >= right or top >= bottom:
            raise InvalidInput(
                f"the crop holds nothing of the picture of {width} x {height} pixels", param="crop"
            )
        return left, top, right, bottom


class ImageTask:
    """What tasks of one picture have in common: reading it."""

    media = "image"
    input_type = ImageInput

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[ImageInput]:
        """See `images_from_tensors`."""
        return images_from_tensors(tensors, config)

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> ImageInput:
        """See `image_from_plain`."""
        return image_from_plain(body, config)


def images_from_tensors(tensors: Tensors, config: TaskConfig) -> list[ImageInput]:
    """One item for each row of `image`: [n, H, W], [n, H, W, C], or BYTES [n] of files."""
    tensor = tensors.get("image")
    if tensor is None or len(tensors) != 1:
        names = sorted(tensors)
        raise InvalidInput(
            f"the model takes one input tensor 'image', not {names!r}", param="image"
        )
    if tensor.dtype == object:
        return _read_files(tensor, config)
    if tensor.ndim not in (3, 4):
        raise InvalidInput(
            f"the tensor 'image' must have shape [n, height, width] or "
            f"[n, height, width, channels], not {list(tensor.shape)}",
            param="image",
        )
    return [ImageInput(pixels_from_array(picture)) for picture in tensor]


def image_from_plain(body: Mapping[str, Any], config: TaskConfig) -> ImageInput:
    """`{"image": X}`: X is nested lists, a base64 text, a `data:` URL, or a file's bytes.

    With `{"crop": {"xmin", "ymin", "xmax", "ymax"}}`, a box as detectors answer it, only that part
    of the picture is looked at, and is all that there is for what is answered.
    """
    for key in ("image", "inputs", "input"):
        if key in body:
            return read_image(body[key], config, read_box(body["crop"]) if "crop" in body else None)
    raise InvalidInput(
        "the request has no 'image'", hint='send {"image": array.tolist()}', param="image"
    )


def read_box(value: object) -> Box:
    """The box of a request."""
    try:
        box = msgspec.convert(value, Box)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"'crop' is no box: {error}",
            hint='{"xmin": 10, "ymin": 20, "xmax": 110, "ymax": 220}',
            param="crop",
        ) from error
    if not all(map(math.isfinite, msgspec.structs.astuple(box))):
        raise InvalidInput("'crop' must be finite numbers", param="crop")
    return box


def image_spec(config: TaskConfig) -> TensorSpec:
    """The input tensor of a task of pictures; UINT8 0 to 255 is accepted as well."""
    options = image_options(config.options)
    height, width = options.image_size or (-1, -1)
    shape = (-1, height, width) if options.image_mode == "L" else (-1, height, width, 3)
    return TensorSpec("image", "FP32", shape)


def _read_files(tensor: np.ndarray, config: TaskConfig) -> list[ImageInput]:
    if tensor.size > MAX_FILES:
        raise InvalidInput(
            f"the request has {tensor.size} pictures, the limit is {MAX_FILES}", param="image"
        )
    found: list[ImageInput] = []
    held_bytes = 0
    for value in tensor.reshape(-1):
        found.append(read_image(value, config))
        held_bytes += found[-1].pixels.nbytes
        if held_bytes > MAX_DECODED_BYTES:
            raise InvalidInput(
                f"the pictures have more than {MAX_DECODED_BYTES} bytes of pixels together",
                hint="send fewer or smaller ones at once",
                param="image",
            )
    return found


def read_image(value: object, config: TaskConfig, crop: Box | None = None) -> ImageInput:
    """A picture as base64 text, `data:` URL, bytes of a file, or nested lists of numbers."""
    if isinstance(value, str):
        value = decode_file(value, "image", "picture")
    if isinstance(value, bytes | bytearray | memoryview):
        return image_from_file(bytes(value), image_options(config.options), crop)
    if isinstance(value, list | tuple | np.ndarray):
        pixels = pixels_from_array(_array_from_lists(value))
        if crop is not None:
            left, top, right, bottom = crop.within(pixels.shape[1], pixels.shape[0])
            pixels = pixels[top:bottom, left:right]
        return ImageInput(pixels)
    kind = type(value).__name__
    raise InvalidInput(
        f"'image' must be nested lists of numbers or a base64 text, not {kind}", param="image"
    )


def _array_from_lists(value: Any) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # too large for a float is too large for a pixel
            return np.asarray(value, dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(
            "'image' must be lists of numbers, every row equally long", param="image"
        ) from error


def pixels_from_array(array: np.ndarray) -> np.ndarray:
    """Numbers as pixels, uint8 [height, width, channels].

    uint8 is taken as it is. Of any other type, values all within 0 to 1 are scaled by 255, else
    they must lie within 0 and 255. A picture with channels first is turned round.
    """
    array = _with_channels_last(array)
    height, width, _ = array.shape
    if not height or not width:
        raise InvalidInput("'image' has no pixels", param="image")
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise _too_many_pixels(height, width)
    if array.dtype == np.uint8:
        return array
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    if not (low >= -UNIT_SLACK and high <= 255.0):  # also false for NaN
        raise InvalidInput(
            f"pixels must lie within 0 and 1, or 0 and 255; these go from {low:g} to {high:g}",
            param="image",
        )
    scale = 255.0 if high <= 1.0 + UNIT_SLACK else 1.0
    return np.clip(np.rint(array * scale), 0, 255).astype(np.uint8)


def _with_channels_last(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        return array[:, :, np.newaxis]
    if array.ndim == 3 and array.shape[2] in CHANNELS:
        return array
    if array.ndim == 3 and array.shape[0] in CHANNELS:
        return array.transpose(1, 2, 0)
    raise InvalidInput(
        f"'image' must have shape [height, width] or [height, width, 1, 3 or 4], "
        f"not {list(array.shape)}",
        param="image",
    )


def image_from_file(data: bytes, options: ImageOptions, crop: Box | None = None) -> ImageInput:
    """Decode a picture file, turned upright by its EXIF orientation, or a part of it.

    Raises:
        InvalidInput: of another format, broken, cut off, or of too many pixels.
        MissingExtra: Pillow is not installed.
    """
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInput(
            f"the picture has {len(data)} bytes, the limit is {MAX_FILE_BYTES}", param="image"
        )
    pillow = import_pillow()
    check_parts(data)
    try:
        with pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
            return _decode_picture(picture, options, crop)
    except (InvalidInput, MemoryError):
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise InvalidInput(
            f"the picture has more than {MAX_PIXELS} pixels", hint="make it smaller", param="image"
        ) from error
    # Pillow's decoders raise whatever a broken file makes them stumble over
    except Exception as error:
        raise InvalidInput(
            "'image' is not a picture that can be read, or it is cut off",
            hint=f"formats: {', '.join(FORMATS)}",
            param="image",
        ) from error


def _decode_picture(picture: Image, options: ImageOptions, crop: Box | None) -> ImageInput:
    full_width, full_height = picture.size
    if options.image_size and crop is None:
        # JPEG alone can leave out detail while decoding: a 48-megapixel photo costs little
        height, width = options.image_size
        picture.draft(None, (2 * width, 2 * height))
    width, height = picture.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _too_many_pixels(height, width)
    # only now: Pillow may read a whole file to find its EXIF data
    orientation = picture.getexif().get(EXIF_ORIENTATION, UPRIGHT)
    size = (full_width, full_height) if orientation in LYING else (full_height, full_width)
    picture = _with_plain_mode(picture if orientation == UPRIGHT else _turn_upright(picture))
    if crop is not None:
        picture = picture.crop(crop.within(picture.width, picture.height))
        size = picture.height, picture.width
    if options.image_size:
        height, width = options.image_size
        # both sides stay at least twice what the model needs, and the item becomes small
        factor = min(picture.height // (2 * height), picture.width // (2 * width))
        picture = picture.reduce(factor) if factor > 1 else picture
    pixels = np.asarray(picture)
    return ImageInput(pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels, size)


def _turn_upright(picture: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


def _with_plain_mode(picture: Image) -> Image:
    """The picture in L, RGB or RGBA; itself if it is, for a large one is not copied without need."""
    if picture.mode in ("L", "RGB", "RGBA") and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):  # 16 bit grey, which Pillow would clip at 255
        pixels = np.asarray(picture).astype(np.uint32) >> 8
        return import_pillow().fromarray(pixels.astype(np.uint8))
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _too_many_pixels(height: int, width: int) -> InvalidInput:
    return InvalidInput(
        f"the picture has {width} x {height} pixels, the limit is {MAX_PIXELS} in all "
        f"and {MAX_SIDE} a side",
        hint="make it smaller",
        param="image",
    )
