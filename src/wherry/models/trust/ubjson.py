"""Reads Universal Binary JSON (https://ubjson.org), as XGBoost writes it, without its numbers.

Lists of numbers of one type, which hold the model itself, are passed over: what is left is small.
"""

from __future__ import annotations

import struct
from typing import Any

MAX_DEPTH = 32
NUMBERS = {"i": "b", "U": "B", "I": "h", "l": "i", "L": "q", "d": "f", "D": "d"}
"""Marker → format of `struct`."""
CONSTANTS = {"Z": None, "T": True, "F": False}


def read_ubjson(data: bytes) -> Any:
    """The value; lists of typed numbers are None.

    Raises:
        ValueError: it is cut off, nested too deep, or of another format.
    """
    try:
        value, _ = _Reader(data).value(0, MAX_DEPTH)
    except (struct.error, IndexError, KeyError, OverflowError) as error:
        raise ValueError("it is no Universal Binary JSON, or it is cut off") from error
    return value


class _Reader:
    """Every method takes where it begins and gives what it read and where that ends."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def value(self, at: int, depth: int) -> tuple[Any, int]:
        marker = chr(self._data[at])
        if marker in NUMBERS:
            return self._number(marker, at + 1)
        if marker in CONSTANTS:
            return CONSTANTS[marker], at + 1
        if marker == "S":
            return self._text(at + 1)
        if not depth:
            raise ValueError("it is nested too deep")
        return {"{": self._object, "[": self._list}[marker](at + 1, depth - 1)

    def _number(self, marker: str, at: int) -> tuple[Any, int]:
        form = ">" + NUMBERS[marker]
        return struct.unpack_from(form, self._data, at)[0], at + struct.calcsize(form)

    def _length(self, at: int) -> tuple[int, int]:
        length, at = self._number(chr(self._data[at]), at + 1)
        if not isinstance(length, int) or not 0 <= length <= len(self._data):
            raise ValueError("a length in it cannot be")
        return length, at

    def _text(self, at: int) -> tuple[str, int]:
        length, at = self._length(at)
        return self._data[at : at + length].decode(), at + length

    def _object(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        while chr(self._data[at]) != "}":
            key, at = self._text(at)
            found[key], at = self.value(at, depth)
        return found, at + 1

    def _list(self, at: int, depth: int) -> tuple[list[Any] | None, int]:
        if chr(self._data[at]) == "$":
            size = struct.calcsize(NUMBERS[chr(self._data[at + 1])])
            length, at = self._length(at + 3)
            return None, at + length * size
        found: list[Any] = []
        if chr(self._data[at]) == "#":
            length, at = self._length(at + 1)
            for _ in range(length):
                value, at = self.value(at, depth)
                found.append(value)
            return found, at
        while chr(self._data[at]) != "]":
            value, at = self.value(at, depth)
            found.append(value)
        return found, at + 1
