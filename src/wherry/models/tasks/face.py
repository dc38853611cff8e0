"""What the tasks of faces have in common: one face, and faces as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.task import TensorSpec

LANDMARKS = ("right_eye", "left_eye", "nose", "mouth_right", "mouth_left")
"""Of every face; right and left are the person's own."""


class Face(msgspec.Struct):
    """Where one face is, in pixels of the client's picture."""

    score: float
    """0 to 1: how sure the model is that it is one."""
    box: np.ndarray
    """float32 [4]: left, top, right, bottom, within the picture."""
    landmarks: np.ndarray
    """float32 [5, 2]: x and y of `LANDMARKS`."""


FACE_SPECS = (
    TensorSpec("boxes", "FP32", (-1, -1, 4)),
    TensorSpec("scores", "FP32", (-1, -1)),
    TensorSpec("landmarks", "FP32", (-1, -1, len(LANDMARKS), 2)),
)


def faces_to_tensors(pictures: Sequence[Sequence[Face]]) -> dict[str, np.ndarray]:
    """A row a picture, filled up with faces of score 0."""
    most = max(map(len, pictures), default=0)
    boxes = np.zeros((len(pictures), most, 4), dtype=np.float32)
    scores = np.zeros((len(pictures), most), dtype=np.float32)
    landmarks = np.zeros((len(pictures), most, len(LANDMARKS), 2), dtype=np.float32)
    for row, faces in enumerate(pictures):
        for index, face in enumerate(faces):
            boxes[row, index], scores[row, index] = face.box, face.score
            landmarks[row, index] = face.landmarks
    return {"boxes": boxes, "scores": scores, "landmarks": landmarks}


def face_to_plain(face: Face) -> dict[str, Any]:
    """`{"score", "box": {"xmin", …}, "landmarks": {name: {"x", "y"}}}`."""
    sides = shortest_floats(face.box)
    across, down = (shortest_floats(face.landmarks[:, axis]) for axis in (0, 1))
    return {
        "score": face.score,
        "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)),
        "landmarks": {
            name: {"x": x, "y": y} for name, x, y in zip(LANDMARKS, across, down, strict=True)
        },
    }
