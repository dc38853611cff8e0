"""Picture files that are made up: bombs, liars and strangers, and odd ones that are good.

Files are built byte by byte where no library would write them.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image
from tests.pictures import file_of

EXIF_ORIENTATION = 0x0112
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation → how the upright picture lies in the file."""


def lying_file(upright: Image.Image, orientation: int, form: str) -> bytes:
    """A file whose pixels lie otherwise than people are to see them, and that says so."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    turn = STORED_AS[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    return file_of(stored, form, quality=95, exif=exif)


# ------------------------------------------------------------------------------ PNG

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_HEAD_BYTES = 33
"""Signature and first chunk."""


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(width: int, height: int, packed: bytes, bits: int = 1, colour: int = 0) -> bytes:
    """A PNG of any claims; `packed` is what its pixels are compressed to."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = (png_chunk(b"IHDR", head), png_chunk(b"IDAT", packed), png_chunk(b"IEND"))
    return PNG_START + b"".join(parts)


def packed_zeros(mebibytes: int) -> bytes:
    """Zeros as zlib packs them, in no time: one packed block, again and again."""
    packer = zlib.compressobj(9)
    start = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * (mebibytes - 1) + packer.flush()


def with_chunks(png: bytes, chunks: bytes, *, at_end: bool = False) -> bytes:
    """A PNG with more chunks, before its pixels or behind them."""
    cut = len(png) - 12 if at_end else PNG_HEAD_BYTES
    return png[:cut] + chunks + png[cut:]


def animated_png(png: bytes, frames: int) -> bytes:
    """A PNG that claims any number of frames, of which all but the first are empty."""
    width, height = struct.unpack(">II", png[16:24])
    control = struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 10, 0, 0)
    begin = png_chunk(b"acTL", struct.pack(">II", frames, 0)) + png_chunk(b"fcTL", control)
    return with_chunks(with_chunks(png, begin), png_chunk(b"fcTL", control) * frames, at_end=True)


# ------------------------------------------------------------------------------ GIF


def gif_start(gif: bytes) -> int:
    """Where the first block of a GIF of Pillow's lies: behind the table of its colours."""
    return 13 + 3 * 2 ** ((gif[10] & 7) + 1)


def gif_of_frames(count: int, side: int = 8) -> bytes:
    """A GIF of any number of frames."""
    one = file_of(Image.new("L", (side, side), 200), "GIF")
    start = one.index(b"\x2c", gif_start(one))
    return one[:start] + one[start:-1] * count + one[-1:]


def gif_of_comments(gif: bytes, count: int, pieces: int = 1) -> bytes:
    """A GIF that says something before it shows something, each time in so many pieces."""
    start = gif_start(gif)
    piece = b"\x04talk" if pieces == 1 else b"\xff" + b"a" * 255
    return gif[:start] + (b"\x21\xfe" + piece * pieces + b"\x00") * count + gif[start:]


# ------------------------------------------------------------------------------ JPEG


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def grey_jpeg(width: int, height: int, *, progressive: bool, scans: int = 1) -> bytes:
    """A grey JPEG, written by hand: a bit for each 8 x 8 pixels, or less.

    Progressive ones may have any number of further scans that say "nothing here" of all blocks.
    """
    blocks = ((width + 7) // 8) * ((height + 7) // 8)
    parts = [
        b"\xff\xd8",
        jpeg_segment(0xDB, b"\0" + bytes([1]) * 64),
        jpeg_segment(
            0xC2 if progressive else 0xC0, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)
        ),
        jpeg_segment(0xC4, b"\x00" + bytes([1]) + bytes(15) + b"\x00"),
    ]
    if progressive:
        parts.append(_scan(0, 0, 0x00, bytes(blocks // 8 + 1)))
        # of the numbers 1 to 63: runs of 2^14 empty blocks, one bit each and 14 of its length
        parts.append(jpeg_segment(0xC4, b"\x10" + bytes([1]) + bytes(15) + b"\xe0"))
        runs = "0" * 15 * (blocks >> 14)
        parts += [_scan(1, 63, 0x00, _pack(runs))] * (scans - 1)
    else:
        parts.append(jpeg_segment(0xC4, b"\x10" + bytes([1]) + bytes(15) + b"\x00"))
        parts.append(_scan(0, 63, 0x00, bytes(2 * blocks // 8 + 1)))
    return b"".join([*parts, b"\xff\xd9"])


def _scan(first: int, last: int, precision: int, data: bytes) -> bytes:
    return jpeg_segment(0xDA, bytes((1, 1, 0x00, first, last, precision))) + data


def _pack(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))


def jpeg_of_comments(jpeg: bytes, count: int) -> bytes:
    """A JPEG that says something before it shows something."""
    return jpeg[:2] + jpeg_segment(0xFE, b"talk") * count + jpeg[2:]


def pdf_in_a_jpeg(jpeg: bytes) -> bytes:
    """Both a JPEG and, to readers that look for it a little farther on, a PDF."""
    return (
        jpeg[:2]
        + jpeg_segment(0xFE, b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\ntrailer<<>>\n%%EOF\n")
        + jpeg[2:]
    )


# ------------------------------------------------------------------------------ others


def webp_claiming(width: int, height: int) -> bytes:
    """A WebP of any canvas, whose only frame is 1 x 1."""
    inner = file_of(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"VP8X" + struct.pack("<IB3x", 10, 0) + canvas + inner
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_of_frames(count: int, side: int = 8) -> bytes:
    """An animated WebP of any number of frames."""
    inner = file_of(Image.new("RGB", (side, side), "red"), "WEBP", lossless=True)[12:]
    size = struct.pack("<I", side - 1)[:3]
    frame = bytes(6) + size + size + b"\x0a\0\0" + b"\0" + inner
    frame = b"ANMF" + struct.pack("<I", len(frame)) + frame
    canvas = b"VP8X" + struct.pack("<IB3x", 10, 2) + size + size
    body = canvas + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + frame * count
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def bmp_claiming(width: int, height: int, *, colours: int = 0, compression: int = 0) -> bytes:
    """A BMP whose head says anything, and a few bytes of pixels."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 0, 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", 0xFFFFFFF0, 0, 0, 54 + 1024) + info + bytes(1024 + 64)


def tiff_of_itself() -> bytes:
    """A TIFF whose only directory says that it is the next."""
    return b"II*\0\x08\0\0\0\0\0\x08\0\0\0"


def written_as(picture: Image.Image, forms: Sequence[str]) -> dict[str, bytes]:
    """A picture in formats that are not read here."""
    found: dict[str, bytes] = {}
    for form in forms:
        buffer = io.BytesIO()
        picture.save(buffer, form)
        found[f"a good {form}"] = buffer.getvalue()
    return found
