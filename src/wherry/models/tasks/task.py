"""What goes in and comes out: the contract every task fulfils, and its common types.

A protocol (codec) never knows a framework and a framework (runtime) never knows a protocol:
both know the structs of a task. A task also says how its structs look as tensors (for the Open
Inference Protocol) and as one plain JSON object (for `/predict`), so those two codecs serve every
task without knowing any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec

from wherry.frames import Usage

if TYPE_CHECKING:
    import numpy as np

type_by_datatype: dict[str, str] = {
    "BOOL": "?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""Open Inference datatype → numpy type (little endian). BYTES is an object array of `bytes`;
BF16 travels as raw UINT16 bits."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name, Open Inference datatype and shape of a tensor; -1 is a free dimension.

    `datatype` may be `""` and `shape` empty in a bundle that accepts anything (see `echo`).
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tensors of a model, as `GET /v2/models/M` shows them."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class TaskConfig(msgspec.Struct, frozen=True):
    """What a bundle says about its task: all that a task or codec may know of a model."""

    labels: tuple[str, ...] = ()
    signature: Signature = Signature()
    options: Mapping[str, Any] = {}
    """The bundle's `[options]`, e.g. `max_tokens`, `image_size`."""


class TaskOutput(msgspec.Struct, kw_only=True):
    """Base of every task's output struct: each says what it cost."""

    usage: Usage = msgspec.field(default_factory=Usage)


TaskInput = Any
"""A struct of the task's module (`TextInput`, `Rows`, `ChatInput` …)."""

Tensors = Mapping[str, Any]
"""Name → array; BYTES tensors are object arrays of `bytes`."""


class Task(Protocol):
    """One modality. Implementations are modules' singletons, listed in `catalog.py`.

    A task whose input is a file says which kind in `media` (`image`, `audio`): its plain form then
    takes the file's bytes under that key, and clients may send the file as the body.

    Its types are what the native codec packs, so they hold only what msgpack has, arrays of the
    datatypes above or of objects (bytes, texts, numbers), and structs, lists and dicts of these. A
    task whose answers stream also has `join(outputs)`, and `delta_type`: that of each piece.

    A task whose answers hold texts may have `to_columns` beside `to_tensors`: the same, but for BYTES
    tensors of one dimension, which are lists of `str` as JSON wants them; None if that cannot be.

    A task whose answers are files that must be made first (a PNG) has `is_slow_to_encode` true: the
    worker then encodes them in another thread.
    """

    name: str
    """Hugging Face's name, e.g. `text-classification`."""

    input_type: Any
    """The struct of one item (or a union of tagged structs)."""

    output_type: Any
    """The struct of one answer."""

    def signature(self, config: TaskConfig) -> Signature:
        """The tensors a model of this task takes and gives; the bundle's own where it has them."""
        ...

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> Sequence[TaskInput]:
        """Items of a request; raises `InvalidInput` when tensors do not fit the signature."""
        ...

    def to_tensors(self, outputs: Sequence[Any], config: TaskConfig) -> dict[str, np.ndarray]:
        """All outputs of a request, rows in order."""
        ...

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> TaskInput:
        """One item from the simplest JSON object anyone would send."""
        ...

    def to_plain(self, output: Any, config: TaskConfig) -> dict[str, Any]:
        """One output as the simplest JSON object anyone would read."""
        ...


def media_of(task: Task) -> str:
    """The kind of file that a task takes: `image`, `audio`, or "" for none."""
    return getattr(task, "media", "")


def held_bytes(value: object) -> int:
    """Bytes of the arrays, files and texts in a value, however deep in structs, lists and tuples."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.astuple(value)
    if isinstance(value, list | tuple):
        return sum(map(held_bytes, cast(Sequence[object], value)))
    return getattr(value, "nbytes", 0)


def is_slow_to_encode(task: Task) -> bool:
    """Whether answers of the task are made in a thread of their own."""
    return getattr(task, "is_slow_to_encode", False)
