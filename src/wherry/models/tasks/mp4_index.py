"""How many samples an MP4 file claims, asked before FFmpeg makes a list of them.

In an MP4 file one number may stand for any number of samples ("all of one byte"), and FFmpeg's list
has 24 bytes or more for each: six kilobytes take two gigabytes. Plain PCM, of which a sample lasts a
tick, is listed by chunks and may have as many as it likes.

Which boxes lie in which is not asked: FFmpeg finds these tables in places where they do not belong.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from wherry.errors import InvalidInput

MAX_SAMPLES = 1 << 20
"""Of one file: AAC of 48 kHz lasts six hours."""
MAX_TABLES = 1 << 16
_TABLE = re.compile(rb"stsz|stts|trun|cmov")
_COUNT_AT = {b"stsz": 12, b"trun": 8}
"""Table → where its number of samples lies, from its name on."""
ONE_ENTRY_OF_A_TICK = (1, 1)


def check_index(data: bytes) -> None:
    """Refuse a file that claims more samples than a sound needs.

    Raises:
        InvalidInput: it does, or packs its tables, or has too many of them.
    """
    samples, are_ticks = 0, True
    for number, (name, position) in enumerate(_tables(data), 1):
        if name == b"cmov" or number > MAX_TABLES:
            raise _refusal("packs its tables, or has too many")
        if name == b"stts":
            entries, _, ticks = _numbers(data, position + 8, 3)
            are_ticks = are_ticks and (entries, ticks) == ONE_ENTRY_OF_A_TICK
        else:
            samples += _numbers(data, position + _COUNT_AT[name], 1)[0]
    if samples > MAX_SAMPLES and not are_ticks:
        raise _refusal(f"claims {samples} samples, the limit is {MAX_SAMPLES}")


def _tables(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Name and place of each table outside of the sound itself."""
    for start, end in _descriptions(data):
        for found in _TABLE.finditer(data, start, end):
            yield found[0], found.start()


def _descriptions(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the boxes lie that describe, rather than hold, the sound."""
    start = 0
    while start + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        if size == 1:
            size = int.from_bytes(data[start + 8 : start + 16])
        end = min(start + max(size, 8), len(data)) if size else len(data)
        if kind != b"mdat":
            yield start, end
        start = end


def _numbers(data: bytes, position: int, count: int) -> tuple[int, ...]:
    """Big-endian numbers, zeros where the file has ended."""
    return struct.unpack(
        f">{count}I", data[position : position + 4 * count].ljust(4 * count, b"\0")
    )


def _refusal(fact: str) -> InvalidInput:
    return InvalidInput(f"the file {fact}", hint="save it anew", param="audio")
