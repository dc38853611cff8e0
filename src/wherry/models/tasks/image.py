"""The task whose input is a picture: numbers, or a file (PNG, JPEG, WebP, GIF, BMP)."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from wherry.errors import InvalidInput, MissingExtra
from wherry.models.tasks.classification import (
    Classification,
    classification_signature,
    classification_to_plain,
    classifications_to_tensors,
)
from wherry.models.tasks.task import Signature, TaskConfig, Tensors, TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 16 << 20
"""Most pixels of a picture, read from its header before anything is decoded."""
MAX_SIDE = 1 << 16
"""Longest side of a picture, in pixels."""
MAX_FILE_BYTES = 32 << 20
MAX_FILES = 1024
"""Most picture files in one request."""
MAX_DECODED_BYTES = 256 << 20
"""Most memory for the pixels of one request's files: a small file may hold a large picture."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Decoders that may see a client's bytes; of an animation, the first frame is taken."""
CHANNELS = (1, 3, 4)
UNIT_SLACK = 1e-3
"""How far values may leave 0 to 1 and still count as that range: float noise of a resize."""


class ImageInput(msgspec.Struct):
    """One picture."""

    pixels: np.ndarray
    """uint8 [height, width, channels]; channels are 1 (grey), 3 (RGB) or 4 (RGB and alpha)."""


class ImageOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that says what picture the model wants."""

    image_size: tuple[int, int] | None = None
    """Height and width in pixels; None keeps the picture's own."""
    image_mode: Literal["L", "RGB"] = "RGB"
    """Grey or colour."""
    image_fit: Literal["stretch", "crop", "pad"] = "stretch"
    """How another aspect ratio is handled: distort, cut the longer side, or add a black border."""
    invert: Literal["never", "always", "auto"] = "never"
    """`auto` turns a picture with a light border into its negative (ink on paper → MNIST)."""


class ImageClassification:
    """A picture in, a score for each label out."""

    name = "image-classification"
    input_type = ImageInput
    output_type = Classification

    def signature(self, config: TaskConfig) -> Signature:
        """Pictures in (UINT8 0 to 255 is accepted as well); labels and scores out."""
        options = image_options(config.options)
        height, width = options.image_size or (-1, -1)
        shape = (-1, height, width) if options.image_mode == "L" else (-1, height, width, 3)
        return classification_signature((TensorSpec("image", "FP32", shape),), config)

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[ImageInput]:
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

    def to_tensors(
        self, outputs: Sequence[Classification], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """Tensors `label` and `scores`."""
        return classifications_to_tensors(outputs, config)

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> ImageInput:
        """`{"image": X}`: X is nested lists, a base64 text, a `data:` URL, or a file's bytes."""
        for key in ("image", "inputs", "input"):
            if key in body:
                return ImageInput(_read_value(body[key], config))
        raise InvalidInput(
            "the request has no 'image'", hint='send {"image": array.tolist()}', param="image"
        )

    def to_plain(self, output: Classification, config: TaskConfig) -> dict[str, Any]:
        """`{"prediction", "label", "confidence", "scores": {label: score}}`."""
        return classification_to_plain(output)


IMAGE_CLASSIFICATION = ImageClassification()


def image_options(options: Mapping[str, Any]) -> ImageOptions:
    """What the bundle says about its pictures; `InvalidInput` names a wrong option."""
    try:
        found = msgspec.convert(options, ImageOptions)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"an option of the bundle is wrong: {error}") from error
    if found.image_size and not all(1 <= side <= MAX_SIDE for side in found.image_size):
        raise InvalidInput(f"image_size must be 1 to {MAX_SIDE}, not {list(found.image_size)}")
    return found


def _read_files(tensor: np.ndarray, config: TaskConfig) -> list[ImageInput]:
    if tensor.size > MAX_FILES:
        raise InvalidInput(
            f"the request has {tensor.size} pictures, the limit is {MAX_FILES}", param="image"
        )
    found: list[ImageInput] = []
    held_bytes = 0
    for value in tensor.reshape(-1):
        found.append(ImageInput(_read_value(value, config)))
        held_bytes += found[-1].pixels.nbytes
        if held_bytes > MAX_DECODED_BYTES:
            raise InvalidInput(
                f"the pictures have more than {MAX_DECODED_BYTES} bytes of pixels together",
                hint="send fewer or smaller ones at once",
                param="image",
            )
    return found


def _read_value(value: object, config: TaskConfig) -> np.ndarray:
    if isinstance(value, str):
        value = _decode_base64(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return pixels_from_file(bytes(value), image_options(config.options))
    if isinstance(value, list | tuple | np.ndarray):
        return pixels_from_array(_array_from_lists(value))
    kind = type(value).__name__
    raise InvalidInput(
        f"'image' must be nested lists of numbers or a base64 text, not {kind}", param="image"
    )


def _decode_base64(text: str) -> bytes:
    if text[:8].lower().startswith(("http://", "https://")):
        raise InvalidInput(
            "'image' is a link, and the server fetches none",
            hint="download the picture and send its bytes as base64",
            param="image",
        )
    if text[:5].lower() == "data:":
        header, _, text = text.partition(",")
        if not header.lower().endswith(";base64"):
            raise InvalidInput("a data: URL must be base64", param="image")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"'image' is not valid base64: {error}", param="image") from error


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


def pixels_from_file(data: bytes, options: ImageOptions) -> np.ndarray:
    """Decode a picture file, turned upright by its EXIF orientation.

    Raises:
        InvalidInput: of another format, broken, cut off, or of too many pixels.
        MissingExtra: Pillow is not installed.
    """
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInput(
            f"the picture has {len(data)} bytes, the limit is {MAX_FILE_BYTES}", param="image"
        )
    pillow = _import_pillow()
    try:
        with pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
            return _decode_picture(picture, options)
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


def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "reading or resizing a picture needs the package 'pillow'",
            hint="pip install 'wherry[image]'",
        ) from error
    return Image


def _decode_picture(picture: Image, options: ImageOptions) -> np.ndarray:
    from PIL import ImageOps

    if options.image_size:
        # JPEG alone can leave out detail while decoding: a 48-megapixel photo costs little
        height, width = options.image_size
        picture.draft(None, (2 * width, 2 * height))
    width, height = picture.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _too_many_pixels(height, width)
    picture = _with_plain_mode(ImageOps.exif_transpose(picture))
    if options.image_size:
        height, width = options.image_size
        # both sides stay at least twice what the model needs, and the item becomes small
        factor = min(picture.height // (2 * height), picture.width // (2 * width))
        picture = picture.reduce(factor) if factor > 1 else picture
    pixels = np.asarray(picture)
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def _with_plain_mode(picture: Image) -> Image:
    if picture.mode.startswith("I"):  # 16 bit grey, which Pillow would clip at 255
        pixels = np.asarray(picture).astype(np.uint32) >> 8
        return _import_pillow().fromarray(pixels.astype(np.uint8))
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


def fit_image(pixels: np.ndarray, options: ImageOptions) -> np.ndarray:
    """The picture as the model wants it: uint8 [height, width] for `L`, else [height, width, 3]."""
    invert = options.invert == "always" or (options.invert == "auto" and _has_light_border(pixels))
    if options.image_size and pixels.shape[:2] != options.image_size:
        pixels = _resize(pixels, options, "white" if invert else "black")
    pixels = _convert_mode(pixels, options.image_mode)
    return np.ascontiguousarray(255 - pixels if invert else pixels)


def _resize(pixels: np.ndarray, options: ImageOptions, border: str) -> np.ndarray:
    image = _import_pillow()
    from PIL import ImageOps

    assert options.image_size is not None
    height, width = options.image_size
    squeezed = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    picture = image.fromarray(np.ascontiguousarray(squeezed))
    method = image.Resampling.BILINEAR  # averages when it shrinks
    if options.image_fit == "crop":
        picture = ImageOps.fit(picture, (width, height), method)
    elif options.image_fit == "pad":
        picture = ImageOps.pad(picture, (width, height), method, color=border)
    else:
        picture = picture.resize((width, height), method)
    return np.asarray(picture).reshape(height, width, pixels.shape[2])


def _convert_mode(pixels: np.ndarray, mode: Literal["L", "RGB"]) -> np.ndarray:
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
