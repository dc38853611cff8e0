"""The gRPC codec against the real protobuf messages of Triton's client."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry import protobuf
from wherry.errors import InvalidInput, WherryError
from wherry.models.codecs.codec import Call, Decoded
from wherry.models.codecs.inference_grpc import INFERENCE_GRPC
from wherry.models.tasks.tabular import TABULAR_CLASSIFICATION, TableOutput
from wherry.models.tasks.task import Signature, TaskConfig, TensorSpec, type_by_datatype
from wherry.models.tasks.tensor import TENSOR, TensorOutput

pytest.importorskip("grpc", reason="pip install 'tritonclient[grpc]'")
from tritonclient.grpc import InferResult, service_pb2

OPEN = TaskConfig(signature=Signature((TensorSpec("X", "", ()),), (TensorSpec("X", "", ()),)))
BFLOAT = TaskConfig(
    signature=Signature((TensorSpec("X", "BF16", (-1,)),), (TensorSpec("X", "BF16", (-1,)),))
)
IRIS = TaskConfig(
    labels=("setosa", "versicolor", "virginica"),
    signature=Signature(
        (TensorSpec("input", "FP32", (-1, 4)),),
        (TensorSpec("label", "BYTES", (-1,)), TensorSpec("probabilities", "FP32", (-1, 3))),
    ),
)
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
CALL = Call("inference.grpc", "", "iris", "3")


def decode(message: Any, config: TaskConfig = OPEN, task: Any = TENSOR) -> Decoded:
    body = message if isinstance(message, bytes) else message.SerializeToString()
    return INFERENCE_GRPC.decode(memoryview(body), CALL, task, config)


def found_in(message: Any, config: TaskConfig = OPEN) -> np.ndarray:
    return decode(message, config).items[0].tensors["X"]


def echo(decoded: Decoded, config: TaskConfig = OPEN) -> Any:
    outputs = [TensorOutput(tensors=decoded.items[0].tensors)]
    reply = INFERENCE_GRPC.encode(decoded, outputs, CALL, TENSOR, config)
    return service_pb2.ModelInferResponse.FromString(bytes(reply.body))


def request(datatype: str, shape: Any, **fields: Any) -> Any:
    """A request with one input, `X`, and no data yet."""
    made = service_pb2.ModelInferRequest(model_name="iris", **fields)
    made.inputs.add(name="X", datatype=datatype, shape=shape)
    return made


def typed(datatype: str, values: list[Any], shape: Any = None) -> Any:
    made = request(datatype, [len(values)] if shape is None else shape)
    getattr(made.inputs[0].contents, CONTENTS[datatype]).extend(values)
    return made


def raw(datatype: str, data: bytes, shape: Any, **fields: Any) -> Any:
    made = request(datatype, shape, **fields)
    made.raw_input_contents.append(data)
    return made


def one_input(datatype: bytes, size: int, contents: bytes) -> bytes:
    """A request with the input `X` of one dimension, whose contents no client would write."""
    head = protobuf.bytes_field(1, b"X") + protobuf.bytes_field(2, datatype)
    shape = protobuf.integers_field(3, [size])
    return protobuf.bytes_field(5, head + shape + protobuf.bytes_field(5, contents))


def values_of(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.binary(max_size=20)
    kind = np.dtype(type_by_datatype[datatype])
    if kind.kind == "f":
        return st.floats(width=kind.itemsize * 8, allow_nan=False)
    return st.integers(int(np.iinfo(kind).min), int(np.iinfo(kind).max))


# ------------------------------------------------------------------------------ answers


def test_an_answer_names_model_version_and_id():
    answer = echo(decode(raw("INT64", np.array([1, 2]).tobytes(), [2], id="req-42")))
    assert (answer.model_name, answer.model_version, answer.id) == ("iris", "3", "req-42")
    (tensor,) = answer.outputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("X", "INT64", [2])
    assert InferResult(answer).as_numpy("X").tolist() == [1, 2]


def test_classes_answer_as_declared():
    message = service_pb2.ModelInferRequest(model_name="iris")
    message.inputs.add(name="input", datatype="FP32", shape=[1, 4])
    message.inputs[0].contents.fp32_contents.extend([5.1, 3.5, 1.4, 0.2])
    message.outputs.add(name="probabilities")
    message.outputs.add(name="label")
    decoded = decode(message, IRIS, TABULAR_CLASSIFICATION)
    output = TableOutput(
        classes=np.array([1]), probabilities=np.array([[0.25, 0.5, 0.25]], dtype=np.float32)
    )
    reply = INFERENCE_GRPC.encode(decoded, [output], CALL, TABULAR_CLASSIFICATION, IRIS)
    answer = service_pb2.ModelInferResponse.FromString(bytes(reply.body))
    assert [each.name for each in answer.outputs] == ["probabilities", "label"]
    assert InferResult(answer).as_numpy("probabilities").tolist() == [[0.25, 0.5, 0.25]]
    assert InferResult(answer).as_numpy("label").tolist() == [b"versicolor"]


@pytest.mark.parametrize("datatype", CONTENTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_typed_contents_come_back_raw(datatype: str, data: st.DataObject):
    values = data.draw(st.lists(values_of(datatype), max_size=40))
    answer = echo(decode(typed(datatype, values)))
    found = InferResult(answer).as_numpy("X").tolist()
    assert found == values
    assert answer.outputs[0].datatype == datatype


@pytest.mark.parametrize("datatype", ["FP16", *CONTENTS])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_raw_contents_come_back_as_they_went(datatype: str, data: st.DataObject):
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    count = int(np.prod(shape))
    values = data.draw(st.lists(values_of(datatype), min_size=count, max_size=count))
    if datatype == "BYTES":
        sent = b"".join(len(each).to_bytes(4, "little") + each for each in values)
    else:
        sent = np.array(values, dtype=type_by_datatype[datatype]).tobytes()
    answer = echo(decode(raw(datatype, sent, shape)))
    assert list(answer.raw_output_contents) == [sent]
    assert list(answer.outputs[0].shape) == shape


def test_bfloat_travels_raw_to_an_input_declared_so():
    sent = np.array([0x3F80, 0x4000], dtype="<u2").tobytes()
    answer = echo(decode(raw("BF16", sent, [2]), BFLOAT), BFLOAT)
    assert answer.outputs[0].datatype == "BF16"
    assert answer.raw_output_contents[0] == sent


def test_not_a_number_is_a_number_here():
    values = [float("nan"), float("inf"), -float("inf")]
    answer = echo(decode(typed("FP32", values)))
    assert np.array_equal(InferResult(answer).as_numpy("X"), np.array(values, "f4"), equal_nan=True)


def test_numbers_may_come_one_by_one():
    """As old encoders write them; parsers must take both forms, also mixed."""
    packed = typed("INT32", [1, -2, 300]).inputs[0].contents.SerializeToString()
    single = protobuf.integer_field(2, 4) + protobuf.integer_field(2, -5)
    body = one_input(b"INT32", 8, packed + single + packed)
    assert service_pb2.ModelInferRequest.FromString(body).inputs[0].shape == [8]
    assert found_in(body).tolist() == [1, -2, 300, 4, -5, 1, -2, 300]


def test_many_packed_numbers_are_all_there():
    values = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 400_000)
    assert np.array_equal(found_in(typed("INT64", values.tolist())), values)


def test_parameters_of_the_clients_own_are_ignored():
    message = raw("INT8", b"\x07", [1])
    message.parameters["anything"].string_param = "x" * 5000
    message.inputs[0].parameters["other"].bool_param = True
    assert found_in(message).tolist() == [7]


def test_fields_may_come_in_any_order():
    message = raw("INT8", b"\x07", [1], id="9")
    tail = service_pb2.ModelInferRequest(raw_input_contents=[b"\x07"]).SerializeToString()
    message.ClearField("raw_input_contents")
    answer = echo(decode(tail + message.SerializeToString()))
    assert (answer.id, answer.raw_output_contents[0]) == ("9", b"\x07")


# ------------------------------------------------------------------------------ mistakes


def two_inputs() -> Any:
    message = raw("INT8", b"\x07", [1])
    message.inputs.add(name="X", datatype="INT8", shape=[1])
    message.raw_input_contents.append(b"\x07")
    return message


def with_parameter(kind: str, name: str) -> Any:
    message = raw("INT8", b"\x07", [1])
    if kind == "inputs":
        message.inputs[0].parameters[name].string_param = "x"
    else:
        message.outputs.add(name="X").parameters[name].int64_param = 3
    return message


def with_outputs(*names: str) -> Any:
    message = raw("INT8", b"\x07", [1])
    for name in names:
        message.outputs.add(name=name)
    return message


def with_both() -> Any:
    message = typed("INT8", [7])
    message.raw_input_contents.append(b"\x07")
    return message


def with_wrong_contents() -> Any:
    message = request("FP32", [1])
    message.inputs[0].contents.int_contents.append(1)
    return message


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (service_pb2.ModelInferRequest(model_name="iris"), "no inputs"),
        (request("FP32", [1]), "takes 1 elements, but has 0"),
        (typed("FP32", [1.0], [2]), "takes 2 elements, but has 1"),
        (typed("FP32", [1.0], [-1]), "negative"),
        (typed("FP32", [1.0], [2**40, 2**40]), "too large"),
        (typed("FP32", [1.0], [1] * 33), "dimensions"),
        (typed("FP32", [1.0], [2**62] * 5000), "dimensions"),
        (raw("FP128", b"\0" * 16, [1]), "FP128"),
        (raw("FP32", b"\0" * 3, [1]), "takes 4 bytes, but has 3"),
        (raw("BOOL", b"\x02", [1]), "BOOL"),
        (raw("BYTES", b"\xff\xff\xff\xff", [1]), "past the end"),
        (raw("BYTES", b"", [10**9]), "fewer"),
        (request("FP16", [0]), "raw_input_contents"),
        (with_both(), "two kinds"),
        (with_wrong_contents(), "int_contents"),
        (two_inputs(), "twice"),
        (with_outputs("nobody"), "nobody"),
        (with_outputs("X", "X"), "twice"),
        (with_parameter("inputs", "shared_memory_region"), "shared memory"),
        (with_parameter("outputs", "shared_memory_region"), "shared memory"),
        (with_parameter("outputs", "classification"), "classification"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_wrong_request_is_explained(message: Any, told: str):
    with pytest.raises(InvalidInput) as caught:
        decode(message)
    assert told in caught.value.text
    assert len(caught.value.text) < 500


def test_raw_data_of_some_inputs_only_is_refused():
    message = two_inputs()
    message.inputs[1].name = "Y"
    del message.raw_input_contents[1]
    with pytest.raises(InvalidInput, match="2 inputs, but 1 raw_input_contents"):
        decode(message)


@pytest.mark.parametrize(
    ("datatype", "field", "value"),
    [
        ("BOOL", 1, 2),
        ("INT8", 2, -129),
        ("INT8", 2, 128),
        ("INT16", 2, 2**15),
        ("INT32", 2, -(2**31) - 1),
        ("UINT8", 4, 256),
        ("UINT16", 4, -1),
        ("UINT32", 4, 2**32),
    ],
)
def test_a_number_that_does_not_fit_is_refused(datatype: str, field: int, value: int):
    body = one_input(datatype.encode(), 1, protobuf.integer_field(field, value))
    with pytest.raises(InvalidInput, match=f"does not fit {datatype}"):
        decode(body)


def test_a_bfloat_for_another_datatype_is_refused():
    config = TaskConfig(signature=Signature((TensorSpec("X", "UINT16", (-1,)),), ()))
    with pytest.raises(InvalidInput, match="BF16, the model takes UINT16"):
        decode(raw("BF16", b"\0\0", [1]), config)


# ------------------------------------------------------------------------------ attacks


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_messages_are_refused_in_words_or_understood(data: st.DataObject):
    message = typed("INT32", [1, -2, 3])
    message.outputs.add(name="X")
    body = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WherryError):
        decode(bytes(body))


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_message_cut_short_is_never_understood(cut: int):
    body = typed("INT64", [2**62, 5]).SerializeToString()
    with pytest.raises(InvalidInput):
        decode(body[:-cut])


@pytest.mark.parametrize(
    "body",
    [
        b"\x12\x00" * 2_000_000,
        protobuf.bytes_field(5, b"") * 100_000,
        protobuf.bytes_field(7, b"") * 100_000,
        one_input(b"INT8", 4_000_000, protobuf.bytes_field(2, b"\x80" * 4_000_000)),
        one_input(b"INT8", 2_000_000, protobuf.integer_field(2, 1) * 2_000_000),
        one_input(b"BYTES", 2_000_000, protobuf.bytes_field(8, b"") * 2_000_000),
        b"\x0b" * 1000,
        b"\x2a\xff\xff\xff\xff\x0f",
    ],
    ids=[
        "fields",
        "inputs",
        "raw",
        "endless number",
        "single numbers",
        "strings",
        "groups",
        "length",
    ],
)
def test_bombs_are_refused(body: bytes):
    with pytest.raises(InvalidInput):
        decode(body)


def test_many_small_numbers_take_memory_in_proportion():
    body = typed("INT8", [1] * 4_000_000).SerializeToString()
    tracemalloc.start()
    try:
        assert found_in(body).size == 4_000_000
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
