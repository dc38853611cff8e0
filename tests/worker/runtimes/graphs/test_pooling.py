"""Pooling and dense layers against the formulas of sentence-transformers, written out."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wherry.errors import FormatNotAllowed
from wherry.models.bundle import Bundle, Manifest
from wherry.worker.runtimes.graphs.pooling import DenseLayer, Pooling, pool

TOKENS = np.array([[[1.0, -4], [3, 2], [99, 99]], [[5, 5], [7, -1], [9, 0]]], dtype=np.float32)
MASK = np.array([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", [[2, -1], [7, 4 / 3]]),
        ("cls", [[1, -4], [5, 5]]),
        ("last", [[3, 2], [9, 0]]),
        ("max", [[3, 2], [9, 5]]),
        ("mean_sqrt_len", [[4 / 2**0.5, -2 / 2**0.5], [21 / 3**0.5, 4 / 3**0.5]]),
        ("weightedmean", [[7 / 3, 0], [(5 + 14 + 27) / 6, 3 / 6]]),
    ],
)
def test_padding_counts_in_no_way_of_pooling(pooling: Pooling, expected: list[list[float]]):
    assert np.allclose(pool(TOKENS, MASK, pooling), expected)


def write_layer(folder: Path, activation: str, **tensors: Any) -> Bundle:
    (folder / "2_Dense").mkdir()
    config = {"activation_function": f"torch.nn.modules.activation.{activation}"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    data = b""
    for name, array in tensors.items():
        block = np.asarray(array, dtype="<f4")
        end = len(data) + block.nbytes
        header[f"linear.{name}"] = {
            "dtype": "F32",
            "shape": list(block.shape),
            "data_offsets": [len(data), end],
        }
        data += block.tobytes()
    head = json.dumps(header).encode()
    (folder / "2_Dense" / "model.safetensors").write_bytes(
        struct.pack("<Q", len(head)) + head + data
    )
    return Bundle(folder, Manifest(task="feature-extraction", runtime="onnx"))


def test_a_dense_layer_is_a_product_a_sum_and_an_activation(tmp_path: Path):
    bundle = write_layer(tmp_path, "Tanh", weight=[[1, 0], [0, 2], [1, 1]], bias=[0.5, 0, -1])
    rows = np.array([[1, 2], [0, -1]], dtype=np.float32)
    expected = np.tanh([[1.5, 4, 2], [0.5, -2, -2]])
    assert np.allclose(DenseLayer(bundle, "2_Dense")(rows), expected, atol=1e-6)
    with pytest.raises(FormatNotAllowed, match="2 numbers"):
        DenseLayer(bundle, "2_Dense")(np.zeros((1, 3), dtype=np.float32))


def test_a_dense_layer_may_have_no_bias(tmp_path: Path):
    layer = DenseLayer(write_layer(tmp_path, "Identity", weight=[[2, 0]]), "2_Dense")
    assert layer(np.array([[3, 1]], dtype=np.float32)).tolist() == [[6]]


@pytest.mark.parametrize(
    ("activation", "tensors"), [("Softmax", {"weight": [[1.0]]}), ("Tanh", {"bias": [1.0]})]
)
def test_a_layer_that_is_not_known_is_refused(
    tmp_path: Path, activation: str, tensors: dict[str, Any]
):
    with pytest.raises(FormatNotAllowed):
        DenseLayer(write_layer(tmp_path, activation, **tensors), "2_Dense")
