# pyright: standard
"""Graphs that find faces."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.face import LANDMARKS, Face
from wherry.models.tasks.face_detection import FaceDetection
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput
from wherry.worker.runtimes.graphs.boxes import Boxes, choose_candidates, keep_apart
from wherry.worker.runtimes.graphs.graph import Array, OpenGraph
from wherry.worker.runtimes.graphs.pictures import ONE_PICTURE, PictureModel, Sight
from wherry.worker.runtimes.runtime import Prepared

STRIDE = 4
"""Pixels from one place of CenterFace's maps to the next."""
MAPS = (1, 2, 2, 2 * len(LANDMARKS))
"""Channels of its outputs: chance of a middle, logarithm of height and width, offset, landmarks."""
MOST_LOG_SIZE = 10.0
"""A side of e^10 places is beyond any picture; more would overflow."""


class FaceOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    family: str = "centerface"
    """How the outputs are read; the one that is known."""
    threshold: float = 0.5
    """A face with a lower score is not told."""
    overlap: float = 0.3
    """Of two faces that share more of their union than this, the surer one is told."""
    max_faces: int = 500


class FaceModel(PictureModel):
    """The task `face-detection`, by CenterFace (Xu et al., 2019, arXiv:1911.03599)."""

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self.options = read_options(bundle.manifest.options, FaceOptions)
        if self.options.family != "centerface":
            raise InvalidInput(
                f"unknown family {self.options.family!r} of face detectors",
                hint="known: centerface; the runtime opencv reads YuNet",
            )
        super().__init__(open_graph, bundle)
        channels = tuple(found.shape[1] for found in self.trial[0] if found.ndim == 4)
        if channels != MAPS:
            raise FormatNotAllowed(f"CenterFace has maps of {MAPS} channels, these are {channels}")

    def _choose_outputs(self, bundle: Bundle) -> list[str]:
        return [each.name for each in self.graph.outputs]

    def prepare(self, item: ImageInput) -> Prepared:
        """The picture as the graph's numbers, and the way back; safe in many threads."""
        sight = self.see(item)
        return Prepared(sight, group=sight.numbers.shape)

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One run for all pictures, then the faces of each."""
        sights: list[Sight] = [prepared.payload for prepared in batch]
        outputs = self.forward_all_finite([sight.numbers for sight in sights])
        return [
            FaceDetection(
                faces=self._find([output[row] for output in outputs], sight), usage=ONE_PICTURE
            )
            for row, sight in enumerate(sights)
        ]

    def _find(self, outputs: Sequence[Array], sight: Sight) -> list[Face]:
        chances, sizes, offsets, landmarks = outputs
        places, classes = choose_candidates(chances.reshape(-1, 1), self.options.threshold)
        scores = chances.reshape(-1)[places]
        rows, columns = np.divmod(places, chances.shape[-1])
        corners = _read_boxes(rows, columns, sizes, offsets)
        found = Boxes(corners, scores, classes)
        kept = keep_apart(found, self.options.overlap, self.options.max_faces)
        return [
            self._to_client(
                float(scores[index]),
                corners[index],
                _read_landmarks(corners[index], landmarks[:, rows[index], columns[index]]),
                sight,
            )
            for index in kept.tolist()
        ]

    def _to_client(self, score: float, box: Array, points: Array, sight: Sight) -> Face:
        height, width = sight.size
        corners = sight.frame.to_original(box.reshape(2, 2)).reshape(4)
        corners = np.clip(corners, 0, np.array([width, height, width, height], np.float32))
        return Face(min(score, 1.0), corners.astype(np.float32), sight.frame.to_original(points))


def _read_boxes(rows: Array, columns: Array, sizes: Array, offsets: Array) -> Array:
    """float32 [faces, 4]: corners in the graph's pixels."""
    half = np.exp(np.minimum(sizes[:, rows, columns], MOST_LOG_SIZE)) * (STRIDE / 2)
    middle = (np.stack([rows, columns]) + offsets[:, rows, columns] + 0.5) * STRIDE
    (top, left), (bottom, right) = middle - half, middle + half
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


def _read_landmarks(box: Array, shares: Array) -> Array:
    """float32 [5, 2]: x and y, which the model tells as shares of the box, y first."""
    left, top, right, bottom = box
    down, across = shares.reshape(-1, 2).T
    points = np.stack([left + across * (right - left), top + down * (bottom - top)], axis=1)
    return points.astype(np.float32)
