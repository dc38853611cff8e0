"""Detectors and classifiers whose graph says how it is fed and read: by its outputs, or its exporter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from wherry.models.trust.onnx import OnnxModel

OPTIONS_BY_OUTPUTS: tuple[tuple[frozenset[str], Mapping[str, Any]], ...] = (
    (frozenset({"detection_boxes", "detection_classes", "detection_scores"}), {"family": "ssd"}),
    (frozenset({"logits", "pred_boxes"}), {"family": "detr", "max_overlap": 1.0}),
)
ULTRALYTICS_TASKS = {"detect": "object-detection", "classify": "image-classification"}
LETTERBOX = {"pixel_scale": 1 / 255, "image_fit": "pad", "pad_value": 114}
"""How Ultralytics fits pictures for its detectors: grey at both sides."""
PICTURE_TASKS = frozenset(
    {
        "image-classification",
        "image-feature-extraction",
        "image-segmentation",
        "keypoint-detection",
        "object-detection",
        "zero-shot-image-classification",
    }
)
CHOSEN_WIDTH = 6
"""Of a table of boxes that the graph has chosen itself; no family reads it."""


class Exported(msgspec.Struct, frozen=True):
    """What a graph says of itself; empty where it says nothing."""

    task: str = ""
    options: Mapping[str, Any] = {}


def read_exporter(model: OnnxModel, task: str | None) -> Exported:
    """The task, and the options for it.

    Args:
        model: the graph.
        task: that the importer wants; None leaves it to the graph.
    """
    found = _ultralytics(model)
    if found.task and task in (None, found.task):
        return found
    return Exported(options={**_pixel_options(model, task), **_output_options(model, task)})


def _pixel_options(model: OnnxModel, task: str | None) -> dict[str, Any]:
    """A graph that takes whole numbers takes pixels as they are."""
    takes_bytes = [each.datatype for each in model.signature.inputs] == ["UINT8"]
    return {"pixel_scale": 1.0} if takes_bytes and task in PICTURE_TASKS else {}


def _output_options(model: OnnxModel, task: str | None) -> Mapping[str, Any]:
    names = {each.name.partition(":")[0] for each in model.signature.outputs}
    found = (options for outputs, options in OPTIONS_BY_OUTPUTS if outputs <= names)
    return next(found, {}) if task == "object-detection" else {}


def _ultralytics(model: OnnxModel) -> Exported:
    """Its exporter writes `task`, `names`, `imgsz` and a description into the graph."""
    if "Ultralytics" not in model.metadata.get("description", ""):
        return Exported()
    task = ULTRALYTICS_TASKS.get(model.metadata.get("task", ""), "")
    if task == "image-classification":
        return Exported(task, {"pixel_scale": 1 / 255, "image_fit": "crop"})
    family = _family_of(model) if task else ""
    return Exported(task, {"family": family, **LETTERBOX}) if family else Exported()


def _family_of(model: OnnxModel) -> str:
    """Older ones have a row a place, newer ones a column."""
    shapes = [each.shape for each in model.signature.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][2] == CHOSEN_WIDTH:
        return ""
    rows, columns = shapes[0][1:]  # -1: as many as the picture's size gives
    if rows > 0 and (columns < 0 or rows < columns):
        return "yolov8"
    return "yolov5" if columns > 0 else ""
