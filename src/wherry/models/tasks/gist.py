"""What two versions must have in common to agree on an input: small, and made by the worker.

Bytes of answers differ by ids, times and the last digit of every number, and the gateway does not
parse bodies. So the worker that made an answer says its gist, if it is asked to:

* a classification: the best label of each row;
* a generated text: its words and tool calls;
* anything else: whole numbers and texts as they are, and at most 64 of its fractional numbers.

Names must be equal; the fractional numbers agree if their vectors are nearer than `TOLERANCE` of
the longer one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.models.tasks.classification import Classification
from wherry.models.tasks.generation import Generation
from wherry.models.tasks.tabular import TableOutput

MAX_NUMBERS = 64
TOLERANCE = 0.05
MAX_BYTES = 1024


class Gist(msgspec.Struct, array_like=True):
    """Of one answer."""

    names: bytes
    """Digest of all that must be equal."""
    numbers: list[float] = []


decode_gist = msgspec.msgpack.Decoder(Gist).decode
encode = msgspec.msgpack.Encoder().encode


def gist_of(outputs: Sequence[Any]) -> bytes:
    """The gist of the outputs of one request."""
    names = hashlib.blake2s(digest_size=16)
    arrays: list[np.ndarray] = []
    for output in outputs:
        _add(output, names, arrays)
    flat = np.concatenate(arrays) if arrays else np.empty(0)
    names.update(str(flat.size).encode())
    step = max(1, -(-flat.size // MAX_NUMBERS))
    return encode(Gist(names.digest(), flat[::step].tolist()))


def agree(one: bytes, other: bytes) -> bool:
    """Whether two gists are of like answers; workers are not trusted to send what they should."""
    if max(len(one), len(other)) > MAX_BYTES:
        return False
    try:
        a, b = decode_gist(one), decode_gist(other)
    except msgspec.DecodeError:
        return False
    if a.names != b.names or len(a.numbers) != len(b.numbers):
        return False
    distance = math.dist(a.numbers, b.numbers)
    if math.isnan(distance):
        return False
    return distance <= TOLERANCE * max(math.hypot(*a.numbers), math.hypot(*b.numbers))


def _add(output: Any, names: Any, arrays: list[np.ndarray]) -> None:
    if isinstance(output, Classification):
        names.update(output.labels[output.best].encode() + b"\0")
    elif isinstance(output, TableOutput):
        classes = output.classes.tolist()
        known = [output.labels[each] if each < len(output.labels) else each for each in classes]
        names.update(repr(known).encode())
    elif isinstance(output, Generation):
        calls = [(call.name, call.arguments) for call in output.tool_calls]
        names.update(repr((output.text.split(), calls)).encode())
    else:
        _add_value(msgspec.structs.asdict(output), names, arrays)


def _add_value(value: Any, names: Any, arrays: list[np.ndarray]) -> None:
    if isinstance(value, dict):
        for name in sorted(value):
            if name != "usage":
                names.update(f"{name}:".encode())
                _add_value(value[name], names, arrays)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add_value(item, names, arrays)
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
        arrays.append(value.astype(np.float64).ravel())
    elif isinstance(value, np.ndarray):
        names.update(repr((value.shape, value.tolist())).encode())
    elif isinstance(value, float):
        arrays.append(np.array([value]))
    else:
        names.update(repr(value).encode())
