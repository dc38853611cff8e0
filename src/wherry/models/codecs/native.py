"""A task's own structs as msgpack: what passes between our own parts, whatever the task.

Batches, pipelines and others that hold task types, rather than a client's body, speak to a worker
by this codec alone. The request is a list of the task's inputs, the answer the list of its outputs.
A stream is a row of framed messages (`wherry.models.tasks.packing.frame`), each an item's index and
its next output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, Usage
from wherry.models.tasks.packing import FrameReader, frame, pack, unpack
from wherry.models.tasks.task import Task, TaskConfig

MEDIA_TYPE = "application/msgpack"
MAX_ITEMS = 1024
"""Most inputs of one request."""


class Native:
    """The codec; its one instance is `NATIVE`."""

    tasks: frozenset[str] = frozenset()

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """The packed inputs; what a protocol's codec would have checked is the sender's to check."""
        kind = Annotated[
            list[type_of(task, "input_type")], Meta(min_length=1, max_length=MAX_ITEMS)
        ]
        return Decoded(unpack(body, kind))

    def encode(
        self, decoded: Decoded, outputs: Sequence[Any], call: Call, task: Task, config: TaskConfig
    ) -> Reply:
        """The packed outputs."""
        return Reply(pack(list(outputs)), MEDIA_TYPE)

    def stream(self, decoded: Decoded, call: Call) -> NativeStream:
        """An encoder of framed messages."""
        return NativeStream()


NATIVE = Native()


class NativeStream:
    """Messages of one request."""

    def event(self, index: int, output: Any) -> bytes:
        """The next output of item `index`."""
        return frame(pack((index, output)))

    def end(self, usage: Usage) -> bytes:
        """Nothing: the frame that ends the stream tells the usage."""
        return b""


# ------------------------------------------------------------------------------ for who calls


def encode_items(items: Sequence[Any]) -> bytes:
    """The body of a request."""
    return pack(list(items))


def decode_outputs(body: bytes | memoryview, task: Task) -> list[Any]:
    """The outputs of an answer; workers are not trusted, so it may raise `InvalidInput`."""
    return unpack(body, list[type_of(task, "output_type")])


class NativeReader:
    """Reads a streamed answer of a task, however it was cut."""

    def __init__(self, task: Task) -> None:
        self._kind = tuple[int, type_of(task, "delta_type")]
        self._reader = FrameReader()

    def feed(self, piece: bytes | memoryview) -> list[tuple[int, Any]]:
        """Items' indexes and outputs that are whole now."""
        return [unpack(message, self._kind) for message in self._reader.feed(piece)]


def type_of(task: Task, name: str) -> Any:
    """A type that a task says; `InvalidInput` for a plugin's task that does not say it."""
    found = getattr(task, name, None)
    if found is None:
        raise InvalidInput(
            f"the task {task.name!r} has no {name}, so it cannot be called natively",
            hint="see wherry.models.tasks.task: input_type, output_type, and delta_type if it streams",
        )
    return found
