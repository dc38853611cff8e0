"""Checks that a file is a TensorFlow Lite model.

A FlatBuffer (https://flatbuffers.dev/internals/) with its mark, whose root table and list of parts
lie within the file.

More is left to the runtime, in its sandbox: it knows which operators it has.
"""

from __future__ import annotations

import struct
from pathlib import Path

from wherry.errors import FormatNotAllowed
from wherry.models.trust.files import open_regular

MAGIC = b"TFL3"
"""At byte 4 of the file."""
MAX_BYTES = 2 << 30
"""FlatBuffers' offsets go no further."""


def check_tflite(path: Path) -> None:
    """Raises `FormatNotAllowed`: not TensorFlow Lite, too large, or cut off."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(8)
        if size > MAX_BYTES:
            raise FormatNotAllowed(f"{path.name!r} is over {MAX_BYTES >> 30} GiB")
        if head[4:8] == MAGIC:
            (root,) = struct.unpack_from("<I", head)
            file.seek(min(root, size))
            if _is_table(file.read(4), root, size):
                return
    raise FormatNotAllowed(
        f"{path.name!r} is not a TensorFlow Lite model, or it is cut off", hint="convert it again"
    )


def _is_table(start: bytes, place: int, size: int) -> bool:
    """Whether the list of the table's fields, which its first number points back to, is inside."""
    if len(start) < 4:
        return False
    (back,) = struct.unpack("<i", start)
    return 8 <= place - back <= size - 4
