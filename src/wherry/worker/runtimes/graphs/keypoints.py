# pyright: standard
"""Graphs that find the joints of a body; how their numbers are read is their `family`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.classification import sigmoid
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.image_fit import Frame
from wherry.models.tasks.keypoint_detection import KeypointDetection, Pose
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput, Usage
from wherry.worker.runtimes.graphs.graph import Array, OpenGraph, trial
from wherry.worker.runtimes.graphs.pixels import Pixels
from wherry.worker.runtimes.runtime import Prepared

FACE = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_JOINTS = (*FACE, *(f"{side}_{limb}" for limb in LIMBS for side in ("left", "right")))
"""17 joints, in the order of COCO's annotations."""
MEDIAPIPE_JOINTS = (
    "nose",
    *(f"{side}_eye{part}" for side in ("left", "right") for part in ("_inner", "", "_outer")),
    *("left_ear", "right_ear", "mouth_left", "mouth_right"),
    *(f"{side}_{limb}" for limb in LIMBS[:3] for side in ("left", "right")),
    *(f"{side}_{each}" for each in ("pinky", "index", "thumb") for side in ("left", "right")),
    *(f"{side}_{limb}" for limb in LIMBS[3:] for side in ("left", "right")),
    *(f"{side}_{each}" for each in ("heel", "foot_index") for side in ("left", "right")),
)
"""33 joints, in the order of MediaPipe's pose landmarks."""

Outputs = Mapping[str, Array]
"""Of one picture, by their names, without the rows."""


class PoseOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    family: Literal["mediapipe", "movenet"]
    """`mediapipe`: landmarks as x, y, z, visibility, presence in pixels of the graph's picture, and
    a score of the pose. `movenet`: y, x, score of 17 joints as shares of the picture."""
    threshold: float = 0.5
    """A pose with a lower score is not told."""


class Found(msgspec.Struct):
    """A pose in pixels of the graph's picture."""

    score: float
    points: Array
    scores: Array


class KeypointModel:
    """The task `keypoint-detection`, for graphs that look at one body."""

    max_batch_rows = 1
    max_batch_cost = 0

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self.graph = open_graph(bundle.main_file)
        self.pixels = Pixels(self.graph.inputs[0], bundle)
        size = self.pixels.options.image_size
        if size is None:
            raise InvalidInput("the bundle says no image_size, and the graph leaves it open")
        self.size = size
        self.options = read_options(bundle.manifest.options, PoseOptions)
        self.read, usual = FAMILIES[self.options.family]
        self.joints = bundle.manifest.labels or usual
        with trial(self.graph):
            self._find(self.pixels.trial_pictures()[0])

    def prepare(self, item: ImageInput) -> Prepared:
        """The picture as the graph's numbers, and the way back; safe in many threads."""
        return Prepared((self.pixels.to_numbers(item), self.pixels.frame_of(item)))

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One run a picture."""
        return [self._answer_one(*prepared.payload) for prepared in batch]

    def _answer_one(self, numbers: Array, frame: Frame) -> TaskOutput:
        found = self._find(numbers)
        if not (np.isfinite(found.points).all() and np.isfinite(found.scores).all()):
            raise ModelFailed("the model answered with numbers that are not finite")
        poses: list[Pose] = []
        if found.score >= self.options.threshold:
            points = frame.to_original(found.points).astype(np.float32)
            poses.append(Pose(found.score, points, found.scores))
        return KeypointDetection(joints=self.joints, poses=poses, usage=Usage(rows=1))

    def _find(self, numbers: Array) -> Found:
        arrays = self.graph.run({self.graph.inputs[0].name: numbers[np.newaxis]})
        names = [each.name for each in self.graph.outputs]
        found = self.read(dict(zip(names, arrays, strict=True)), self.size)
        if len(found.points) != len(self.joints):
            raise FormatNotAllowed(
                f"the model gives {len(found.points)} joints, the bundle names {len(self.joints)}",
                hint="name them all, in the model's order, in `labels`",
            )
        return found


def read_mediapipe(outputs: Outputs, size: tuple[int, int]) -> Found:
    """Landmarks of BlazePose: of 39, the last 6 are for tracking from frame to frame."""
    landmarks = next((each for each in outputs.values() if each.size == 39 * 5), None)
    presence = next((each for each in outputs.values() if each.size == 1), None)
    if landmarks is None or presence is None:
        raise FormatNotAllowed("the graph gives no 39 landmarks and no score of the pose")
    rows = landmarks.reshape(39, 5)[:33].astype(np.float32)
    seen = sigmoid(np.minimum(rows[:, 3], rows[:, 4]))
    return Found(float(presence.reshape(())), rows[:, :2], seen)


def read_movenet(outputs: Outputs, size: tuple[int, int]) -> Found:
    """MoveNet of one body: the score of the pose is the mean of its joints'."""
    rows = next((each for each in outputs.values() if each.size == 17 * 3), None)
    if rows is None:
        raise FormatNotAllowed("the graph gives no 17 joints of y, x and score")
    rows = rows.reshape(17, 3).astype(np.float32)
    height, width = size
    points = rows[:, 1::-1] * np.array((width, height), dtype=np.float32)
    return Found(float(rows[:, 2].mean()), points, rows[:, 2])


FAMILIES: dict[str, tuple[Callable[[Outputs, tuple[int, int]], Found], tuple[str, ...]]] = {
    "mediapipe": (read_mediapipe, MEDIAPIPE_JOINTS),
    "movenet": (read_movenet, COCO_JOINTS),
}
"""Name → how its outputs are read, and what its joints are called."""
