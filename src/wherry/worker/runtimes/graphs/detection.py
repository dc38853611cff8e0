# pyright: standard
"""Graphs that find things on pictures."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from wherry.errors import InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.object_detection import MAX_BOXES, Detection, DetectionInput
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput
from wherry.worker.runtimes.graphs.boxes import Boxes, choose_candidates, drop_overlapping
from wherry.worker.runtimes.graphs.detectors import READER_BY_FAMILY, choose_outputs
from wherry.worker.runtimes.graphs.graph import Array, OpenGraph
from wherry.worker.runtimes.graphs.pictures import ONE_PICTURE, PictureModel, Sight
from wherry.worker.runtimes.runtime import Prepared


class DetectionOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    family: str = ""
    """How the outputs are read: a name of `READER_BY_FAMILY`."""
    threshold: float = 0.4
    """Least score of a box, unless the client says another."""
    max_overlap: float = 0.5
    """Most share of their union that two boxes of a label have in common; 1 keeps all."""
    max_boxes: int = 100
    """Most boxes of a picture, unless the client says another number."""


class Search(msgspec.Struct):
    """A picture, and what is wanted of it."""

    sight: Sight
    threshold: float
    max_boxes: int


class DetectionModel(PictureModel):
    """The task `object-detection`."""

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self.options = _read_options(bundle)
        self.read = READER_BY_FAMILY[self.options.family]
        super().__init__(open_graph, bundle)
        first = self.pixels.trial_pictures()[0]
        places = self.read([output[0] for output in self.trial[0]], self.pixels.size_of(first))
        self.labels = _check_labels(bundle, places.scores.shape[1], self.options.family)

    def _choose_outputs(self, bundle: Bundle) -> list[str]:
        return choose_outputs([each.name for each in self.graph.outputs], self.options.family)

    def prepare(self, item: DetectionInput) -> Prepared:
        """The picture as the graph's numbers, and the way back; safe in many threads."""
        search = Search(
            self.see(item.picture),
            self.options.threshold if item.threshold is None else item.threshold,
            item.max_boxes or self.options.max_boxes,
        )
        return Prepared(search, group=search.sight.numbers.shape)

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One run for all pictures, then the boxes of each."""
        searches: list[Search] = [prepared.payload for prepared in batch]
        outputs = self.forward_all_finite([search.sight.numbers for search in searches])
        return [
            self.find([output[row] for output in outputs], search)
            for row, search in enumerate(searches)
        ]

    def find(self, outputs: Sequence[Array], search: Search) -> Detection:
        """What is on one picture."""
        places = self.read(outputs, self.pixels.size_of(search.sight.numbers))
        rows, classes = choose_candidates(places.scores, search.threshold)
        candidates = Boxes(places.boxes_of(rows), places.scores[rows, classes], classes)
        boxes = drop_overlapping(candidates, self.options.max_overlap, search.max_boxes)
        return self._to_client(boxes, search.sight)

    def _label_of(self, number: int) -> str:
        """A graph that names classes by number may know more than its trial showed."""
        return self.labels[number] if number < len(self.labels) else f"LABEL_{number}"

    def _to_client(self, boxes: Boxes, sight: Sight) -> Detection:
        """Boxes in the client's pixels, without what lies outside the picture."""
        corners = sight.frame.to_original(boxes.corners.reshape(-1, 2, 2)).reshape(-1, 4)
        height, width = sight.size
        corners = np.clip(corners, 0, np.array([width, height, width, height], dtype=np.float32))
        is_inside = np.all(corners[:, 2:] > corners[:, :2], axis=1)
        shown = Boxes(corners.astype(np.float32), *boxes[1:]).take(is_inside)
        return Detection(
            labels=tuple(self._label_of(number) for number in shown.classes.tolist()),
            scores=np.clip(shown.scores, 0, 1).astype(np.float32),
            boxes=shown.corners,
            size=sight.size,
            usage=ONE_PICTURE,
        )


def _read_options(bundle: Bundle) -> DetectionOptions:
    options = read_options(bundle.manifest.options, DetectionOptions)
    if options.family not in READER_BY_FAMILY:
        stated = f"the unknown family {options.family!r}" if options.family else "no family"
        raise InvalidInput(
            f"the bundle says {stated} of detectors: how the graph's outputs are read",
            hint="the option 'family' may be " + ", ".join(READER_BY_FAMILY),
        )
    shares = (options.threshold, options.max_overlap)
    if not all(0 <= share <= 1 for share in shares) or not 1 <= options.max_boxes <= MAX_BOXES:
        raise InvalidInput(f"threshold and max_overlap must be 0 to 1, max_boxes 1 to {MAX_BOXES}")
    return options


def _check_labels(bundle: Bundle, count: int, family: str) -> tuple[str, ...]:
    """The bundle's names, or made-up ones; a family that names classes by number may use fewer."""
    labels = bundle.manifest.labels or tuple(f"LABEL_{index}" for index in range(count))
    if len(labels) < count or (len(labels) > count and family != "ssd"):
        raise InvalidInput(f"the bundle names {len(labels)} labels, the model tells {count} apart")
    return labels
