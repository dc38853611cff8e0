"""A converted graph computes what TensorFlow's operators do; what is not known is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.real_models import fetch_member, photo, recipe_sources

from wherry.errors import FormatNotAllowed, InvalidInput

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from wherry.learning.convert.tfjs import convert_graph_model  # noqa: E402 - after importorskip
from wherry.learning.recipes.selfie import DESCRIPTION, SELFIE, WEIGHTS  # noqa: E402

Attributes = dict[str, Any]


def text(value: str) -> Attributes:
    return {"s": base64.b64encode(value.encode()).decode()}


def integers(*values: int) -> Attributes:
    return {"list": {"i": [str(value) for value in values]}}


class Written:
    """A graph model of one operator, in files."""

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.folder = folder
        dims = {"shape": {"dim": [{"size": str(size)} for size in shape]}}
        self.nodes: list[Any] = [{"name": "x", "op": "Placeholder", "attr": {"shape": dims}}]
        self.weights: list[Any] = []
        self.data = b""

    def constant(self, name: str, value: np.ndarray) -> str:
        self.nodes.append({"name": name, "op": "Const"})
        shape, dtype = list(value.shape), value.dtype.name
        self.weights.append({"name": name, "shape": shape, "dtype": dtype})
        self.data += value.tobytes()
        return name

    def node(self, op: str, *inputs: str, name: str = "y", **attributes: Attributes) -> None:
        self.nodes.append({"name": name, "op": op, "input": list(inputs), "attr": attributes})

    def convert(self, *outputs: str) -> Path:
        model = {
            "format": "graph-model",
            "modelTopology": {"node": self.nodes},
            "weightsManifest": [{"paths": ["w.bin"], "weights": self.weights}],
            "signature": {"outputs": {name: {"name": f"{name}:0"} for name in outputs or ("y",)}},
        }
        (self.folder / "m.json").write_text(json.dumps(model))
        (self.folder / "w.bin").write_bytes(self.data)
        target = self.folder / "m.onnx"
        convert_graph_model(self.folder / "m.json", self.folder / "w.bin", target)
        return target

    def run(self, x: np.ndarray, *outputs: str) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(self.convert(*outputs))
        return session.run(None, {"x": x})


def windows(side: int, kernel: int, stride: int) -> list[tuple[int, int]]:
    """Where SAME puts the kernel along a side: from and to, also outside."""
    count = -(-side // stride)
    missing = max(0, (count - 1) * stride + kernel - side)
    return [(i * stride - missing // 2, i * stride - missing // 2 + kernel) for i in range(count)]


def slide(x: np.ndarray, kernel: int, stride: int, use: Any) -> np.ndarray:
    """`use(patch, rows, columns)` for each place; the patch has what lies inside the picture."""
    _, height, width, _ = x.shape
    rows = [
        [
            use(
                x[0, max(0, top) : bottom, max(0, left) : right],
                slice(max(0, -top), kernel - max(0, bottom - height)),
                slice(max(0, -left), kernel - max(0, right - width)),
            )
            for left, right in windows(width, kernel, stride)
        ]
        for top, bottom in windows(height, kernel, stride)
    ]
    return np.array(rows)[np.newaxis]


SAME = text("SAME")
STRIDE_2 = integers(1, 2, 2, 1)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 7, 10, 3)).astype(np.float32)


def test_convolutions_are_padded_as_tensorflow_pads(tmp_path: Path, x: np.ndarray) -> None:
    kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 5)).astype(np.float32)
    written = Written(tmp_path, x.shape)
    written.node("Conv2D", "x", written.constant("k", kernel), padding=SAME, strides=STRIDE_2)
    expected = slide(
        x, 3, 2, lambda patch, rows, columns: np.einsum("hwc,hwco->o", patch, kernel[rows, columns])
    )
    assert written.run(x)[0] == pytest.approx(expected, abs=1e-5)


def test_depthwise_convolutions_keep_channels_apart(tmp_path: Path, x: np.ndarray) -> None:
    kernel = np.random.default_rng(1).normal(size=(5, 5, 3, 2)).astype(np.float32)
    written = Written(tmp_path, x.shape)
    written.node(
        "DepthwiseConv2dNative", "x", written.constant("k", kernel), padding=SAME, strides=STRIDE_2
    )
    expected = slide(
        x,
        5,
        2,
        lambda patch, rows, columns: np.einsum(
            "hwc,hwcm->cm", patch, kernel[rows, columns]
        ).ravel(),
    )
    assert written.run(x)[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("op", "reduce"), [("MaxPool", np.max), ("AvgPool", np.mean)])
def test_pooling_leaves_out_what_is_padded(
    tmp_path: Path, x: np.ndarray, op: str, reduce: Any
) -> None:
    written = Written(tmp_path, x.shape)
    written.node(op, "x", padding=SAME, strides=STRIDE_2, ksize=integers(1, 3, 3, 1))
    expected = slide(x, 3, 2, lambda patch, _rows, _columns: reduce(patch, axis=(0, 1)))
    assert written.run(x)[0] == pytest.approx(expected, abs=1e-6)


def test_a_transposed_convolution_spreads_each_pixel(tmp_path: Path, x: np.ndarray) -> None:
    kernel = np.random.default_rng(1).normal(size=(2, 2, 4, 3)).astype(np.float32)
    written = Written(tmp_path, x.shape)
    size = written.constant("size", np.array([1, 14, 20, 4], dtype=np.int32))
    filters = written.constant("k", kernel)
    written.node("Conv2DBackpropInput", size, filters, "x", padding=SAME, strides=STRIDE_2)
    expected = np.zeros((1, 14, 20, 4), dtype=np.float32)
    for row in range(7):
        for column in range(10):
            spread = np.einsum("hwoc,c->hwo", kernel, x[0, row, column])
            expected[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += spread
    assert written.run(x)[0] == pytest.approx(expected, abs=1e-5)


def test_padding_splitting_and_joining_keep_every_number(tmp_path: Path, x: np.ndarray) -> None:
    written = Written(tmp_path, x.shape)
    amounts = written.constant("p", np.array([[0, 0], [1, 2], [3, 0], [0, 1]], dtype=np.int32))
    written.node("Pad", "x", amounts, name="padded")
    sizes = written.constant("sizes", np.array([1, 3], dtype=np.int32))
    axis = written.constant("axis", np.array(3, dtype=np.int32))
    written.node("SplitV", "padded", sizes, axis, name="parts")
    written.node("ConcatV2", "parts:1", "parts", axis)
    padded = np.pad(x, [(0, 0), (1, 2), (3, 0), (0, 1)])
    expected = np.concatenate([padded[..., 1:], padded[..., :1]], axis=3)
    assert np.array_equal(written.run(x)[0], expected)


def test_shapes_that_are_computed_of_constants_are_known(tmp_path: Path, x: np.ndarray) -> None:
    written = Written(tmp_path, x.shape)
    places = written.constant("places", np.zeros((0, 1), dtype=np.int32))
    length = written.constant("length", np.array([2], dtype=np.int32))
    values = written.constant("values", np.zeros(0, dtype=np.int32))
    zero = written.constant("zero", np.array(0, dtype=np.int32))
    written.node("SparseToDense", places, length, values, zero, name="nothing")
    shape = written.constant("shape", np.array([70, 3], dtype=np.int32))
    written.node("Add", shape, "nothing", name="same")
    written.node("Reshape", "x", "same")
    assert np.array_equal(written.run(x)[0], x.reshape(70, 3))


def test_weights_in_fewer_bits_are_unpacked(tmp_path: Path) -> None:
    written = Written(tmp_path, (1, 3))
    packed = np.array([0, 100, 255], dtype=np.uint8)
    written.constant("w", packed)
    written.weights[-1] |= {
        "dtype": "float32",
        "quantization": {"dtype": "uint8", "scale": 0.5, "min": -3.0},
    }
    written.node("Mul", "x", "w")
    assert written.run(np.ones((1, 3), np.float32))[0].tolist() == [[-3.0, 47.0, 124.5]]


def test_what_is_not_known_is_refused_by_its_name(tmp_path: Path, x: np.ndarray) -> None:
    written = Written(tmp_path, x.shape)
    written.node("Cholesky", "x")
    with pytest.raises(FormatNotAllowed, match="Cholesky"):
        written.convert()


def test_a_loop_a_missing_input_and_cut_weights_are_refused(tmp_path: Path, x: np.ndarray) -> None:
    loop = Written(tmp_path, x.shape)
    loop.node("Relu", "z")
    loop.node("Relu", "y", name="z")
    missing = Written(tmp_path, x.shape)
    missing.node("Relu", "nowhere")
    cut = Written(tmp_path, (1, 3))
    cut.constant("w", np.ones(3, np.float32))
    cut.node("Mul", "x", "w")
    cut.data = cut.data[:-1]
    long = Written(tmp_path, (1, 3))
    long.node("Relu", "x")
    long.data = b"more"
    for written in (loop, missing, cut, long):
        with pytest.raises(InvalidInput):
            written.convert()


def test_what_is_no_graph_model_is_refused(tmp_path: Path) -> None:
    path, weights = tmp_path / "m.json", tmp_path / "w.bin"
    weights.write_bytes(b"")
    for data in (b"", b"[]", b"{}", b'{"modelTopology": 3}', b"\xff"):
        path.write_bytes(data)
        with pytest.raises(InvalidInput):
            convert_graph_model(path, weights, tmp_path / "m.onnx")


def test_the_same_network_in_tensorflow_lite_gives_the_same_mask(tmp_path: Path) -> None:
    litert = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="pip install 'wherry[tflite]'"
    )
    sources = recipe_sources(SELFIE)
    convert_graph_model(sources[DESCRIPTION], sources[WEIGHTS], tmp_path / "m.onnx")
    lite = fetch_member(
        "mediapipe==0.10.14",
        "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite",
        SELFIE_LITE_SHA256,
    )
    with Image.open(photo("astronaut")) as picture:
        small = np.asarray(picture.convert("RGB").resize((256, 256)))
    numbers = (small[np.newaxis] / 255).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    found = session.run(None, {session.get_inputs()[0].name: numbers})[0]
    interpreter = litert.Interpreter(model_path=str(lite), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], numbers)
    interpreter.invoke()
    expected = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    # both hold weights of 16 bits, rounded by different tools
    difference = np.abs(found - expected)
    assert difference.mean() < 1e-3
    assert difference.max() < 0.1
    assert 0.4 < (found > 0.5).mean() < 0.7, "the astronaut fills half of the picture"


SELFIE_LITE_SHA256 = "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c"
