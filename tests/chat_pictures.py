"""Pictures for conversations."""

from __future__ import annotations

import io
import struct
import zlib

import pytest


def chat_picture(
    colour: str = "red", size: tuple[int, int] = (40, 30), form: str = "PNG", mode: str = "RGB"
) -> bytes:
    """A file of one colour; skips the test without Pillow."""
    image = pytest.importorskip("PIL.Image", reason="pip install 'wherry[image]'")
    written = io.BytesIO()
    image.new("RGB", size, colour).convert(mode).save(written, form)
    return written.getvalue()


def png_bomb(side: int) -> bytes:
    """A small file that claims a square of so many pixels a side, and begins to hold them."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
