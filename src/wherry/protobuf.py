"""Protobuf messages on the wire: read without schemas, copies or trust in any length, and written.

Messages are small or their large parts are bytes, so this needs no protobuf runtime, whose versions
are what others quarrel about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from wherry.errors import InvalidInput

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
        """Every field in order; `InvalidInput` where the bytes are no protobuf."""
        buffer, end, budget, position = self.buffer, self.end, self.budget, self.start
        while position < end:
            # nearly always one byte, for which a call would cost more than all the rest
            key, position = buffer[position], position + 1
            if key > 0x7F:
                key, position = self._varint(position - 1)
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
            if after > end or key < 8:
                raise _malformed()
            budget.fields -= 1
            if budget.fields < 0:
                raise InvalidInput("it has too many fields")
            yield Field(key >> 3, kind, value, after)
            position = after

    def inner(self, field: Field) -> Message:
        """The message that a field holds."""
        if field.kind != BYTES:
            raise _malformed()
        return Message(self.buffer, field.value, field.end, self.budget)

    def text(self, field: Field, most_bytes: int = 4096) -> str:
        """The text that a field holds."""
        data = self.data(field)
        if len(data) > most_bytes:
            raise InvalidInput(f"a text in it has over {most_bytes} bytes")
        try:
            return bytes(data).decode()
        except UnicodeDecodeError as error:
            raise _malformed() from error

    def data(self, field: Field) -> memoryview:
        """The bytes that a field holds."""
        if field.kind != BYTES:
            raise _malformed()
        return self.buffer[field.value : field.end]

    def integer(self, field: Field) -> int:
        """The signed 64-bit integer that a field holds."""
        if field.kind != VARINT:
            raise _malformed()
        return _signed(field.value)

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
        if position >= self.end:
            raise _malformed()
        value = self.buffer[position]
        position += 1
        if value < 0x80:  # nearly always
            return value, position
        value &= 0x7F
        for shift in range(7, 70, 7):
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


def _malformed() -> InvalidInput:
    return InvalidInput("its bytes are damaged, or no protobuf")


# ------------------------------------------------------------------------------ writing

Numbers = Mapping[type[msgspec.Struct], Mapping[str, int]]
"""The fields of messages: struct → attribute → the field's number."""


def message_of(struct: msgspec.Struct, numbers: Numbers) -> bytes:
    """A struct as a message: texts, whole numbers, truths, structs, and lists of one of these.

    What has its default value in proto3 (nothing, zero, false) is left out.
    """
    parts: list[bytes] = []
    for name, number in numbers[type(struct)].items():
        value: Any = getattr(struct, name)
        if not isinstance(value, list):
            parts.append(_field_of(number, value, numbers))
        elif value and isinstance(value[0], int):
            parts.append(integers_field(number, value))
        else:
            parts += [_field_of(number, each, numbers, is_repeated=True) for each in value]
    return b"".join(parts)


def _field_of(number: int, value: Any, numbers: Numbers, *, is_repeated: bool = False) -> bytes:
    if isinstance(value, msgspec.Struct):
        return bytes_field(number, message_of(value, numbers))
    if isinstance(value, str):
        return bytes_field(number, value.encode()) if value or is_repeated else b""
    return integer_field(number, value) if value else b""


def bytes_field(number: int, value: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return bytes_head(number, len(value)) + value


def bytes_head(number: int, size: int) -> bytes:
    """What comes before the `size` bytes of such a field."""
    return varint(number << 3 | BYTES) + varint(size)


def integer_field(number: int, value: int) -> bytes:
    """A field of a whole number or a truth."""
    return varint(number << 3 | VARINT) + varint(value)


def integers_field(number: int, values: Iterable[int]) -> bytes:
    """A field of many whole numbers, packed."""
    return bytes_field(number, b"".join(map(varint, values)))


def varint(value: int) -> bytes:
    """A whole number in as few bytes as it needs; a negative one takes ten."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
