"""Walks protobuf messages on the wire, without schemas, copies or trust in any length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from wherry.errors import FormatNotAllowed

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; groups (3 and 4) are long deprecated and refused."""


class Field(NamedTuple):
    """One field: its number and its value, or where its bytes are."""

    number: int
    kind: int
    value: int
    """Of a varint; for the other kinds the offset of the first byte."""
    end: int


class Budget:
    """How many fields one walk may still read, so that no file keeps it busy for long."""

    def __init__(self, fields: int) -> None:
        self.fields = fields


class Message(NamedTuple):
    """A part of a buffer that holds one message."""

    buffer: memoryview
    start: int
    end: int
    budget: Budget

    def fields(self) -> Iterator[Field]:
        """Every field in order; `FormatNotAllowed` where the bytes are no protobuf."""
        position = self.start
        while position < self.end:
            key, position = self._varint(position)
            kind = key & 7
            if kind == VARINT:
                value, after = self._varint(position)
            elif kind == BYTES:
                length, value = self._varint(position)
                after = value + length
            elif kind in (FIXED64, FIXED32):
                value, after = position, position + (8 if kind == FIXED64 else 4)
            else:
                raise _malformed()
            if after > self.end or key < 8:
                raise _malformed()
            self.budget.fields -= 1
            if self.budget.fields < 0:
                raise FormatNotAllowed("it has too many fields")
            yield Field(key >> 3, kind, value, after)
            position = after

    def inner(self, field: Field) -> Message:
        """The message that a field holds."""
        if field.kind != BYTES:
            raise _malformed()
        return Message(self.buffer, field.value, field.end, self.budget)

    def text(self, field: Field, most_bytes: int = 4096) -> str:
        """The text that a field holds."""
        if field.kind != BYTES or field.end - field.value > most_bytes:
            raise _malformed()
        try:
            return bytes(self.buffer[field.value : field.end]).decode()
        except UnicodeDecodeError as error:
            raise _malformed() from error

    def integers(self, field: Field) -> Iterator[int]:
        """The signed 64-bit integers of a field, packed or single."""
        if field.kind == VARINT:
            yield _signed(field.value)
            return
        if field.kind != BYTES:
            raise _malformed()
        position = field.value
        while position < field.end:
            value, position = self._varint(position)
            yield _signed(value)

    def _varint(self, position: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= self.end:
                raise _malformed()
            byte = self.buffer[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position
        raise _malformed()


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _malformed() -> FormatNotAllowed:
    return FormatNotAllowed("its bytes are damaged, or no protobuf")
