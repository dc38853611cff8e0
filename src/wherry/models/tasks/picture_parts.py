"""Bounds for the parts of picture files, looked at before a decoder is.

Pixels are not all that a file can make a decoder work on. Pillow reads chunks and comments in
Python, and joins those of a GIF again and again; a JPEG may come in any number of scans, each a walk
over all of its pixels, and a progressive one is kept as numbers larger than its pixels. What no
camera, scanner or editor writes is refused here, in a time that the file's size bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from wherry.errors import InvalidInput

MAX_PARTS = 1 << 14
"""Chunks of a PNG, segments of a JPEG, blocks of a GIF before its picture."""
MAX_JPEG_NOTES_BYTES = 8 << 20
"""Colour profiles, comments and thumbnails before the pixels, which are joined as they are read."""
MAX_GIF_NOTES_BYTES = 1 << 20
"""The same of a GIF, where a join comes after every 255 bytes."""
MAX_SCANS = 100
"""Of a JPEG; encoders write about ten."""
MAX_KEPT_BYTES = 144 << 20
"""Of a JPEG in several scans, whose decoder keeps two bytes a number: 48 megapixels, as cameras
store colours."""

PNG_MAGIC, JPEG_MAGIC, GIF_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8"
GIF_EXTENSION = 0x21
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers of a JPEG without a length."""
FRAMES = frozenset((*range(0xC0, 0xD0),)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG that say its size and how it is written."""
PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))


def check_parts(data: bytes) -> None:
    """Refuse a picture file of too many parts; what is broken otherwise is the decoder's to say.

    Raises:
        InvalidInput: it has more parts, scans or notes than a picture needs.
    """
    for magic, check in _CHECKS.items():
        if data.startswith(magic):
            check(data)


def _check_png(data: bytes) -> None:
    position, parts = len(PNG_MAGIC), 0
    while position + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        position += 12 + length
        parts += 1
        _check_count(parts)


def _check_gif(data: bytes) -> None:
    """Blocks before the first frame: all that Pillow reads of it."""
    if len(data) < 13:
        return
    has_colours, colours = data[10] & 0x80, 3 << ((data[10] & 7) + 1)
    begin = position = 13 + (colours if has_colours else 0)
    parts = 0
    while position + 2 < len(data) and data[position] == GIF_EXTENSION:
        position += 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
            parts += 1
            _check_count(parts)
        position += 1
        parts += 1
        _check_count(parts)
    _check_notes(position - begin, MAX_GIF_NOTES_BYTES)


def _check_jpeg(data: bytes) -> None:
    kept = 0
    is_progressive = False
    position = 2
    for parts, (marker, position, length) in enumerate(_segments(data)):
        _check_count(parts)
        if marker in FRAMES:
            kept = _kept_bytes(data[position : position + length])
            is_progressive = marker in PROGRESSIVE
    _check_notes(position, MAX_JPEG_NOTES_BYTES)
    # within a scan, FF is followed by 00: no pixels look like the start of one
    scans = data.count(bytes((0xFF, START_OF_SCAN)), position)
    if scans > MAX_SCANS:
        raise _refusal(f"has {scans} scans, the limit is {MAX_SCANS}")
    if kept > MAX_KEPT_BYTES and (is_progressive or scans > 1):
        raise _refusal(
            f"takes {kept >> 20} MiB to decode, the limit is {MAX_KEPT_BYTES >> 20}",
            "make it smaller, or save it without progressive scans",
        )


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and length of each part before the pixels; the last is where these begin."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return
        marker = data[position + 1]
        if marker in STANDALONE or marker == 0xFF:
            position += 2 if marker != 0xFF else 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        yield marker, position, length + 2
        if marker in (START_OF_SCAN, END_OF_IMAGE):
            return
        position += 2 + length


def _kept_bytes(frame: bytes) -> int:
    """Bytes of a picture's numbers while its scans are gathered, by the head of its frame."""
    if len(frame) < 10:
        return 0
    height, width, count = struct.unpack_from(">HHB", frame, 5)
    sides = [divmod(each, 16) for each in frame[11 : 10 + 3 * count : 3]]
    most_across = max((across for across, _ in sides), default=1) or 1
    most_down = max((down for _, down in sides), default=1) or 1
    shares = sum(across * down for across, down in sides) / (most_across * most_down)
    return int(2 * width * height * shares)


_CHECKS: dict[bytes, Callable[[bytes], None]] = {
    PNG_MAGIC: _check_png,
    JPEG_MAGIC: _check_jpeg,
    GIF_MAGIC: _check_gif,
}


def _check_count(parts: int) -> None:
    if parts > MAX_PARTS:
        raise _refusal(f"has more than {MAX_PARTS} parts")


def _check_notes(size: int, limit: int) -> None:
    if size > limit:
        raise _refusal(
            f"has {size} bytes before its pixels, the limit is {limit}",
            "save it without comments and thumbnails",
        )


def _refusal(fact: str, hint: str = "save it anew") -> InvalidInput:
    return InvalidInput(f"the picture's file {fact}", hint=hint, param="image")
