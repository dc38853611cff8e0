"""What a lone graph of pictures says of itself is found: by its exporter's words, or its outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wherry.models.bundle import Manifest
from wherry.models.registry.detect import detect

onnx = pytest.importorskip("onnx")
FLOAT, UINT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
ULTRALYTICS = {
    "description": "Ultralytics YOLO11n model trained on coco.yaml",
    "names": "{0: 'cat', 1: 'dog'}",
    "stride": "32",
}


def detect_graph(
    folder: Path,
    outputs: dict[str, list[Any]],
    metadata: dict[str, str],
    task: str | None = None,
    kind: int = FLOAT,
) -> Manifest:
    """Of a graph that declares these outputs and nothing else."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["images"], [name]) for name in outputs],
        "g",
        [value("images", kind, [1, 3, 64, 64])],
        [value(name, kind, shape) for name, shape in outputs.items()],
    )
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, metadata)
    (folder / "best.onnx").write_bytes(model.SerializeToString())
    return detect(folder, task=task)


@pytest.mark.parametrize(
    ("shape", "family"),
    [
        ([1, 6, 84], "yolov8"),
        (["batch", 6, "anchors"], "yolov8"),
        ([1, 252, 7], "yolov5"),
        (["batch", "anchors", 7], "yolov5"),
    ],
)
def test_a_detector_of_ultralytics_is_known_by_what_its_exporter_wrote(
    tmp_path: Path, shape: list[Any], family: str
):
    found = detect_graph(tmp_path, {"output0": shape}, ULTRALYTICS | {"task": "detect"})
    assert found.task == "object-detection"
    assert found.labels == ("cat", "dog")
    assert found.options["family"] == family
    assert (found.options["image_fit"], found.options["pad_value"]) == ("pad", 114)


def test_boxes_that_the_graph_has_chosen_are_no_familys(tmp_path: Path):
    metadata = ULTRALYTICS | {"task": "detect"}
    assert detect_graph(tmp_path, {"output0": [1, 300, 6]}, metadata).task == "tensor"


def test_a_classifier_of_ultralytics_is_one(tmp_path: Path):
    found = detect_graph(tmp_path, {"output0": [1, 2]}, ULTRALYTICS | {"task": "classify"})
    assert (found.task, found.labels) == ("image-classification", ("cat", "dog"))
    assert found.options["image_fit"] == "crop"


def test_what_the_importer_wants_wins(tmp_path: Path):
    metadata = ULTRALYTICS | {"task": "detect"}
    found = detect_graph(tmp_path, {"output0": [1, 6, 84]}, metadata, task="tensor")
    assert (found.task, found.options) == ("tensor", {})


@pytest.mark.parametrize(
    ("outputs", "family"),
    [
        (["detection_boxes:0", "detection_scores:0", "detection_classes:0"], "ssd"),
        (["logits", "pred_boxes"], "detr"),
        (["a", "b"], None),
    ],
)
def test_detectors_are_known_by_the_names_of_their_outputs(
    tmp_path: Path, outputs: list[str], family: str | None
):
    shapes = {name: [1, 5, 4] for name in outputs}
    found = detect_graph(tmp_path, shapes, {}, task="object-detection")
    assert found.options.get("family") == family
    assert detect_graph(tmp_path, shapes, {}).options == {}


def test_a_graph_of_whole_numbers_takes_pixels_as_they_are(tmp_path: Path):
    found = detect_graph(tmp_path, {"y": [1, 2]}, {}, task="image-classification", kind=UINT8)
    assert found.options == {"pixel_scale": 1.0}
