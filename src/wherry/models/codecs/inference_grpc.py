"""Open Inference Protocol v2 over gRPC: `ModelInferRequest` in, `ModelInferResponse` out.

Messages and field numbers are those of KServe's `open_inference_grpc.proto` and of Triton's
`grpc_service.proto`, which agree here. Data comes as `raw_input_contents`, one for each input, or as
typed `contents` of each, never both; FP16 and BF16 only raw. Answers are always raw: Triton's client
reads no other. As strict as the codec for HTTP: a number that does not fit its datatype, shared
memory and the classification extension are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply
from wherry.models.codecs.inference_common import (
    MAX_ID,
    MAX_NAME,
    MAX_TENSORS,
    check_bfloat,
    check_new,
    check_output,
    no_shared_memory,
    select_outputs,
    shown_datatype,
)
from wherry.models.tasks.task import Task, TaskConfig
from wherry.models.tasks.tensor import (
    MAX_RANK,
    Array,
    array_from_raw,
    count_elements,
    raw_from_array,
    type_of,
)
from wherry.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    Budget,
    Field,
    Message,
    Numbers,
    bytes_head,
    message_of,
    varint,
)

CONTENT_TYPE = "application/grpc+proto"
MAX_FIELDS = 1 << 18
"""Of a message with all that is inside; each string of `bytes_contents` is one."""
WINDOW_BYTES = 1 << 20
"""So many bytes of packed numbers are unpacked at once: it takes 25 times the memory."""
MAX_VARINT_BYTES = 10

INT, UINT = ("INT8", "INT16", "INT32"), ("UINT8", "UINT16", "UINT32")
CONTENTS: dict[str, tuple[int, int]] = {
    "BOOL": (1, VARINT),
    **dict.fromkeys(INT, (2, VARINT)),
    "INT64": (3, VARINT),
    **dict.fromkeys(UINT, (4, VARINT)),
    "UINT64": (5, VARINT),
    "FP32": (6, FIXED32),
    "FP64": (7, FIXED64),
    "BYTES": (8, BYTES),
}
"""Datatype → its field of `InferTensorContents`, and the wire type of one element."""
CONTENTS_NAMES = ("", "bool", "int", "int64", "uint", "uint64", "fp32", "fp64", "bytes")
"""By number of the field."""


class InputTensor(msgspec.Struct):
    """An input of a request, but for its raw data."""

    name: str = ""
    datatype: str = ""
    shape: list[int] = []
    contents: Message | None = None


class InferRequest(msgspec.Struct):
    """A request, taken apart."""

    id: str = ""
    inputs: list[InputTensor] = []
    outputs: list[tuple[str, frozenset[str]]] = []
    """Name of each requested output, and the names of its parameters."""
    raw: list[memoryview] = []


class Wanted(msgspec.Struct):
    """What of the answer the client wants."""

    id: str
    outputs: tuple[str, ...]
    """Empty = all."""


class OutputTensor(msgspec.Struct):
    """`ModelInferResponse.InferOutputTensor`; its data comes after all of these."""

    name: str
    datatype: str
    shape: list[int]


class InferResponse(msgspec.Struct):
    """`ModelInferResponse`, but for `raw_output_contents`."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]


NUMBERS: Numbers = {
    InferResponse: {"model_name": 1, "model_version": 2, "id": 3, "outputs": 5},
    OutputTensor: {"name": 1, "datatype": 2, "shape": 3},
}
RAW_OUTPUT_CONTENTS = 6


class InferenceGrpcCodec:
    """See the module's docstring."""

    tasks: frozenset[str] = frozenset()

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """Items of a request and what its answer should look like."""
        request = read_request(Message(body, 0, len(body), Budget(MAX_FIELDS)))
        wanted = Wanted(request.id, read_outputs(request.outputs, task, config))
        tensors = read_tensors(request.inputs, request.raw)
        check_bfloat({each.name: each.datatype for each in request.inputs}, task, config)
        return Decoded(task.from_tensors(tensors, config), wanted)

    def encode(
        self, decoded: Decoded, outputs: Sequence[Any], call: Call, task: Task, config: TaskConfig
    ) -> Reply:
        """The head of the answer, and the tensors after it."""
        wanted: Wanted = decoded.context
        heads: list[OutputTensor] = []
        tail: list[bytes] = []
        tensors = select_outputs(task.to_tensors(outputs, config), wanted.outputs)
        for name, array in tensors.items():
            datatype = shown_datatype(name, array, task, config)
            heads.append(OutputTensor(name, datatype, list(array.shape)))
            raw = raw_from_array(array)
            tail += (bytes_head(RAW_OUTPUT_CONTENTS, len(raw)), raw)
        response = InferResponse(call.deployment, call.version, wanted.id, heads)
        return Reply(b"".join([message_of(response, NUMBERS), *tail]), CONTENT_TYPE)


INFERENCE_GRPC = InferenceGrpcCodec()


# ------------------------------------------------------------------------------ the request


def read_request(message: Message) -> InferRequest:
    """A request taken apart; its tensors' data stays where it is."""
    request = InferRequest()
    for field in message.fields():
        match field.number:
            case 3:
                request.id = message.text(field, MAX_ID)
            case 5:
                request.inputs.append(read_input(message.inner(field)))
            case 6:
                request.outputs.append(read_output(message.inner(field)))
            case 7:
                request.raw.append(message.data(field))
            case _:
                pass  # the door has read the name and the version; parameters are the client's own
        if max(map(len, (request.inputs, request.outputs, request.raw))) > MAX_TENSORS:
            raise InvalidInput(f"the request has over {MAX_TENSORS} inputs or outputs")
    if not request.inputs:
        raise InvalidInput("the request has no inputs", param="inputs")
    return request


def read_input(message: Message) -> InputTensor:
    """One of `inputs`."""
    tensor = InputTensor()
    for field in message.fields():
        match field.number:
            case 1:
                tensor.name = message.text(field, MAX_NAME)
            case 2:
                tensor.datatype = message.text(field, MAX_NAME)
            case 3:
                tensor.shape += read_sizes(message, field)
            case 4:
                if read_parameter_name(message.inner(field)) == "shared_memory_region":
                    raise no_shared_memory()
            case 5:
                if tensor.contents is not None:
                    raise InvalidInput(f"input {tensor.name!r} has its contents twice")
                tensor.contents = message.inner(field)
            case _:
                pass
        if len(tensor.shape) > MAX_RANK:
            raise InvalidInput(f"input {tensor.name!r} has over {MAX_RANK} dimensions")
    return tensor


def read_sizes(message: Message, field: Field) -> list[int]:
    """A part of a shape."""
    if field.kind == BYTES and field.end - field.value > MAX_RANK * MAX_VARINT_BYTES:
        raise InvalidInput(f"an input has over {MAX_RANK} dimensions")
    return list(message.integers(field))


def read_output(message: Message) -> tuple[str, frozenset[str]]:
    """One of `outputs`: its name, and the names of its parameters."""
    name, parameters = "", set[str]()
    for field in message.fields():
        if field.number == 1:
            name = message.text(field, MAX_NAME)
        elif field.number == 2:
            parameters.add(read_parameter_name(message.inner(field)))
    return name, frozenset(parameters)


def read_parameter_name(entry: Message) -> str:
    """The key of an entry of `parameters`."""
    names = [entry.text(field, MAX_NAME) for field in entry.fields() if field.number == 1]
    return names[-1] if names else ""


def read_outputs(
    outputs: Sequence[tuple[str, frozenset[str]]], task: Task, config: TaskConfig
) -> tuple[str, ...]:
    """Names of the requested outputs; unknown ones are refused before the model runs."""
    declared = [spec.name for spec in task.signature(config).outputs] if outputs else []
    names: list[str] = []
    for name, parameters in outputs:
        check_output(
            name,
            names,
            declared,
            wants_classes="classification" in parameters,
            wants_shared_memory="shared_memory_region" in parameters,
        )
        names.append(name)
    return tuple(names)


# ------------------------------------------------------------------------------ tensors


def read_tensors(inputs: Sequence[InputTensor], raw: Sequence[memoryview]) -> dict[str, Array]:
    """Every input as an array."""
    if raw and len(raw) != len(inputs):
        raise InvalidInput(
            f"the request has {len(inputs)} inputs, but {len(raw)} raw_input_contents",
            hint="send one for each input, in their order, or none",
        )
    tensors: dict[str, Array] = {}
    for index, tensor in enumerate(inputs):
        check_new(tensor.name, tensors)
        tensors[tensor.name] = read_raw(tensor, raw[index]) if raw else read_contents(tensor)
    return tensors


def read_raw(tensor: InputTensor, raw: memoryview) -> Array:
    """An input whose data is one of `raw_input_contents`."""
    if tensor.contents is not None and tensor.contents.start < tensor.contents.end:
        raise InvalidInput(
            f"input {tensor.name!r} has two kinds of data",
            hint="send contents or raw_input_contents",
        )
    return array_from_raw(tensor.name, raw, tensor.datatype, tensor.shape)


def read_contents(tensor: InputTensor) -> Array:
    """An input whose data is in its own `contents`."""
    kind = type_of(tensor.datatype)
    if tensor.datatype not in CONTENTS:
        raise InvalidInput(f"input {tensor.name!r}: {tensor.datatype} needs raw_input_contents")
    count = count_elements(tensor.name, tensor.shape)
    if tensor.datatype == "BYTES":
        array = array_of_strings(tensor)
    elif kind.kind == "f":
        array = array_of_floats(tensor, kind)
    else:
        array = array_of_integers(tensor, kind)
    if len(array) != count:
        raise InvalidInput(
            f"input {tensor.name!r} of shape {tensor.shape} takes {count} elements, "
            f"but has {len(array)}",
            param=tensor.name,
        )
    return array.reshape(tensor.shape)


def content_fields(tensor: InputTensor) -> Iterator[tuple[Message, Field]]:
    """The fields of an input's contents, which must be those of its datatype."""
    number, _ = CONTENTS[tensor.datatype]
    contents = tensor.contents
    if contents is None:
        return
    for field in contents.fields():
        if field.number != number:
            is_known = field.number < len(CONTENTS_NAMES)
            named = CONTENTS_NAMES[field.number] if is_known else "unknown"
            raise InvalidInput(
                f"input {tensor.name!r} is {tensor.datatype}, but has {named}_contents",
                hint=f"send {CONTENTS_NAMES[number]}_contents",
            )
        yield contents, field


def array_of_strings(tensor: InputTensor) -> Array:
    """Elements of `bytes_contents`."""
    texts = [bytes(contents.data(field)) for contents, field in content_fields(tensor)]
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array


def array_of_floats(tensor: InputTensor, kind: np.dtype[Any]) -> Array:
    """Elements of `fp32_contents` or `fp64_contents`."""
    packed = read_packed(tensor)
    if len(packed) % kind.itemsize:
        raise InvalidInput(f"input {tensor.name!r} ends in the middle of a number")
    return np.frombuffer(packed, dtype=kind).copy()


def read_packed(tensor: InputTensor) -> bytes | memoryview:
    """Its numbers, one after another, as a client should send them; single ones are put together."""
    _, wire = CONTENTS[tensor.datatype]
    parts: list[bytes | memoryview] = []
    for contents, field in content_fields(tensor):
        if field.kind == VARINT == wire:
            parts.append(varint(field.value))
        elif field.kind == wire:
            parts.append(contents.buffer[field.value : field.end])
        else:
            parts.append(contents.data(field))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def array_of_integers(tensor: InputTensor, kind: np.dtype[Any]) -> Array:
    """Elements of one of the other contents; each must fit the datatype."""
    packed = np.frombuffer(read_packed(tensor), dtype=np.uint8)
    parts: list[Array] = []
    start = 0
    while start < len(packed):
        window = packed[start : start + WINDOW_BYTES]
        ends = np.flatnonzero(window < 0x80)
        if not len(ends):
            raise InvalidInput(f"input {tensor.name!r} ends in the middle of a number")
        values = unpack(tensor.name, window, ends)
        parts.append(fit(tensor, values, kind))
        start += int(ends[-1]) + 1
    return np.concatenate(parts) if parts else np.empty(0, dtype=kind)


def unpack(name: str, window: Array, ends: Array) -> Array:
    """The variable-length numbers of which the last bytes are at `ends`, as UINT64."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_VARINT_BYTES:
        raise InvalidInput(f"input {name!r} holds a number that is too long")
    values = (window[starts] & 0x7F).astype(np.uint64)
    for place in range(1, lengths.max()):
        longer = lengths > place
        more = (window[starts[longer] + place] & 0x7F).astype(np.uint64)
        values[longer] |= more << np.uint64(7 * place)
    return values


def fit(tensor: InputTensor, values: Array, kind: np.dtype[Any]) -> Array:
    """The numbers as the datatype has them."""
    if kind.kind == "i":
        values = values.view(np.int64)
    least, most = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
    if values.min() < least or values.max() > most:
        raise InvalidInput(
            f"input {tensor.name!r}: a number does not fit {tensor.datatype}", param=tensor.name
        )
    return values.astype(kind)
