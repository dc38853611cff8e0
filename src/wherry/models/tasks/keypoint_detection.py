"""The task `keypoint-detection`: a picture in, the named joints of each body in it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.image import ImageTask, image_spec
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, TensorSpec


class Pose(msgspec.Struct):
    """One body."""

    score: float
    """0 to 1: how sure the model is that there is one."""
    points: np.ndarray
    """float32 [joints, 2]: x and y in pixels of the client's picture. A joint that the picture does
    not show may be placed outside it."""
    scores: np.ndarray
    """float32 [joints], 0 to 1: how sure the model is of each."""


class KeypointDetection(TaskOutput, kw_only=True):
    """The bodies of one picture, the surest first."""

    joints: tuple[str, ...]
    """Names, in the order of every pose's points."""
    poses: list[Pose]


class KeypointDetectionTask(ImageTask):
    """A picture in, joints out."""

    name = "keypoint-detection"
    output_type = KeypointDetection

    def signature(self, config: TaskConfig) -> Signature:
        """Pictures in; scores of poses, and x, y and score of their joints out."""
        outputs = (
            TensorSpec("scores", "FP32", (-1, -1)),
            TensorSpec("keypoints", "FP32", (-1, -1, len(config.labels) or -1, 3)),
        )
        return Signature((image_spec(config),), outputs)

    def to_tensors(
        self, outputs: Sequence[KeypointDetection], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """A row a picture, filled up with poses of score 0."""
        most = max((len(output.poses) for output in outputs), default=0)
        joints = len(outputs[0].joints) if outputs else len(config.labels)
        scores = np.zeros((len(outputs), most), dtype=np.float32)
        keypoints = np.zeros((len(outputs), most, joints, 3), dtype=np.float32)
        for row, output in enumerate(outputs):
            for index, pose in enumerate(output.poses):
                scores[row, index] = pose.score
                keypoints[row, index, :, :2] = pose.points
                keypoints[row, index, :, 2] = pose.scores
        return {"scores": scores, "keypoints": keypoints}

    def to_plain(self, output: KeypointDetection, config: TaskConfig) -> dict[str, Any]:
        """`{"poses": [{"score", "keypoints": {joint: {"x", "y", "score"}}}]}`."""
        return {"poses": [_pose_to_plain(pose, output.joints) for pose in output.poses]}


KEYPOINT_DETECTION = KeypointDetectionTask()


def _pose_to_plain(pose: Pose, joints: Sequence[str]) -> dict[str, Any]:
    columns = (pose.points[:, 0], pose.points[:, 1], pose.scores)
    return {
        "score": pose.score,
        "keypoints": {
            joint: {"x": x, "y": y, "score": score}
            for joint, x, y, score in zip(joints, *map(shortest_floats, columns), strict=True)
        },
    }
