"""ONNX files are read without onnx: the signature is right, and attacks (S18) are refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.tasks.task import Signature, TensorSpec
from wherry.models.trust.formats import check_bundle
from wherry.models.trust.onnx import MAX_GRAPH_DEPTH, check_onnx, read_onnx

onnx = pytest.importorskip("onnx")
helper, TensorProto = onnx.helper, onnx.TensorProto


def make_model(
    nodes: list[Any] | None = None,
    initializers: list[Any] | None = None,
    outputs: list[Any] | None = None,
    **keywords: Any,
) -> Any:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, None])
    weight = helper.make_tensor_value_info("w", TensorProto.FLOAT, [3])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [-1, 2])
    initial = onnx.numpy_helper.from_array(np.ones(3, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])] if nodes is None else nodes,
        "graph",
        [x, weight],
        [y] if outputs is None else outputs,
        [initial] if initializers is None else initializers,
    )
    return helper.make_model(graph, **keywords)


def save(folder: Path, model: Any) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def external_tensor(**entries: str) -> Any:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def nested(depth: int) -> Any:
    node = helper.make_node("Identity", ["x"], ["y"])
    for _ in range(depth):
        branch = helper.make_graph([node], "branch", [], [])
        node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    return node


def test_the_signature_is_read_without_onnx(tmp_path: Path):
    model = read_onnx(save(tmp_path, make_model()))
    assert model.signature == Signature(
        inputs=(TensorSpec("x", "FP32", (-1, 3, -1)),),  # `w` has a value, so it is no input
        outputs=(TensorSpec("y", "INT64", (-1, 2)),),
    )
    assert model.opsets[""] > 0
    assert model.external_files == []


@pytest.mark.parametrize("datatype", ["STRING", "BOOL", "FLOAT16", "DOUBLE", "UINT8", "BFLOAT16"])
def test_datatypes_are_named_as_open_inference_does(tmp_path: Path, datatype: str):
    names = {"STRING": "BYTES", "FLOAT16": "FP16", "DOUBLE": "FP64", "BFLOAT16": "BF16"}
    output = helper.make_tensor_value_info("y", getattr(TensorProto, datatype), [1])
    model = read_onnx(save(tmp_path, make_model(outputs=[output])))
    assert model.signature.outputs == (TensorSpec("y", names.get(datatype, datatype), (1,)),)


def test_outputs_that_are_no_tensors_are_left_out(tmp_path: Path):
    tensor = helper.make_tensor_value_info("label", TensorProto.INT64, [None])
    mapping = helper.make_tensor_sequence_value_info("probabilities", TensorProto.FLOAT, None)
    model = read_onnx(save(tmp_path, make_model(outputs=[tensor, mapping])))
    assert [each.name for each in model.signature.outputs] == ["label"]
    with pytest.raises(FormatNotAllowed) as refused:
        read_onnx(save(tmp_path, make_model(outputs=[mapping])))
    assert "zipmap" in refused.value.hint


@pytest.mark.parametrize("domain", ["ai.onnx.contrib", "my.ops", "com.microsoft.evil"])
def test_operators_of_others_are_refused(tmp_path: Path, domain: str):
    inner = helper.make_node("Custom", ["x"], ["y"], domain=domain)
    branch = helper.make_graph([inner], "branch", [], [])
    outer = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    for node in (inner, outer):
        with pytest.raises(FormatNotAllowed, match=domain):
            read_onnx(save(tmp_path, make_model([node])))


def test_a_model_may_bring_functions_made_of_standard_operators(tmp_path: Path):
    def model_with(inner_domain: str) -> Any:
        body = [helper.make_node("Identity", ["a"], ["b"], domain=inner_domain)]
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
        function = helper.make_function("mine", "F", ["a"], ["b"], body, opsets)
        node = helper.make_node("F", ["x"], ["y"], domain="mine")
        return make_model([node], functions=[function], opset_imports=opsets)

    assert read_onnx(save(tmp_path, model_with(""))).signature.inputs
    with pytest.raises(FormatNotAllowed, match="evil"):
        read_onnx(save(tmp_path, model_with("evil")))


def test_graphs_nested_without_end_are_refused(tmp_path: Path):
    assert read_onnx(save(tmp_path, make_model([nested(5)])))
    with pytest.raises(FormatNotAllowed, match="nested"):
        read_onnx(save(tmp_path, make_model([nested(MAX_GRAPH_DEPTH)])))


def test_a_chain_of_20_000_graphs_is_refused_quickly(tmp_path: Path):
    def field(number: int, data: bytes) -> bytes:
        length, size = b"", len(data)
        while size > 0x7F:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + data

    graph = b""
    for _ in range(20_000):
        graph = field(1, field(5, field(6, graph)))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + field(7, graph) + b"\x42\x02\x10\x12")
    started = time.process_time()
    with pytest.raises(FormatNotAllowed):
        read_onnx(path)
    assert time.process_time() - started < 1


def test_external_data_beside_the_model_is_listed_and_measured(tmp_path: Path):
    tensor = external_tensor(location="weights.bin", offset="4", length="12")
    path = save(tmp_path, make_model(initializers=[tensor]))
    assert read_onnx(path).external_files == ["weights.bin"]
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    assert check_onnx(path).external_files == ["weights.bin"]
    formats = check_bundle(tmp_path, ["model.onnx", "weights.bin"])
    assert formats == {"model.onnx": "onnx", "weights.bin": "onnx-data"}
    with pytest.raises(FormatNotAllowed, match=r"weights\.bin"):
        check_bundle(tmp_path, ["model.onnx"])
    (tmp_path / "weights.bin").write_bytes(bytes(15))
    with pytest.raises(FormatNotAllowed, match="which has 15"):
        check_onnx(path)


def test_external_data_may_not_be_a_link(tmp_path: Path):
    (tmp_path / "weights.bin").symlink_to("/etc/passwd")
    path = save(tmp_path, make_model(initializers=[external_tensor(location="weights.bin")]))
    with pytest.raises(InvalidInput):
        check_onnx(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../../etc/passwd"},
        {"location": "/etc/passwd"},
        {"location": "a/../../x"},
        {"location": "./weights.bin"},
        {"location": ""},
        {"location": "a\\b"},
        {"location": "weights.bin", "offset": "-1"},
        {"location": "weights.bin", "length": "1152921504606846976"},
        {"location": "weights.bin", "offset": "1e3"},
        {"location": "weights.bin", "offset": "٤"},
        {"location": "weights.bin", "__class__": "x"},
        {},
    ],
)
def test_external_data_elsewhere_is_refused(tmp_path: Path, entries: dict[str, str]):
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    path = save(tmp_path, make_model(initializers=[external_tensor(**entries)]))
    with pytest.raises(FormatNotAllowed):
        check_onnx(path)


def test_external_data_is_found_in_attributes_of_inner_graphs(tmp_path: Path):
    constant = helper.make_node("Constant", [], ["y"])
    constant.attribute.add(name="value", type=4).t.CopyFrom(external_tensor(location="../x"))
    branch = helper.make_graph([constant], "branch", [], [])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(FormatNotAllowed, match=r"\.\./x"):
        read_onnx(save(tmp_path, make_model([node])))


def test_a_tensor_with_a_negative_dimension_is_refused(tmp_path: Path):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[-3])
    with pytest.raises(FormatNotAllowed, match="shape"):
        read_onnx(save(tmp_path, make_model(initializers=[tensor])))


def test_two_inputs_of_one_name_are_refused(tmp_path: Path):
    model = make_model()
    model.graph.input.add().CopyFrom(model.graph.input[0])
    with pytest.raises(FormatNotAllowed, match="same name"):
        read_onnx(save(tmp_path, model))


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",
        b"\x0b\x00",  # a group
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of 2^64-1
        b"\x08" + b"\xff" * 11,  # a number without end
        b"\x00\x00",  # field number 0
        b"\x08\x08",  # nothing in it
        b"x" * 1000,
    ],
)
def test_bytes_that_are_no_model_are_refused(tmp_path: Path, data: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(FormatNotAllowed, match=r"model\.onnx"):
        read_onnx(path)


def test_a_cut_is_refused_or_harmless(tmp_path: Path):
    """A message may end after any whole field, so a cut may leave a smaller model, never a crash."""
    whole = make_model().SerializeToString()
    path = tmp_path / "model.onnx"
    refused = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            read_onnx(path)
        except FormatNotAllowed:
            refused += 1
    assert refused >= len(whole) - 2
