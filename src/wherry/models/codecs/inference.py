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
from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.task import Task, TaskConfig, TaskInput
from wherry.models.tasks.tensor import (
    MANY_FLOATS,
    MAX_RANK,
    Array,
    are_finite,
    array_from_list,
    array_from_raw,
    count_elements,
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
Name = Annotated[str, Meta(max_length=MAX_NAME)]
Id = Annotated[str, Meta(max_length=MAX_ID)]


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

    inputs: Annotated[list[InputTensor], Meta(min_length=1, max_length=MAX_TENSORS)]
    id: Id | None = None
    outputs: Annotated[list[RequestedOutput], Meta(max_length=MAX_TENSORS)] | None = None
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
    id: Id | None = None
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
        check_bfloat({each.name: each.datatype for each in request.inputs}, task, config)
        return Decoded(task.from_tensors(tensors, config), wanted)

    def encode(
        self, decoded: Decoded, outputs: Sequence[Any], call: Call, task: Task, config: TaskConfig
    ) -> Reply:
        """JSON, followed by the tensors that were asked for as binary data."""
        wanted: Wanted = decoded.context
        if wanted is ALL_AS_JSON:
            found = json_columns(outputs, task, config)
        else:
            found = select_outputs(task.to_tensors(outputs, config), wanted.binary_by_output)
        written: list[OutputTensor] = []
        tail: list[bytes] = []
        for name, column in found.items():
            if isinstance(column, list):
                written.append(OutputTensor(name, "BYTES", (len(column),), column))
                continue
            datatype = shown_datatype(name, column, task, config)
            tensor = OutputTensor(name, datatype, column.shape)
            if wanted.binary_by_output.get(name, wanted.binary):
                tail.append(raw_from_array(column))
                tensor.parameters = {"binary_data_size": len(tail[-1])}
            else:
                tensor.data = list_of(name, column, datatype)
            written.append(tensor)
        head = encoder.encode(InferResponse(call.deployment, written, call.version, wanted.id))
        return make_reply(head, tail)

    def decode_rows(
        self, bodies: Sequence[memoryview], call: Call, task: Task, config: TaskConfig
    ) -> TaskInput | None:
        """One item with the rows of them all, if each is one row of floats, named and sized alike."""
        if HEADER_LENGTH in call.headers or "content-encoding" in call.headers:
            return None
        first = read_float_tensor(bodies[0])
        if first is None or first.shape[:1] != [1]:
            return None
        name, datatype, shape, width = first.name, first.datatype, first.shape, len(first.data)
        values = first.data
        for request in [decode_floats(body) for body in bodies[1:]]:
            (tensor,) = request.inputs
            if (
                tensor.shape != shape
                or tensor.name != name
                or tensor.datatype != datatype
                or len(tensor.data) != width
                or request.id is not None
            ):
                return None
            values += tensor.data
        array = array_of_floats(values, datatype)
        if array is None:
            return None
        tensors = {name: array.reshape(len(bodies), *shape[1:])}
        items = task.from_tensors(tensors, config)
        return items[0] if len(items) == 1 else None

    def encode_rows(
        self, output: Any, call: Call, task: Task, config: TaskConfig
    ) -> list[bytes] | None:
        """Each row's answer, as `encode` would give it; None if that takes more than is done here."""
        found = json_columns([output], task, config)
        heads: list[tuple[str, str, tuple[int, ...]]] = []
        columns: list[list[bytes]] = []
        for name, column in found.items():
            if isinstance(column, list):
                texts = {text: encode_json(text) for text in set(column)}
                heads.append((name, "BYTES", (1,)))
                columns.append([texts[text] for text in column])
                continue
            rows = rows_of_numbers(column)
            datatype = shown_datatype(name, column, task, config)
            if rows is None or datatype == "BF16":
                return None
            heads.append((name, datatype, (1, *column.shape[1:])))
            columns.append(rows)
        form = row_form(call.deployment, call.version, tuple(heads))
        return [form % row for row in zip(*columns, strict=True)]


INFERENCE = InferenceCodec()
ALL_AS_JSON = Wanted("", False, {})
decode_floats = msgspec.json.Decoder(FloatRequest).decode
request_decoder = msgspec.json.Decoder(InferRequest)
encoder = msgspec.json.Encoder()
encode_json = encoder.encode
Column = Array | list[str]
ToColumns = Callable[[Sequence[Any], TaskConfig], Mapping[str, Column] | None]
"""What a task may have beside `to_tensors`; see `wherry.models.tasks.task.Task`."""


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
    tensor = read_float_tensor(body)
    if tensor is None:
        return None
    array = array_of_floats(tensor.data, tensor.datatype)
    return {tensor.name: array.reshape(tensor.shape)} if array is not None else None


def read_float_tensor(body: memoryview) -> FloatTensor | None:
    """The same, before it is an array."""
    try:
        request = decode_floats(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    tensor = request.inputs[0]
    values = tensor.data
    if request.id is not None or not values or math.prod(tensor.shape) != len(values):
        return None  # also of no values: what shapes these may have is asked elsewhere
    return tensor


def array_of_floats(values: list[float], datatype: str) -> Array | None:
    """Flat; None if one is too large for the datatype."""
    if datatype == "FP64":
        return np.array(values, dtype=np.float64)
    limit = largest_float["FP32"]
    if not (-limit <= min(values) and max(values) <= limit):
        return None
    return np.array(values, dtype=np.float32)


def read_tensors(inputs: Sequence[InputTensor], tail: memoryview) -> dict[str, Array]:
    """Every input as an array; the binary part must be used up exactly."""
    tensors: dict[str, Array] = {}
    start = 0
    for tensor in inputs:
        check_new(tensor.name, tensors)
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
        raise no_shared_memory()
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
        check_output(
            output.name,
            wanted.binary_by_output,
            declared,
            wants_classes=bool(parameters.classification),
            wants_shared_memory=parameters.shared_memory_region is not None,
        )
        chosen = parameters.binary_data
        wanted.binary_by_output[output.name] = binary if chosen is None else chosen
    return wanted


def json_columns(outputs: Sequence[Any], task: Task, config: TaskConfig) -> Mapping[str, Column]:
    """All outputs, in the form of which the task can make JSON most quickly."""
    to_columns: ToColumns | None = getattr(task, "to_columns", None)
    found = to_columns(outputs, config) if to_columns is not None else None
    return task.to_tensors(outputs, config) if found is None else found


@lru_cache(maxsize=256)
def row_form(
    model: str, version: str, heads: tuple[tuple[str, str, tuple[int, ...]], ...]
) -> bytes:
    """The answer of one row, with `%b` where each output's data belongs.

    Args:
        model: its name, as the client wrote it.
        version: its number.
        heads: name, datatype and shape of each output.
    """
    bare = [encode_json(OutputTensor(*head)).replace(b"%", b"%%") for head in heads]
    outputs = b",".join([each[:-1] + b',"data":[%b]}' for each in bare])
    start, end = b'{"model_name":%b,"outputs":[', b'],"model_version":%b}'
    return (
        start % encode_json(model).replace(b"%", b"%%")
        + outputs
        + end % encode_json(version).replace(b"%", b"%%")
    )


def rows_of_numbers(array: Array) -> list[bytes] | None:
    """Each row's numbers as JSON has them after `list_of`; None if that does more, or refuses them."""
    kind, rows = array.dtype.kind, len(array)
    if kind not in "iuf" or (kind == "f" and array.size >= MANY_FLOATS * rows):
        return None
    found: list[list[Any]] = array.reshape(rows, -1).tolist()
    if kind == "f" and not math.isfinite(sum(map(sum, found))):
        return None
    return encode_json(found)[2:-2].split(b"],[")  # numbers hold no brackets


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
