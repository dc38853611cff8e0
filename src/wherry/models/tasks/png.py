"""Pictures that models answer with: PNG, as bytes and as text."""

from __future__ import annotations

import base64
import io

import numpy as np

from wherry.models.tasks.image_fit import import_pillow

CONTENT_TYPE = "image/png"
COMPRESS_LEVEL = 3
"""Of zlib: a photo of a megapixel is a few per cent larger than at 6, and ready in half the time."""


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels: [height, width] is grey, [height, width, 3] RGB.

    Raises:
        MissingExtra: Pillow is not installed.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    buffer = io.BytesIO()
    picture = import_pillow().fromarray(np.ascontiguousarray(pixels))
    picture.save(buffer, "PNG", compress_level=COMPRESS_LEVEL)
    return buffer.getvalue()


def png_text(pixels: np.ndarray) -> str:
    """The same in base64, as JSON carries it."""
    return base64.b64encode(encode_png(pixels)).decode()


def png_url(pixels: np.ndarray) -> str:
    """The same as a `data:` URL."""
    return f"data:{CONTENT_TYPE};base64,{png_text(pixels)}"
