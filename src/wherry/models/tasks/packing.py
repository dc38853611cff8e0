"""Structs of tasks ↔ msgpack: how they cross between processes, and are kept.

Everything a task's structs hold is plain msgpack but arrays, which are an extension: type, shape
and the bytes as they are in memory. Nothing is ever pickled, and whoever unpacks says which type
there must be, so what a stranger packed can only be such a value or an error.
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput, TooLarge
from wherry.models.tasks.task import type_by_datatype
from wherry.models.tasks.tensor import MAX_RANK

ARRAY_CODE = 1
"""Of msgpack's extension types, the one that holds an array."""
MAX_MESSAGE_BYTES = 1 << 30
HEAD = struct.Struct(">BI")
BIN_32 = 0xC6
"""Msgpack's mark of a byte string whose length follows in 32 bits."""

ELEMENTS = frozenset({bytes, str, bool, int, float, type(None)})
"""What an array of objects may hold."""
Shape = Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=MAX_RANK)]


class PackedNumbers(msgspec.Struct, array_like=True, tag="n"):
    """An array of numbers: little endian, rows in C order."""

    code: str
    shape: Shape
    raw: memoryview


class PackedObjects(msgspec.Struct, array_like=True, tag="o"):
    """An array of byte strings, texts or mixed values."""

    shape: Shape
    elements: list[Any]


def pack(value: Any) -> bytes:
    """A struct of a task, or a list or tuple of such; `TypeError` for what no task may hold."""
    return _encode(value)


def unpack(data: bytes | bytearray | memoryview, kind: Any) -> Any:
    """What `pack` made of a value of the type `kind`; `InvalidInput` for anything else."""
    try:
        return _decoder_of(kind).decode(data)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the packed value cannot be read: {error}") from error


@lru_cache(maxsize=256)
def _decoder_of(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind, ext_hook=_unpack_array, dec_hook=_expect)


# ------------------------------------------------------------------------------ messages


def frame(data: bytes) -> bytes:
    """A message of a stream, which says itself where it ends: a byte string of msgpack."""
    return HEAD.pack(BIN_32, len(data)) + data


class FrameReader:
    """Puts messages together again, however the stream was cut."""

    def __init__(self, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pending = bytearray()

    def feed(self, piece: bytes | bytearray | memoryview) -> list[bytes]:
        """The messages that are whole now, in order.

        Raises:
            InvalidInput: these are no messages.
            TooLarge: a message has more than `max_bytes`.
        """
        self._pending += piece
        messages: list[bytes] = []
        position = 0
        while len(self._pending) - position >= HEAD.size:
            mark, size = HEAD.unpack_from(self._pending, position)
            if mark != BIN_32:
                raise InvalidInput("the stream does not consist of framed messages")
            if size > self._max_bytes:
                raise TooLarge(f"a message has {size} bytes, at most {self._max_bytes} are taken")
            end = position + HEAD.size + size
            if end > len(self._pending):
                break
            messages.append(bytes(self._pending[position + HEAD.size : end]))
            position = end
        del self._pending[:position]
        return messages


# ------------------------------------------------------------------------------ arrays

_types = {code: np.dtype(code) for code in type_by_datatype.values()}
_code_of = {kind: code for code, kind in _types.items()}


def _pack_array(value: Any) -> msgspec.msgpack.Ext:
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"no task may hold a {type(value).__name__}")
    if value.dtype == object:
        _check_elements(value.ravel().tolist())
        packed: Any = PackedObjects(value.shape, value.ravel().tolist())
    else:
        code = _code_of.get(value.dtype.newbyteorder("<"))
        if code is None:
            raise TypeError(f"no task may hold an array of {value.dtype}")
        raw = np.ascontiguousarray(value, dtype=_types[code]).reshape(-1).view(np.uint8)
        packed = PackedNumbers(code, value.shape, raw.data)
    return msgspec.msgpack.Ext(ARRAY_CODE, _encode(packed))


_encode = msgspec.msgpack.Encoder(enc_hook=_pack_array).encode
_array_decoder = msgspec.msgpack.Decoder(PackedNumbers | PackedObjects)


def _unpack_array(code: int, data: memoryview) -> np.ndarray:
    if code != ARRAY_CODE:
        raise InvalidInput(f"extension {code} is not known")
    try:
        packed = _array_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the packed array cannot be read: {error}") from error
    if isinstance(packed, PackedObjects):
        _check_elements(packed.elements)
        _check_count(packed.shape, len(packed.elements))
        array = np.empty(len(packed.elements), dtype=object)
        array[:] = packed.elements
        return array.reshape(packed.shape)
    kind = _types.get(packed.code)
    if kind is None:
        raise InvalidInput(f"an array has the unknown type {packed.code[:20]!r}")
    if packed.raw.nbytes % kind.itemsize:
        raise InvalidInput(f"{packed.raw.nbytes} bytes are no whole numbers of {packed.code!r}")
    _check_count(packed.shape, packed.raw.nbytes // kind.itemsize)
    numbers = np.frombuffer(packed.raw, np.uint8 if kind.kind == "b" else kind)
    # any byte but 0 and 1 would be neither true nor false
    numbers = numbers != 0 if kind.kind == "b" else np.require(numbers, requirements="A")
    return numbers.reshape(packed.shape)


def _check_elements(elements: list[Any]) -> None:
    foreign = set(map(type, elements)) - ELEMENTS
    if foreign:
        raise TypeError(f"no task may hold an array of {foreign.pop().__name__}")


def _check_count(shape: tuple[int, ...], count: int) -> None:
    if math.prod(shape) != count:
        raise InvalidInput(f"{count} elements do not fill an array of shape {list(shape)}")


def _expect(kind: Any, value: Any) -> Any:
    """Fields whose type msgspec does not know are arrays, and come from `_unpack_array`."""
    if not isinstance(value, np.ndarray):
        raise ValueError(f"expected an array, got {type(value).__name__}")
    return value
