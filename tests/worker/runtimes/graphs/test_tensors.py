"""Graphs of every datatype and odd shapes, from one end to the other: as JSON and as raw bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402 - after importorskip

from wherry.errors import FormatNotAllowed, InvalidInput  # noqa: E402
from wherry.models.bundle import MANIFEST, encode_manifest, open_bundle  # noqa: E402
from wherry.models.codecs.codec import Call  # noqa: E402
from wherry.models.codecs.inference import INFERENCE  # noqa: E402
from wherry.models.codecs.predict import PREDICT  # noqa: E402
from wherry.models.registry.detect import detect  # noqa: E402
from wherry.models.tasks.tensor import TENSOR  # noqa: E402
from wherry.worker.runtimes.catalog import create_runtime  # noqa: E402


class Served:
    """A graph that an import would take, behind the codecs."""

    def __init__(self, folder: Path, nodes: Any, inputs: Any, outputs: Any) -> None:
        infos = [
            [helper.make_tensor_value_info(*each) for each in some] for some in (inputs, outputs)
        ]
        graph = helper.make_graph(nodes, "test", *infos)
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        manifest = detect(folder)
        (folder / MANIFEST).write_text(encode_manifest(manifest))
        self.config = manifest.task_config()
        self.runtime: Any = create_runtime("onnx")
        self.runtime.load(open_bundle(folder), "cpu")

    def ask(self, codec: Any, body: bytes, **headers: str) -> Any:
        call = Call("c", "r", "m", "1", 0, headers=headers)
        decoded = codec.decode(memoryview(body), call, TENSOR, self.config)
        outputs = self.runtime.run([self.runtime.prepare(item) for item in decoded.items])
        return codec.encode(decoded, outputs, call, TENSOR, self.config)

    def infer(self, datatype: str, shape: Any, data: Any) -> Any:
        tensor = {"name": "x", "datatype": datatype, "shape": shape, "data": data}
        reply = self.ask(INFERENCE, json.dumps({"inputs": [tensor]}).encode())
        return json.loads(bytes(reply.body))["outputs"][0]

    def infer_raw(self, array: np.ndarray, datatype: str) -> np.ndarray:
        tensor = {
            "name": "x",
            "datatype": datatype,
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        wish = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        head = json.dumps(wish).encode()
        name = "inference-header-content-length"
        reply = self.ask(INFERENCE, head + array.tobytes(), **{name: str(len(head))})
        start = int(reply.headers[name])
        told = json.loads(bytes(reply.body)[:start])["outputs"][0]
        raw = bytes(reply.body)[start:]
        return np.frombuffer(raw, array.dtype).reshape(told["shape"])

    def predict(self, value: Any) -> Any:
        return json.loads(bytes(self.ask(PREDICT, json.dumps({"x": value}).encode()).body))["y"]


def unary(folder: Path, operator: str, kind: int, shape: Any) -> Served:
    node = helper.make_node(operator, ["x"], ["y"])
    return Served(folder, [node], [("x", kind, shape)], [("y", kind, shape)])


@pytest.mark.parametrize(
    ("datatype", "kind", "values"),
    [
        ("FP16", TensorProto.FLOAT16, [1.5, -2.0]),
        ("FP32", TensorProto.FLOAT, [1.5, -2.0]),
        ("FP64", TensorProto.DOUBLE, [1.5, -2.0]),
        ("INT8", TensorProto.INT8, [-128, 127]),
        ("INT64", TensorProto.INT64, [-(2**63), 2**63 - 1]),
        ("UINT8", TensorProto.UINT8, [0, 255]),
        ("UINT64", TensorProto.UINT64, [0, 2**64 - 1]),
        ("BOOL", TensorProto.BOOL, [True, False]),
        ("BYTES", TensorProto.STRING, ["a", "日本"]),
    ],
)
def test_every_datatype_goes_through_a_graph(tmp_path: Path, datatype: str, kind: int, values: Any):
    served = unary(tmp_path, "Identity", kind, ["n"])
    told = served.infer(datatype, [2], values)
    assert (told["datatype"], told["shape"], told["data"]) == (datatype, [2], values)
    assert served.predict(values) == values


def test_half_precision_is_computed_in_half_precision(tmp_path: Path):
    served = unary(tmp_path, "Exp", TensorProto.FLOAT16, ["n", 2])
    given = np.array([[0.1, 1.0], [-3.0, 5.0]], np.float16)
    told = served.infer_raw(given, "FP16")
    assert told.dtype == np.float16
    assert np.allclose(told, np.exp(given.astype(np.float32)), rtol=2e-3)
    with pytest.raises(InvalidInput, match="NaN or infinity"):
        served.infer("FP16", [1, 2], [12.0, 1.0])  # over what half precision can hold
    with pytest.raises(InvalidInput, match="does not fit FP16"):
        served.infer("FP16", [1, 2], [1e6, 1.0])


def test_bfloat_is_refused_at_load_with_the_way_out(tmp_path: Path):
    with pytest.raises(FormatNotAllowed, match="bfloat16") as refused:
        unary(tmp_path, "Identity", TensorProto.BFLOAT16, ["n"])
    assert "cast" in refused.value.hint


@pytest.mark.parametrize("shape", [[0], [0, 3], [2, 0]])
def test_tensors_of_no_elements_are_answered_by_none(tmp_path: Path, shape: list[int]):
    served = unary(tmp_path, "Neg", TensorProto.FLOAT, [f"d{index}" for index in range(len(shape))])
    told = served.infer("FP32", shape, [])
    assert (told["shape"], told.get("data", [])) == (shape, [])
    assert served.infer_raw(np.empty(shape, np.float32), "FP32").shape == tuple(shape)


def test_a_scalar_goes_in_and_comes_out(tmp_path: Path):
    served = unary(tmp_path, "Neg", TensorProto.FLOAT, [])
    assert served.infer("FP32", [], [2.5]) == {
        "name": "y",
        "datatype": "FP32",
        "shape": [],
        "data": [-2.5],
    }
    assert served.predict(2.5) == -2.5
    assert served.infer_raw(np.array(4, np.float32), "FP32") == -4


def test_one_number_out_of_many_rows_is_told_for_each_request_alone(tmp_path: Path):
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    served = Served(
        tmp_path, [node], [("x", TensorProto.FLOAT, ["n"])], [("y", TensorProto.FLOAT, [])]
    )
    assert served.runtime.max_batch_rows == 1
    assert served.predict([1, 2, 3]) == 6
    assert served.predict([4]) == 4


def test_an_empty_text_is_a_text(tmp_path: Path):
    served = unary(tmp_path, "Identity", TensorProto.STRING, ["n", 2])
    assert served.infer("BYTES", [1, 2], ["", "\u0000é"])["data"] == ["", "\u0000é"]
