"""Open Inference Protocol v2 over REST, with the binary tensor extension; serves every task.

Stricter than Triton where leniency hides mistakes: floats for an integer datatype, numbers that do
not fit, NaN, shared memory and the classification extension are refused. BF16 travels only as
binary data and only to an input declared BF16. NaN and infinity in an output need binary data:
JSON has no such numbers, so such an answer is refused with that hint. FP16 may travel as JSON too.

The parts of a body that matter are decoded straight into typed structs: there is no generic
dictionary of a client's making. Of a key that comes twice in one object the last counts.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from wherry.errors import InvalidInput, TooLarge
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.task import ListTensor, Task, TaskConfig
from wherry.models.tasks.tensor import (
    MANY_FLOATS,
    MAX_RANK,
    Array,
    are_finite,
    array_from_list,
    array_from_raw,
    count_elements,
    datatype_of,
    json_type_by_kind,
    largest_float,
    plain_from_array,
    raw_from_array,
    type_of,
)

HEADER_LENGTH = "inference-header-content-length"
MAX_EXPANSION = 100
"""Most bytes out of one compressed byte, once a body is over `FREE_EXPANSION_BYTES`."""
FREE_EXPANSION_BYTES = 1 << 20

Size = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(max_length=256)]


class InputParameters(msgspec.Struct):
    """Of an input; others are ignored, as the protocol asks."""

    binary_data_size: Size | None = None
    shared_memory_region: str | None = None


class OutputParameters(msgspec.Struct):
    """Of a requested output."""

    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: str | None = None


class RequestParameters(msgspec.Struct):
    """Of the whole request."""

    binary_data_output: bool = False


class InputTensor(msgspec.Struct):
    """A tensor of a request; its data is decoded once its datatype is known."""

    name: Name
    datatype: Name
    shape: Annotated[list[Size], Meta(max_length=MAX_RANK)]
    data: msgspec.Raw | UnsetType = UNSET
    parameters: InputParameters | None = None


class RequestedOutput(msgspec.Struct):
    """An output that the client asks for."""

    name: Name
    parameters: OutputParameters | None = None


class InferRequest(msgspec.Struct):
    """The JSON part of a request."""

    inputs: Annotated[list[InputTensor], Meta(min_length=1, max_length=1024)]
    id: Annotated[str, Meta(max_length=4096)] | None = None
    outputs: Annotated[list[RequestedOutput], Meta(max_length=1024)] | None = None
    parameters: RequestParameters | None = None


class FloatTensor(msgspec.Struct):
    """The commonest tensor by far: a flat list of floats."""

    name: Name
    datatype: Literal["FP32", "FP64"]
    shape: Annotated[list[Size], Meta(max_length=MAX_RANK)]
    data: list[float]
    parameters: None = None


class FloatRequest(msgspec.Struct):
    """The commonest request: one such tensor, and nothing else that matters."""

    inputs: Annotated[list[FloatTensor], Meta(min_length=1, max_length=1)]
    id: Annotated[str, Meta(max_length=4096)] | None = None
    outputs: None = None
    parameters: None = None


class OutputTensor(msgspec.Struct, omit_defaults=True):
    """A tensor of an answer."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | UnsetType = UNSET
    parameters: dict[str, int] | UnsetType = UNSET


class InferResponse(msgspec.Struct, omit_defaults=True):
    """The JSON part of an answer; keys without a value are left out, never null."""

    model_name: str
    outputs: list[OutputTensor]
    model_version: str = ""
    id: str = ""


class Wanted(msgspec.Struct):
    """What of the answer the client wants, and how."""

    id: str
    binary: bool
    """Form of outputs that say nothing themselves."""
    binary_by_output: dict[str, bool]
    """Empty = all outputs."""


class InferenceCodec:
    """See the module's docstring."""

    tasks: frozenset[str] = frozenset()

    def find_binary(self, call: Call) -> int:
        """At which byte of the body the binary part begins; 0 if it has none that can be told."""
        if "content-encoding" in call.headers:
            return 0
        return read_length(call.headers.get(HEADER_LENGTH, "")) or 0

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """Items of a request and what its answer should look like."""
        headers = call.headers
        if HEADER_LENGTH not in headers and "content-encoding" not in headers:
            tensors = read_floats(body)
            if tensors is not None:
                items = task.from_tensors(tensors, config)
                return Decoded(items, ALL_AS_JSON)
        body = decompress(body, call)
        head, tail = split_body(body, headers.get(HEADER_LENGTH))
        request: InferRequest = decode_json(head, request_decoder)
        wanted = read_wanted(request, task, config)
        tensors = read_tensors(request.inputs, tail)
        check_bfloat(request.inputs, task, config)
        return Decoded(task.from_tensors(tensors, config), wanted)

    def encode(
        self, decoded: Decoded, outputs: Sequence[Any], call: Call, task: Task, config: TaskConfig
    ) -> Reply:
        """JSON, followed by the tensors that were asked for as binary data."""
        wanted: Wanted = decoded.context
        if wanted is ALL_AS_JSON:
            to_lists: ToLists | None = getattr(task, "to_lists", None)
            lists = to_lists(outputs, config) if to_lists is not None else None
            if lists is not None:
                written = [OutputTensor(*each) for each in lists]
                return Reply(encode_json(InferResponse(call.deployment, written, call.version)))
        tensors = select_outputs(task.to_tensors(outputs, config), wanted)
        written: list[OutputTensor] = []
        tail: list[bytes] = []
        for name, array in tensors.items():
            datatype = datatype_of(array)
            if datatype == "UINT16" and is_declared_bfloat(name, task, config):
                datatype = "BF16"
            tensor = OutputTensor(name, datatype, array.shape)
            if wanted.binary_by_output.get(name, wanted.binary):
                tail.append(raw_from_array(array))
                tensor.parameters = {"binary_data_size": len(tail[-1])}
            else:
                tensor.data = list_of(name, array, datatype)
            written.append(tensor)
        head = encoder.encode(InferResponse(call.deployment, written, call.version, wanted.id))
        return make_reply(head, tail)


INFERENCE = InferenceCodec()
ALL_AS_JSON = Wanted("", False, {})
decode_floats = msgspec.json.Decoder(FloatRequest).decode
request_decoder = msgspec.json.Decoder(InferRequest)
encoder = msgspec.json.Encoder()
encode_json = encoder.encode
ToLists = Callable[[Sequence[Any], TaskConfig], Sequence[ListTensor] | None]
"""What a task may have beside `to_tensors`: the same at once as JSON wants it."""


# ------------------------------------------------------------------------------ body


def decompress(body: memoryview, call: Call) -> memoryview:
    """The body without its Content-Encoding, never larger than the caps."""
    named = call.headers.get("content-encoding")
    if named is None:
        return body
    encoding = named.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise InvalidInput(f"unknown content encoding {encoding[:40]!r}", hint="gzip or deflate")
    limit = min(call.max_body_bytes, max(FREE_EXPANSION_BYTES, MAX_EXPANSION * len(body)))
    inflater = zlib.decompressobj(zlib.MAX_WBITS | (0 if encoding == "deflate" else 16))
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not {encoding}: {error}") from error
    if len(plain) > limit:
        raise TooLarge(f"the body is over {limit} bytes once it is decompressed")
    if not inflater.eof or inflater.unused_data:
        raise InvalidInput(f"the body does not end where its {encoding} data ends")
    return memoryview(plain)


def split_body(body: memoryview, header_length: str | None) -> tuple[memoryview, memoryview]:
    """The JSON part and the binary part."""
    if header_length is None:
        return body, body[:0]
    length = read_length(header_length)
    if length is None:
        raise InvalidInput(f"{HEADER_LENGTH} is not a number: {header_length[:40]!r}")
    if length > len(body):
        raise InvalidInput(f"{HEADER_LENGTH} is {length}, but the body has {len(body)} bytes")
    return body[:length], body[length:]


def read_length(text: str) -> int | None:
    """The number in a header; None if it is none, or longer than that of any body."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None


def make_reply(head: bytes, tail: Sequence[bytes]) -> Reply:
    """The answer in the form that its parts need."""
    if not tail:
        return Reply(head)
    return Reply(
        b"".join([head, *tail]), "application/octet-stream", {HEADER_LENGTH: str(len(head))}
    )


# ------------------------------------------------------------------------------ inputs


def read_floats(body: memoryview) -> dict[str, Array] | None:
    """The one tensor of the commonest form of a request; None if this is another, or faulty."""
    try:
        request = decode_floats(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    tensor = request.inputs[0]
    values, shape = tensor.data, tensor.shape
    if request.id is not None or not values or math.prod(shape) != len(values):
        return None  # also of no values: what shapes these may have is asked elsewhere
    if tensor.datatype == "FP64":
        array = np.array(values, dtype=np.float64)
    else:
        limit = largest_float["FP32"]
        if not (-limit <= min(values) and max(values) <= limit):
            return None
        array = np.array(values, dtype=np.float32)
    return {tensor.name: array.reshape(shape)}


def read_tensors(inputs: Sequence[InputTensor], tail: memoryview) -> dict[str, Array]:
    """Every input as an array; the binary part must be used up exactly."""
    tensors: dict[str, Array] = {}
    start = 0
    for tensor in inputs:
        if tensor.name in tensors:
            raise InvalidInput(f"input {tensor.name!r} comes twice")
        size = binary_size(tensor)
        if size is None:
            tensors[tensor.name] = read_list(tensor)
            continue
        if start + size > len(tail):
            raise InvalidInput(f"the body ends before the data of input {tensor.name!r}")
        raw = tail[start : start + size]
        tensors[tensor.name] = array_from_raw(tensor.name, raw, tensor.datatype, tensor.shape)
        start += size
    if start != len(tail):
        raise InvalidInput(f"the body has {len(tail) - start} bytes that belong to no input")
    return tensors


def binary_size(tensor: InputTensor) -> int | None:
    """Bytes of the input in the binary part; None if its data is in the JSON."""
    parameters = tensor.parameters
    if parameters is None:
        if tensor.data is UNSET:
            raise InvalidInput(f"input {tensor.name!r} has no data")
        return None
    if parameters.shared_memory_region is not None:
        raise InvalidInput("shared memory is not served", hint="send the data in the request")
    size = parameters.binary_data_size
    if (size is None) == (tensor.data is UNSET):
        number = "no" if size is None else "two kinds of"
        raise InvalidInput(f"input {tensor.name!r} has {number} data")
    return size


def read_list(tensor: InputTensor) -> Array:
    """An input whose data is a JSON list, flat or nested as its shape says."""
    if tensor.datatype == "BF16":
        raise InvalidInput(f"input {tensor.name!r}: BF16 needs binary data")
    data: Any = tensor.data
    count = count_elements(tensor.name, tensor.shape)
    text = memoryview(data)
    if count > len(text):  # each element takes a byte or more: no need to read on
        raise InvalidInput(f"input {tensor.name!r} has less data than its shape says")
    kind = type_of(tensor.datatype).kind
    depth = len(tensor.shape) if is_nested(text) else 1
    values = decode_json(text, list_decoder(json_type_by_kind[kind], depth))
    return array_from_list(tensor.name, values, tensor.datatype, tensor.shape)


def is_nested(text: memoryview) -> bool:
    """Whether a JSON list begins with another list."""
    if len(text) > 1 and text[1] in b"0123456789-":
        return False
    start = bytes(text[:64]).lstrip(b" \t\r\n")[1:].lstrip(b" \t\r\n")
    return start.startswith(b"[")


@lru_cache(maxsize=256)  # four element types, 32 depths
def list_decoder(element: type, depth: int) -> msgspec.json.Decoder[Any]:
    """A decoder for lists of lists, `depth` deep."""
    wanted: Any = element
    for _ in range(max(depth, 1)):
        wanted = list[wanted]
    return msgspec.json.Decoder(wanted)


def check_bfloat(inputs: Sequence[InputTensor], task: Task, config: TaskConfig) -> None:
    """BF16 only for inputs declared BF16: as an array it cannot be told from UINT16."""
    for tensor in inputs:
        if tensor.datatype == "BF16":
            declared = {spec.name: spec.datatype for spec in task.signature(config).inputs}
            wanted = declared.get(tensor.name, "BF16")
            if wanted != "BF16":
                raise InvalidInput(f"input {tensor.name!r} is BF16, the model takes {wanted}")


# ------------------------------------------------------------------------------ outputs


def read_wanted(request: InferRequest, task: Task, config: TaskConfig) -> Wanted:
    """Which outputs to send and how; unknown ones are refused before the model runs."""
    binary = request.parameters is not None and request.parameters.binary_data_output
    wanted = Wanted(request.id or "", binary, {})
    if not request.outputs:
        return wanted
    declared = [spec.name for spec in task.signature(config).outputs]
    for output in request.outputs:
        parameters = output.parameters or OutputParameters()
        if output.name in wanted.binary_by_output:
            raise InvalidInput(f"output {output.name!r} is requested twice")
        if declared and output.name not in declared:
            raise unknown_output(output.name, declared)
        if parameters.classification:
            raise InvalidInput("the classification extension is not served", hint="leave it out")
        if parameters.shared_memory_region is not None:
            raise InvalidInput("shared memory is not served", hint="read the response's body")
        chosen = parameters.binary_data
        wanted.binary_by_output[output.name] = binary if chosen is None else chosen
    return wanted


def select_outputs(tensors: Mapping[str, Array], wanted: Wanted) -> Mapping[str, Array]:
    """The requested tensors, in the order requested."""
    if not wanted.binary_by_output:
        return tensors
    for name in wanted.binary_by_output:
        if name not in tensors:
            raise unknown_output(name, tensors)
    return {name: tensors[name] for name in wanted.binary_by_output}


def unknown_output(name: str, known: Sequence[str] | Mapping[str, Any]) -> InvalidInput:
    """The error for an output that the model does not have."""
    return InvalidInput(f"unknown output {name!r}", hint="outputs: " + ", ".join(map(repr, known)))


def is_declared_bfloat(name: str, task: Task, config: TaskConfig) -> bool:
    """Whether an output that looks like UINT16 is meant as BF16."""
    return any(
        spec.name == name and spec.datatype == "BF16" for spec in task.signature(config).outputs
    )


def list_of(name: str, array: Array, datatype: str) -> list[Any]:
    """Data of an output as a flat JSON list."""
    kind = array.dtype.kind
    if kind == "f" and array.size < MANY_FLOATS:
        values: list[Any] = array.ravel().tolist()
        if all(map(math.isfinite, values)):
            return values
    if datatype == "BF16" or (kind == "f" and not are_finite(array)):
        held = "BF16" if datatype == "BF16" else "NaN or infinity"
        raise InvalidInput(
            f"output {name!r} holds {held}, which JSON cannot carry",
            hint='ask for it with "parameters": {"binary_data": true}',
        )
    flat = array if array.ndim == 1 else array.ravel()
    if datatype == "FP32" and array.size >= MANY_FLOATS:
        return shortest_floats(flat)
    return plain_from_array(name, flat)
