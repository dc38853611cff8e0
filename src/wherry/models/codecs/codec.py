"""Bytes of a protocol ↔ structs of a task: the contract every codec fulfils.

Codecs are pure (no clock, no network, no state between calls) and run in the worker, where a
parser bomb hits only the model it was sent to. They raise the classes of `wherry.errors`; the
door turns those into its protocol's shape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from wherry.errors import InvalidInput
from wherry.frames import Call, Usage
from wherry.models.tasks.task import Task, TaskConfig, TaskInput

__all__ = [
    "Call",
    "Codec",
    "Decoded",
    "Reply",
    "RowsCodec",
    "StreamEncoder",
    "StreamingCodec",
    "Usage",
    "decode_json",
    "param_of",
]


class Decoded(msgspec.Struct):
    """A request in task types."""

    items: Sequence[TaskInput]
    context: Any = None
    """What `encode` needs again; opaque to all but the codec."""


class Reply(msgspec.Struct):
    """A finished answer."""

    body: bytes | bytearray | memoryview
    content_type: str = "application/json"
    headers: dict[str, str] = {}


class StreamEncoder(Protocol):
    """Turns outputs of one streaming request into finished events."""

    def event(self, index: int, output: Any) -> bytes:
        """Bytes for the next output of item `index`; may be empty."""
        ...

    def end(self, usage: Usage) -> bytes:
        """Bytes that close the stream after every item has ended."""
        ...


class Codec(Protocol):
    """One request form of one protocol.

    One whose bodies may end in numbers as they are in memory has `find_binary(call)` beside these:
    at which byte they begin, or 0. One that can do many small requests at once is a `RowsCodec`.
    """

    tasks: frozenset[str]
    """Tasks it can speak; empty = every task (through tensors or plain JSON)."""

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """Parse; raises `InvalidInput` (with `param` where the protocol has one)."""
        ...

    def encode(
        self, decoded: Decoded, outputs: Sequence[Any], call: Call, task: Task, config: TaskConfig
    ) -> Reply:
        """The answer, `outputs[i]` belonging to `decoded.items[i]`."""
        ...


class StreamingCodec(Codec, Protocol):
    """A codec whose answers may come as events."""

    def stream(self, decoded: Decoded, call: Call) -> StreamEncoder:
        """An encoder for one request; `call.stream` is true."""
        ...


@runtime_checkable
class RowsCodec(Protocol):
    """What a codec may have beside its other methods: requests of one row each, as one table."""

    def decode_rows(
        self, bodies: Sequence[memoryview], call: Call, task: Task, config: TaskConfig
    ) -> TaskInput | None:
        """One item with a row for each body, in order; None (or an error) if they are not so alike."""
        ...

    def encode_rows(
        self, output: Any, call: Call, task: Task, config: TaskConfig
    ) -> Sequence[bytes] | None:
        """What `encode` would give for each row of the item's output, as plain JSON; None if more."""
        ...


def decode_json(body: memoryview, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Decode with a typed decoder; any fault becomes `InvalidInput`."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidInput(str(error), param=param_of(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from error


def param_of(message: str) -> str | None:
    """The field a msgspec message names (`… - at `$.messages[0].role``), else None."""
    _, found, path = message.rpartition("`$.")
    if not found and (missing := MISSING.fullmatch(message)):
        return missing[1]
    return path.rstrip("`") or None if found and path.endswith("`") else None


MISSING = re.compile(r"Object missing required field `(\w+)`")
