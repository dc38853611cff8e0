"""The task `face-detection`: a picture in, where its faces are out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wherry.models.tasks.face import FACE_SPECS, Face, face_to_plain, faces_to_tensors
from wherry.models.tasks.image import ImageTask, image_spec
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput


class FaceDetection(TaskOutput, kw_only=True):
    """The faces of one picture, the surest first."""

    faces: list[Face]


class FaceDetectionTask(ImageTask):
    """A picture in, faces out."""

    name = "face-detection"
    output_type = FaceDetection

    def signature(self, config: TaskConfig) -> Signature:
        """Pictures in; boxes, scores and landmarks out."""
        return Signature((image_spec(config),), FACE_SPECS)

    def to_tensors(
        self, outputs: Sequence[FaceDetection], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """A row a picture, filled up with faces of score 0."""
        return faces_to_tensors([output.faces for output in outputs])

    def to_plain(self, output: FaceDetection, config: TaskConfig) -> dict[str, Any]:
        """`{"faces": [{"score", "box", "landmarks"}]}`."""
        return {"faces": [face_to_plain(face) for face in output.faces]}


FACE_DETECTION = FaceDetectionTask()
