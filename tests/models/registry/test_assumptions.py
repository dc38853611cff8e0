"""Whoever imports a model is told what was taken for granted of it, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tiny_translators import write_generation_config, write_onnx_pair, write_tokenizer

from wherry.models.bundle import encode_manifest
from wherry.models.registry.assumptions import find_assumptions
from wherry.models.registry.detect import detect, list_model_paths

onnx = pytest.importorskip("onnx")
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def write_graph(path: Path, name: str, shape: list[Any], kind: int = FLOAT) -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [name], ["out"])],
        "g",
        [value(name, kind, shape)],
        [value("out", kind, shape)],
    )
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


def assumed(folder: Path, **wishes: Any) -> str:
    manifest = detect(folder, **wishes)
    found = find_assumptions(manifest, list_model_paths(folder), wishes.get("options", {}))
    return "\n".join(found)


def test_a_lone_graph_of_pictures_is_told_its_colours_and_how_to_say_others(tmp_path: Path):
    write_graph(tmp_path / "net.onnx", "x", ["n", 224, 224, 3])
    found = assumed(tmp_path, task="image-classification", labels=["a", "b"])
    assert "RGB, from 0 to 1" in found
    assert "-p channel_order=BGR" in found
    assert "stretched" in found
    said = {"channel_order": "BGR", "image_fit": "crop"}
    assert assumed(tmp_path, task="image-classification", labels=["a", "b"], options=said) == ""


def test_classes_without_names_are_told(tmp_path: Path):
    write_graph(tmp_path / "net.onnx", "x", ["n", 3, 8, 8])
    assert "--labels" in assumed(tmp_path, task="image-classification")


@pytest.mark.parametrize(
    ("name", "shape", "kind", "told"),
    [
        ("x", ["n", 3, 8, 8], FLOAT, "--task image-classification"),
        ("x", ["n", 8, 8, 3], FLOAT, "--task image-classification"),
        ("input_ids", ["n", "tokens"], INT64, "tokenizer.json"),
        ("x", ["n", 4], FLOAT, ""),
    ],
)
def test_a_graph_of_plain_numbers_that_could_do_more_says_so(
    tmp_path: Path, name: str, shape: list[Any], kind: int, told: str
):
    write_graph(tmp_path / "net.onnx", name, shape, kind)
    found = assumed(tmp_path)
    assert told in found
    assert bool(found) == bool(told)


def test_vectors_without_a_word_on_their_pooling_are_told(tmp_path: Path):
    write_graph(tmp_path / "onnx" / "model.onnx", "input_ids", ["n", "tokens"], INT64)
    write_tokenizer(tmp_path)
    assert "'mean'" in assumed(tmp_path, task="feature-extraction")
    said = {"pooling": "cls"}
    assert assumed(tmp_path, task="feature-extraction", options=said) == ""


def test_precisions_that_were_left_out_are_named(tmp_path: Path):
    write_onnx_pair(tmp_path, "merged")
    write_tokenizer(tmp_path)
    write_generation_config(tmp_path)
    for path in list(tmp_path.glob("*.onnx")):
        path.with_stem(path.stem + "_fp16").write_bytes(path.read_bytes())
    found = assumed(tmp_path)
    assert "the model is encoder_model.onnx" in found
    assert "encoder_model_fp16.onnx" in found


def test_of_what_the_owner_wrote_nothing_is_assumed(tmp_path: Path):
    write_graph(tmp_path / "net.onnx", "x", ["n", 3, 8, 8])
    manifest = detect(tmp_path, task="image-classification")
    (tmp_path / "wherry.toml").write_text(encode_manifest(manifest))
    assert assumed(tmp_path) == ""


def test_how_boxes_are_read_is_told_unless_it_was_said(tmp_path: Path):
    write_graph(tmp_path / "net.onnx", "x", ["n", 3, 8, 8])
    said = {"family": "yolov8"}
    assert "family" not in assumed(tmp_path, task="object-detection", options=said)
    model = onnx.load(str(tmp_path / "net.onnx"))
    for name in ("logits", "pred_boxes"):
        model.graph.node.append(onnx.helper.make_node("Identity", ["x"], [name]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, FLOAT, ["n", 5, 4]))
    onnx.save(model, str(tmp_path / "net.onnx"))
    assert "those of 'detr'" in assumed(tmp_path, task="object-detection")


def test_a_forecaster_that_says_nothing_of_its_errors_is_told_so(tmp_path: Path):
    write_graph(tmp_path / "net.onnx", "x", ["n", 24])
    found = assumed(tmp_path, task="time-series-forecasting")
    assert "every quantile is the mean" in found
    assert "scaling" in found
    said = {"errors": [0.1], "scaling": "last"}
    assert assumed(tmp_path, task="time-series-forecasting", options=said) == ""
