"""The task `object-detection`: a picture in, what is on it and where out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.fields import read_integer, read_number
from wherry.models.tasks.image import ImageInput, ImageTask, image_spec
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, Tensors, TensorSpec

MAX_BOXES = 1000
"""Most boxes of one picture."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class DetectionInput(msgspec.Struct):
    """One picture, and what the client wants to be told of it."""

    picture: ImageInput
    threshold: float | None = None
    """Least score of a box, 0 to 1; None takes the bundle's."""
    max_boxes: int | None = None
    """Most boxes, the best first; None takes the bundle's."""


class Detection(TaskOutput, kw_only=True):
    """Boxes on one picture, the surest first."""

    labels: tuple[str, ...]
    """What each box holds."""
    scores: np.ndarray
    """float32 [boxes], 0 to 1."""
    boxes: np.ndarray
    """float32 [boxes, 4]: xmin, ymin, xmax, ymax in pixels of the client's picture, upright."""
    size: tuple[int, int]
    """Height and width of that picture."""


class ObjectDetection:
    """A picture in, labelled boxes out."""

    name = "object-detection"
    media = "image"
    input_type = DetectionInput
    output_type = Detection

    def __init__(self) -> None:
        self._pictures = ImageTask()

    def signature(self, config: TaskConfig) -> Signature:
        """Pictures in; as many boxes a picture as the fullest has, and how many are real, out."""
        outputs = (
            TensorSpec("boxes", "FP32", (-1, -1, 4)),
            TensorSpec("scores", "FP32", (-1, -1)),
            TensorSpec("labels", "BYTES", (-1, -1)),
            TensorSpec("count", "INT32", (-1,)),
        )
        return Signature((image_spec(config),), outputs)

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[DetectionInput]:
        """One item for each row of `image`."""
        return [DetectionInput(each) for each in self._pictures.from_tensors(tensors, config)]

    def to_tensors(self, outputs: Sequence[Detection], config: TaskConfig) -> dict[str, np.ndarray]:
        """Rows with fewer boxes than the fullest end in zeros and empty labels."""
        count = np.array([len(each.scores) for each in outputs], dtype=np.int32)
        shape = (len(outputs), int(count.max(initial=0)))
        boxes, scores = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.float32)
        labels = np.full(shape, b"", dtype=object)
        for row, output in enumerate(outputs):
            boxes[row, : count[row]] = output.boxes
            scores[row, : count[row]] = output.scores
            labels[row, : count[row]] = [label.encode() for label in output.labels]
        return {"boxes": boxes, "scores": scores, "labels": labels, "count": count}

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> DetectionInput:
        """`{"image": X, "threshold": 0.3, "max_boxes": 100}`, the last two as one likes."""
        return DetectionInput(
            self._pictures.from_plain(body, config),
            read_number(body, "threshold", 0, 1),
            read_integer(body, "max_boxes", 1, MAX_BOXES),
        )

    def to_plain(self, output: Detection, config: TaskConfig) -> dict[str, Any]:
        """`{"objects": [{"label", "score", "box": {"xmin", "ymin", "xmax", "ymax"}}], …}`."""
        found = zip(
            output.labels,
            shortest_floats(output.scores),
            np.round(output.boxes.astype(np.float64), 2).tolist(),
            strict=True,
        )
        return {
            "objects": [
                {"label": label, "score": score, "box": dict(zip(CORNERS, box, strict=True))}
                for label, score, box in found
            ],
            "height": output.size[0],
            "width": output.size[1],
        }


OBJECT_DETECTION = ObjectDetection()
