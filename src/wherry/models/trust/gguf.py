"""Checks a GGUF file's header in pure Python, before llama.cpp's native parser sees it.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from itertools import pairwise
from pathlib import Path

from wherry.errors import FormatNotAllowed
from wherry.models.trust.files import open_regular

MAGIC = b"GGUF"
MAX_ENTRIES = 65_536
"""Most metadata keys, and most tensors."""
MAX_STRING_BYTES = 1 << 20
MAX_NAME_BYTES = 256
"""Of keys and tensors; ggml itself takes 63 bytes for a tensor's name."""
MAX_ARRAY_ITEMS = 1 << 22
"""Of all arrays together: a vocabulary has some hundred thousand tokens and merges."""
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16

STRING, ARRAY = 8, 9
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Metadata type → bytes of one value."""

TENSOR_TYPES = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}
"""ggml type → (values in a block, bytes of a block); https://github.com/ggml-org/ggml gguf-py."""


def check_gguf(path: Path) -> dict[str, str | int]:
    """The header's short texts and whole numbers, e.g. `general.architecture`.

    Raises:
        FormatNotAllowed: it is not GGUF, or says something that cannot be.
    """
    with open_regular(path) as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file
            raise FormatNotAllowed(
                f"{path.name!r} is empty", hint="download or export it again"
            ) from error
        with mapped:
            try:
                return _Header(mapped).check()
            except (FormatNotAllowed, struct.error) as error:
                # struct.error: a number would begin inside the file and end outside
                reason = error.message if isinstance(error, FormatNotAllowed) else "it is cut off"
                raise FormatNotAllowed(
                    f"{path.name!r} is not a GGUF model that may be served: {reason}",
                    hint="download it again, or convert the model again with current tools",
                ) from None


class _Header:
    """One read of one header, from front to back."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._size = len(data)
        self._position = 0
        self._items_left = MAX_ARRAY_ITEMS

    def check(self) -> dict[str, str | int]:
        if self._data[:4] != MAGIC:
            raise FormatNotAllowed("it does not begin with 'GGUF'")
        self._position = 4
        version = self._number("<I")
        if version not in (2, 3):
            raise FormatNotAllowed(f"it has version {version}, versions 2 and 3 are read")
        tensor_count, entry_count = self._number("<Q"), self._number("<Q")
        if entry_count > MAX_ENTRIES or not 1 <= tensor_count <= MAX_ENTRIES:
            raise FormatNotAllowed(
                f"it claims {entry_count} metadata entries and {tensor_count} tensors"
            )
        metadata = self._read_metadata(entry_count)
        self._check_tensors(tensor_count, _read_alignment(metadata))
        return metadata

    def _read_metadata(self, count: int) -> dict[str, str | int]:
        found: dict[str, str | int] = {}
        seen: set[str] = set()
        for _ in range(count):
            key = self._name()
            if key in seen:
                raise FormatNotAllowed(f"it names the metadata key {key!r} twice")
            seen.add(key)
            kind = self._number("<I")
            if kind == ARRAY:
                self._skip_array(key)
            elif kind == STRING:
                length = self._length()
                if length <= MAX_NAME_BYTES:
                    found[key] = self._text(length)
                else:
                    self._skip(length)
            elif kind in SCALAR_BYTES:
                value = self._scalar(kind)
                if isinstance(value, int):
                    found[key] = value
            else:
                raise FormatNotAllowed(f"the metadata key {key!r} has the unknown type {kind}")
        return found

    def _skip_array(self, key: str) -> None:
        kind, count = self._number("<I"), self._number("<Q")
        self._items_left -= count
        if self._items_left < 0:
            raise FormatNotAllowed(f"its arrays have over {MAX_ARRAY_ITEMS} items")
        if kind in SCALAR_BYTES:
            self._skip(count * SCALAR_BYTES[kind])
        elif kind == STRING:
            for _ in range(count):
                self._skip(self._length())
        else:
            raise FormatNotAllowed(f"the array {key!r} has items of type {kind}")

    def _check_tensors(self, count: int, alignment: int) -> None:
        names: set[str] = set()
        spans: list[tuple[int, int]] = []
        for _ in range(count):
            name = self._name()
            if name in names:
                raise FormatNotAllowed(f"it names the tensor {name!r} twice")
            names.add(name)
            size = self._tensor_size(name)
            offset = self._number("<Q")
            if offset % alignment:
                raise FormatNotAllowed(f"the tensor {name!r} does not begin at a multiple")
            spans.append((offset, offset + size))
        room = self._size - -(-self._position // alignment) * alignment
        spans.sort()
        for (_, end), (start, _) in pairwise(spans):
            if start < end:
                raise FormatNotAllowed("two of its tensors overlap")
        if spans[-1][1] > room:
            raise FormatNotAllowed("its tensors end behind the end of the file: it is cut off")

    def _tensor_size(self, name: str) -> int:
        dimension_count = self._number("<I")
        if not 1 <= dimension_count <= MAX_DIMENSIONS:
            raise FormatNotAllowed(f"the tensor {name!r} has {dimension_count} dimensions")
        dimensions = [self._number("<Q") for _ in range(dimension_count)]
        kind = self._number("<I")
        if kind not in TENSOR_TYPES:
            raise FormatNotAllowed(f"the tensor {name!r} has the unknown type {kind}")
        block_values, block_bytes = TENSOR_TYPES[kind]
        count = 1
        for dimension in dimensions:
            count *= dimension
        if min(dimensions) < 1 or count > 1 << 50 or dimensions[0] % block_values:
            raise FormatNotAllowed(f"the tensor {name!r} has the shape {dimensions}")
        return count // block_values * block_bytes

    def _number(self, layout: str) -> int:
        value: int = struct.unpack_from(layout, self._data, self._position)[0]
        self._position += struct.calcsize(layout)
        return value

    def _scalar(self, kind: int) -> int | float:
        layout = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"}
        wide = {10: "<Q", 11: "<q", 12: "<d"}
        return self._number({**layout, **wide}[kind])

    def _length(self) -> int:
        length = self._number("<Q")
        if length > MAX_STRING_BYTES:
            raise FormatNotAllowed(f"it claims a text of {length} bytes")
        return length

    def _name(self) -> str:
        length = self._length()
        if length > MAX_NAME_BYTES:
            raise FormatNotAllowed(f"it claims a name of {length} bytes")
        return self._text(length)

    def _text(self, length: int) -> str:
        start = self._position
        self._skip(length)
        try:
            return self._data[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise FormatNotAllowed("one of its texts is not UTF-8") from error

    def _skip(self, count: int) -> None:
        self._position += count
        if self._position > self._size:
            raise FormatNotAllowed("it is cut off")


def _read_alignment(metadata: dict[str, str | int]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if (
        not isinstance(alignment, int)
        or not 8 <= alignment <= MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise FormatNotAllowed(f"its tensors are aligned to {alignment!r}")
    return alignment
