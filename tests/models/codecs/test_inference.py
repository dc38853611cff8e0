import gzip
import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wherry.errors import InvalidInput, TooLarge, WherryError
from wherry.models.codecs.codec import Call
from wherry.models.codecs.inference import HEADER_LENGTH, INFERENCE
from wherry.models.tasks.tabular import TABULAR_CLASSIFICATION, TableOutput
from wherry.models.tasks.task import Signature, TaskConfig, TensorSpec, type_by_datatype
from wherry.models.tasks.tensor import TENSOR, TensorOutput

OPEN = TaskConfig(signature=Signature((TensorSpec("X", "", ()),), (TensorSpec("X", "", ()),)))
IRIS = TaskConfig(
    labels=("setosa", "versicolor", "virginica"),
    signature=Signature(
        (TensorSpec("input", "FP32", (-1, 4)),),
        (TensorSpec("label", "BYTES", (-1,)), TensorSpec("probabilities", "FP32", (-1, 3))),
    ),
)
LIMITS = {
    "UINT8": (0, 255),
    "INT8": (-128, 127),
    "UINT16": (0, 65535),
    "INT16": (-32768, 32767),
    "UINT32": (0, 2**32 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "UINT64": (0, 2**64 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}


def call(headers=None, **more):
    return Call("inference", "r1", "iris", "3", 0, headers or {}, **more)


def decode(body, headers=None, config=OPEN, task=TENSOR, **more):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return INFERENCE.decode(memoryview(raw), call(headers, **more), task, config)


def one(datatype, shape, data, name="X", **more):
    return {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}], **more}


def echo(decoded, config=OPEN):
    outputs = [TensorOutput(tensors=decoded.items[0].tensors)]
    return INFERENCE.encode(decoded, outputs, call(), TENSOR, config)


def binary(datatype, shape, raw, size=None, **more):
    parameters = {"binary_data_size": len(raw) if size is None else size}
    tensor = {"name": "X", "datatype": datatype, "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + raw, {HEADER_LENGTH: str(len(head))}


def read_binary(reply):
    split = int(reply.headers[HEADER_LENGTH])
    body = bytes(reply.body)
    return json.loads(body[:split]), body[split:]


# ---------------------------------------------------------------------------------- answers


def test_an_answer_names_model_version_and_id_and_holds_no_null():
    reply = echo(decode(one("INT64", [2], [1, 2], id="req-42")))
    assert json.loads(reply.body) == {
        "model_name": "iris",
        "model_version": "3",
        "id": "req-42",
        "outputs": [{"name": "X", "datatype": "INT64", "shape": [2], "data": [1, 2]}],
    }
    assert reply.content_type == "application/json"


def test_an_id_that_was_not_sent_is_left_out():
    assert "id" not in json.loads(echo(decode(one("BOOL", [1], [True]))).body)
    assert "id" not in json.loads(echo(decode(one("BOOL", [1], [True], id=None))).body)


def test_classes_answer_as_declared():
    decoded = decode(
        one("FP32", [1, 4], [5.1, 3.5, 1.4, 0.2], name="input"),
        config=IRIS,
        task=TABULAR_CLASSIFICATION,
    )
    output = TableOutput(
        classes=np.array([1]), probabilities=np.array([[0.25, 0.5, 0.25]], dtype=np.float32)
    )
    reply = INFERENCE.encode(decoded, [output], call(), TABULAR_CLASSIFICATION, IRIS)
    assert json.loads(reply.body)["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["versicolor"]},
        {"name": "probabilities", "datatype": "FP32", "shape": [1, 3], "data": [0.25, 0.5, 0.25]},
    ]


def test_only_the_requested_outputs_are_sent_in_the_requested_order():
    decoded = decode(
        {
            **one("FP32", [0, 4], [], name="input"),
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        },
        config=IRIS,
        task=TABULAR_CLASSIFICATION,
    )
    output = TableOutput(classes=np.empty(0, dtype=int), probabilities=np.empty((0, 3)))
    reply = INFERENCE.encode(decoded, [output], call(), TABULAR_CLASSIFICATION, IRIS)
    head, tail = read_binary(reply)
    assert [each["name"] for each in head["outputs"]] == ["probabilities"]
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 0}
    assert tail == b""
    assert reply.content_type == "application/octet-stream"


def test_binary_output_for_all_can_be_refused_for_one():
    config = TaskConfig(
        signature=Signature(
            (TensorSpec("X", "", ()),), (TensorSpec("a", "", ()), TensorSpec("b", "", ()))
        )
    )
    body = one("INT8", [1], [7], parameters={"binary_data_output": True})
    body["outputs"] = [{"name": "b", "parameters": {"binary_data": False}}, {"name": "a"}]
    decoded = decode(body, config=config)
    tensors = {"a": np.array([1], dtype=np.int8), "b": np.array([2], dtype=np.int8)}
    reply = INFERENCE.encode(decoded, [TensorOutput(tensors=tensors)], call(), TENSOR, config)
    head, tail = read_binary(reply)
    assert [each["name"] for each in head["outputs"]] == ["b", "a"]
    assert head["outputs"][0]["data"] == [2]
    assert tail == b"\x01"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_travels_as_binary_data_and_json_refuses_it_with_a_hint(value):
    raw = np.array([value], dtype="<f4").tobytes()
    body, headers = binary("FP32", [1], raw)
    with pytest.raises(InvalidInput, match="JSON cannot carry") as caught:
        echo(decode(body, headers))
    assert "binary_data" in caught.value.hint
    body, headers = binary("FP32", [1], raw, parameters={"binary_data_output": True})
    assert read_binary(echo(decode(body, headers)))[1] == raw


def test_bytes_that_are_no_text_need_binary_data():
    body, headers = binary("BYTES", [1], b"\x01\x00\x00\x00\xff")
    with pytest.raises(InvalidInput, match="JSON cannot carry"):
        echo(decode(body, headers))


def test_bfloat_travels_as_binary_data_to_an_input_declared_so():
    spec = TensorSpec("X", "BF16", (-1,))
    config = TaskConfig(signature=Signature((spec,), (spec,)))
    raw = b"\x80\x3f\x00\x40"
    body, headers = binary("BF16", [2], raw, parameters={"binary_data_output": True})
    head, tail = read_binary(echo(decode(body, headers, config), config))
    assert head["outputs"][0]["datatype"] == "BF16"
    assert tail == raw
    with pytest.raises(InvalidInput, match="BF16 needs binary data"):
        decode(one("BF16", [1], [1.0]), config=config)
    with pytest.raises(InvalidInput, match="is BF16, the model takes"):
        decode(body, headers)


# ---------------------------------------------------------------------------------- round trips


def equal(left, right):
    if left.dtype == object:
        return left.shape == right.shape and left.ravel().tolist() == right.ravel().tolist()
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and (left.tobytes() == right.tobytes())
    )


shapes = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw, finite):
    datatype = draw(st.sampled_from([*type_by_datatype, "BYTES"]))
    shape = draw(shapes)
    if datatype == "BYTES":
        elements = st.text(max_size=8).map(str.encode) if finite else st.binary(max_size=8)
        flat = draw(st.lists(elements, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        array = np.empty(len(flat), dtype=object)
        array[:] = flat
        return datatype, array.reshape(shape)
    kind = np.dtype(type_by_datatype[datatype])
    elements = {"allow_nan": False, "allow_infinity": False} if finite and kind.kind == "f" else {}
    return datatype, draw(arrays.arrays(kind, shape, elements=elements or None))


@settings(max_examples=150, deadline=None)
@given(tensors(finite=True), st.booleans())
def test_every_datatype_survives_json(tensor, nested):
    datatype, array = tensor
    data = array if datatype != "BYTES" else np.vectorize(bytes.decode, otypes=[object])(array)
    listed = (data if nested else data.ravel()).tolist()
    decoded = decode(one(datatype, list(array.shape), listed))
    assert equal(decoded.items[0].tensors["X"], array)
    answer = json.loads(echo(decoded).body)["outputs"][0]
    again = decode({"inputs": [answer]})
    assert equal(again.items[0].tensors["X"], array)


@settings(max_examples=150, deadline=None)
@given(tensors(finite=False))
def test_every_datatype_survives_binary(tensor):
    datatype, array = tensor
    if datatype == "BYTES":
        raw = b"".join(len(each).to_bytes(4, "little") + each for each in array.ravel())
    else:
        raw = array.tobytes()
    wanted = {"parameters": {"binary_data_output": True}}
    body, headers = binary(datatype, list(array.shape), raw, **wanted)
    decoded = decode(body, headers)
    assert equal(decoded.items[0].tensors["X"], array)
    head, tail = read_binary(echo(decoded))
    assert (head["outputs"][0]["datatype"], tail) == (datatype, raw)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([None, "0", "2", "999", "x"]))
def test_random_bytes_raise_nothing_but_our_errors(body, header_length):
    headers = {} if header_length is None else {HEADER_LENGTH: header_length}
    with pytest.raises(WherryError):
        decode(body, headers)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "name": st.just("X") | json_values,
            "datatype": st.sampled_from([*type_by_datatype, "BYTES", "BF16"]) | json_values,
            "shape": st.lists(st.integers(-1, 2**40) | st.integers(0, 3), max_size=5) | json_values,
        },
        optional={
            "data": json_values,
            "parameters": st.fixed_dictionaries({"binary_data_size": json_values}) | json_values,
        },
    ),
    st.binary(max_size=20),
)
def test_hostile_tensors_raise_nothing_but_our_errors(tensor, tail):
    head = json.dumps({"inputs": [tensor]}).encode()
    try:
        decoded = decode(head + tail, {HEADER_LENGTH: str(len(head))})
        echo(decoded)
    except WherryError:
        return
    assert isinstance(decoded.items[0].tensors["X"], np.ndarray)


# ---------------------------------------------------------------------------------- bad requests


def test_the_largest_and_least_number_of_every_integer_type_fit_and_no_other():
    for datatype, (least, largest) in LIMITS.items():
        found = decode(one(datatype, [2], [least, largest])).items[0].tensors["X"]
        assert found.tolist() == [least, largest]
        for value in (least - 1, largest + 1):
            with pytest.raises(InvalidInput):
                decode(one(datatype, [1], [value]))


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT32", [1.0]),
        ("INT32", [1.5]),
        ("INT32", [True]),
        ("INT32", ["1"]),
        ("BOOL", [1]),
        ("FP32", ["1.0"]),
        ("FP32", [True]),
        ("FP32", [3.5e38]),
        ("FP16", [65520.0]),
        ("FP32", [None]),
        ("BYTES", [1]),
        ("FP32", 1.0),
        ("FP32", {"0": 1.0}),
        ("FP32", [[1.0]]),
    ],
)
def test_data_of_another_type_is_refused(datatype, data):
    with pytest.raises(InvalidInput):
        decode(one(datatype, [1], data))


@pytest.mark.parametrize(
    "data",
    [
        b"[NaN]",
        b"[Infinity]",
        b"[1e400]",
        b"[" + b"9" * 4400 + b"]",
        b'["\\ud800"]',
        b"[01]",
        b"[1,]",
        b"[1 1]",
        b"[-]",
        b"[+1]",
        b"[0x1]",
    ],
)
def test_json_that_is_none_is_refused(data):
    for datatype in ("FP64", "INT64", "BYTES"):
        body = b'{"inputs":[{"name":"X","datatype":"%s","shape":[1],"data":%s}]}'
        with pytest.raises(InvalidInput):
            decode(body % (datatype.encode(), data))


@pytest.mark.parametrize(
    "shape",
    [
        [3],
        [1],
        [2, 2],
        [0],
        [2**32, 2**32],
        [-1],
        [-1, -2],
        [2.0],
        ["2"],
        [True],
        None,
        2,
        [[2]],
        [1] * 33,
        [2**63, 2],
        [0, 2**40, 2**40],
        [],
    ],
)
def test_a_shape_that_the_data_does_not_fill_is_refused(shape):
    with pytest.raises(InvalidInput):
        decode(one("INT64", shape, [1, 2]))
    body, headers = binary("INT64", shape, b"\0" * 16)
    with pytest.raises(InvalidInput):
        decode(body, headers)


def test_a_million_dimensions_are_refused():
    with pytest.raises(InvalidInput):
        decode(one("INT64", [1] * 1_000_000, [1]))


def test_nesting_must_follow_the_shape():
    assert decode(one("INT8", [2, 2], [[1, 2], [3, 4]])).items[0].tensors["X"].shape == (2, 2)
    for data in (
        [[1, 2], [3]],
        [[1, 2, 3, 4]],
        [[1], [2], [3], [4]],
        [[[1, 2]], [[3, 4]]],
        [1, [2], 3, 4],
        [[1, 2], 3, 4],
    ):
        with pytest.raises(InvalidInput):
            decode(one("INT8", [2, 2], data))
    with pytest.raises(InvalidInput):
        decode(one("BYTES", [2, 2], [["a", "b"], ["c"]]))


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        {"inputs": []},
        {"inputs": None},
        {"inputs": {}},
        {"inputs": [[]]},
        {"inputs": [{"name": "X", "datatype": "INT8", "shape": [1]}]},
        {"inputs": [{"name": "X", "shape": [1], "data": [1]}]},
        {"inputs": [{"datatype": "INT8", "shape": [1], "data": [1]}]},
        {"inputs": [{"name": "X", "datatype": "INT8", "data": [1]}]},
        one("FP128", [1], [1]),
        one("int8", [1], [1]),
        one("INT8", [1], [1], name="nope"),
        one("INT8", [1], [1], id=7),
        one("INT8", [1], [1], outputs=[{"name": "nope"}]),
        one("INT8", [1], [1], outputs=[{}]),
        one("INT8", [1], [1], outputs=[{"name": "X"}, {"name": "X"}]),
        one("INT8", [1], [1], outputs=[{"name": "X", "parameters": {"classification": 2}}]),
        one("INT8", [1], [1], outputs=[{"name": "X", "parameters": {"shared_memory_region": "r"}}]),
        {"inputs": one("INT8", [1], [1])["inputs"] * 2},
        {"inputs": one("INT8", [1], [1])["inputs"] + one("INT8", [1], [1], name="Y")["inputs"]},
        {
            "inputs": [
                {
                    "name": "X",
                    "datatype": "INT8",
                    "shape": [1],
                    "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 1},
                }
            ]
        },
        {
            "inputs": [
                {
                    "name": "X",
                    "datatype": "INT8",
                    "shape": [1],
                    "data": [1],
                    "parameters": {"binary_data_size": 1},
                }
            ]
        },
    ],
)
def test_a_request_of_another_form_is_refused(body):
    with pytest.raises(InvalidInput):
        decode(body)


def test_parameters_that_mean_nothing_here_are_ignored():
    body = one("INT8", [1], [1], parameters={"priority": 3, "timeout": 100}, extra=[1])
    body["inputs"][0]["parameters"] = {"note": {"a": [1]}}
    assert decode(body).items[0].tensors["X"].tolist() == [1]


@pytest.mark.parametrize(
    "bomb", [b"[", b'{"a":', b'{"inputs":[', b'{"inputs":[{"parameters":{"a":[']
)
def test_depth_bombs_are_refused(bomb):
    with pytest.raises(InvalidInput):
        decode(bomb * 200_000)


def test_a_depth_bomb_in_data_is_refused():
    data = b"[" * 200_000 + b"]" * 200_000
    with pytest.raises(InvalidInput):
        decode(b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1],"data":' + data + b"}]}")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b'{"inputs":"\xff"}', b"{} {}"]
)
def test_a_body_that_is_no_json_is_refused(body):
    with pytest.raises(InvalidInput):
        decode(body)


@pytest.mark.parametrize("length", ["-1", "", "x", "1e3", "٣", "9" * 30, "99999"])
def test_a_header_length_that_lies_is_refused(length):
    body, _ = binary("INT8", [1], b"\1")
    with pytest.raises(InvalidInput):
        decode(body, {HEADER_LENGTH: length})


@pytest.mark.parametrize(
    ("raw", "size"),
    [(b"\0\0\0", 64), (b"\0" * 9, 8), (b"\0" * 8, 4), (b"\0" * 8, 9), (b"", 8), (b"\0" * 8, -8)],
)
def test_binary_sizes_that_do_not_add_up_are_refused(raw, size):
    body, headers = binary("FP32", [2], raw, size)
    with pytest.raises(InvalidInput):
        decode(body, headers)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0\0\0", b"\1\0\0\0", b"\0\0\0\0\0", b"\xff\xff\xff\xffab", b"\1\0\0\0a\1\0\0\0b"],
)
def test_binary_strings_that_do_not_add_up_are_refused(raw):
    body, headers = binary("BYTES", [1], raw)
    with pytest.raises(InvalidInput):
        decode(body, headers)


def test_a_binary_bool_is_zero_or_one():
    body, headers = binary("BOOL", [2], b"\1\2")
    with pytest.raises(InvalidInput, match="0 or 1"):
        decode(body, headers)


def test_binary_data_without_its_header_is_refused():
    body, _ = binary("INT8", [1], b"")
    with pytest.raises(InvalidInput):
        decode(body)


def test_an_array_owns_its_memory_and_can_be_written():
    body, headers = binary("FP32", [2], b"\0" * 8)
    array = decode(body, headers).items[0].tensors["X"]
    array += 1
    assert array.tolist() == [1.0, 1.0]


# ---------------------------------------------------------------------------------- compression


@pytest.mark.parametrize(("name", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body_is_read(name, squeeze):
    body = squeeze(json.dumps(one("INT8", [1], [5])).encode())
    found = decode(body, {"content-encoding": name})
    assert found.items[0].tensors["X"].tolist() == [5]


def test_the_header_length_counts_decompressed_bytes():
    body, headers = binary("INT8", [2], b"\1\2")
    found = decode(gzip.compress(body), {**headers, "content-encoding": "gzip"})
    assert found.items[0].tensors["X"].tolist() == [1, 2]


def test_a_decompression_bomb_is_refused():
    with pytest.raises(TooLarge):
        decode(gzip.compress(b" " * (8 << 20)), {"content-encoding": "gzip"})
    with pytest.raises(TooLarge):
        decode(gzip.compress(b" " * 2000), {"content-encoding": "gzip"}, max_body_bytes=1000)


@pytest.mark.parametrize(
    "body", [b"", b"x", gzip.compress(b"{}")[:-1], gzip.compress(b"{}") + b"x"]
)
def test_a_body_that_is_not_what_its_encoding_says_is_refused(body):
    with pytest.raises(InvalidInput):
        decode(body, {"content-encoding": "gzip"})


def test_an_unknown_encoding_is_refused():
    with pytest.raises(InvalidInput, match="'br'"):
        decode(b"{}", {"content-encoding": "br"})


# ---------------------------------------------------------------------------------- real client


def from_client(array, datatype, binary_in, binary_out):
    client = pytest.importorskip("tritonclient.http")
    tensor = client.InferInput("X", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary_in)
    wanted = client.InferRequestedOutput("X", binary_data=binary_out)
    body, length = client.InferenceServerClient.generate_request_body(
        [tensor], outputs=[wanted], request_id="42"
    )
    reply = echo(decode(body, {} if length is None else {HEADER_LENGTH: str(length)}))
    split = reply.headers.get(HEADER_LENGTH)
    return client.InferenceServerClient.parse_response_body(
        bytes(reply.body), header_length=None if split is None else int(split)
    )


@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("datatype", [*type_by_datatype, "BYTES"])
def test_tritonclient_gets_back_what_it_sent(datatype, binary_in, binary_out):
    if datatype == "BYTES":
        array = np.array(["", "naïve 😀", 'a\nb"c'], dtype=object)
    else:
        array = np.array([[0, 1, 1]], dtype=type_by_datatype[datatype])
    found = from_client(array, datatype, binary_in, binary_out)
    assert found.get_response()["id"] == "42"
    again = found.as_numpy("X")
    if datatype == "BYTES":
        again = [each.decode() if isinstance(each, bytes) else each for each in again]
        assert again == array.tolist()
    else:
        assert again.dtype == array.dtype
        assert again.tolist() == array.tolist()


# ---------------------------------------------------------------------------------- the short way

TABLE = TaskConfig(
    labels=("setosa", "versicolor", "virginica"),
    signature=Signature(
        (TensorSpec("X", "FP32", (-1, 2)),),
        (TensorSpec("label", "BYTES", (-1,)), TensorSpec("probabilities", "FP32", (-1, 3))),
    ),
)
NUMBERS = st.one_of(
    st.floats(width=32),
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.text(max_size=1),
)


def outcome(body, config):
    """What a body decodes to, or the error."""
    try:
        item = decode(body, config=config, task=TABULAR_CLASSIFICATION).items[0]
    except WherryError as error:
        return error.code, error.message
    (array,) = item.tensors.values()
    return str(array.dtype), array.shape, array.tobytes()


@settings(max_examples=300)
@given(
    st.sampled_from(["FP32", "FP64", "INT32"]),
    st.sampled_from(
        [[1, 2], [2, 2], [2], [0, 2], [1, 2, 1], [], [2**40, 2**40], [2**62, 0], [-1, 2]]
    ),
    st.lists(NUMBERS, max_size=4),
    st.sampled_from(["X", "Y"]),
)
def test_the_commonest_form_means_what_it_means_the_long_way(datatype, shape, data, name):
    body = one(datatype, shape, data, name)
    for declared in ("FP32", "FP64"):
        inputs = (TensorSpec("X", declared, (-1, 2)),)
        config = TaskConfig(TABLE.labels, Signature(inputs, TABLE.signature.outputs))
        # `parameters` of its own sends a body the long way
        assert outcome(body, config) == outcome({**body, "parameters": {}}, config)


@pytest.mark.parametrize("classes", [[0], [2, 1], [], [7], [1] * 11, [2] * 30])
@pytest.mark.parametrize("last", [0.25, float("nan"), float("inf"), 1e-30])
def test_the_commonest_answer_reads_as_the_long_way_writes_it(classes, last):
    probabilities = np.full((len(classes), 3), 0.1, dtype=np.float32)
    probabilities[:, 2] = last
    output = TableOutput(classes=np.array(classes, dtype=np.int64), probabilities=probabilities)

    def answer(body):
        decoded = decode(body, config=TABLE, task=TABULAR_CLASSIFICATION)
        try:
            reply = INFERENCE.encode(decoded, [output], call(), TABULAR_CLASSIFICATION, TABLE)
        except WherryError as error:
            return error.code, error.message
        return bytes(reply.body)  # to the digit

    body = one("FP32", [1, 2], [0.5, 1.5])
    assert answer(body) == answer({**body, "parameters": {}})
