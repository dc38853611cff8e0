# pyright: standard
"""Boxes on pictures: which of them show the same thing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wherry.worker.runtimes.graphs.graph import Array

MAX_CANDIDATES = 1000
"""Most boxes that are compared with one another: every pair is looked at."""


class Boxes(NamedTuple):
    """Boxes of one picture."""

    corners: Array
    """float32 [boxes, 4]: xmin, ymin, xmax, ymax."""
    scores: Array
    """float32 [boxes]."""
    classes: Array
    """int64 [boxes]."""

    def take(self, index: Array) -> Boxes:
        """Some of them."""
        return Boxes(self.corners[index], self.scores[index], self.classes[index])


def choose_candidates(scores: Array, threshold: float) -> tuple[Array, Array]:
    """Which boxes hold what surely enough: row and class of each pair, the surest first.

    Args:
        scores: float32 [boxes, classes]; a box counts once for each class.
        threshold: least score.
    """
    places, classes = np.nonzero(scores >= threshold)
    order = np.argsort(-scores[places, classes], kind="stable")[:MAX_CANDIDATES]
    return places[order], classes[order]


def drop_overlapping(boxes: Boxes, max_overlap: float, most: int) -> Boxes:
    """Boxes, the surest first, of which none lies on a surer one of its class; see `keep_apart`."""
    return boxes.take(keep_apart(boxes, max_overlap, most))


def keep_apart(boxes: Boxes, max_overlap: float, most: int) -> Array:
    """Which boxes do not lie on a surer one of their class: int64, the surest first.

    Args:
        boxes: The surest first.
        max_overlap: Most share of their union that two boxes of a class have in common.
        most: Most boxes that are kept.
    """
    covers = (overlaps(boxes.corners) > max_overlap) & (
        boxes.classes[:, np.newaxis] == boxes.classes
    )
    is_free = np.ones(len(boxes.scores), dtype=bool)
    kept: list[int] = []
    for index in range(len(is_free)):
        if is_free[index]:
            kept.append(index)
            if len(kept) == most:
                break
            is_free &= ~covers[index]
    return np.array(kept, dtype=np.int64)


def overlaps(corners: Array) -> Array:
    """What every two boxes have in common, as a share of their union: float32 [boxes, boxes]."""
    low = np.maximum(corners[:, np.newaxis, :2], corners[:, :2])
    high = np.minimum(corners[:, np.newaxis, 2:], corners[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=2)
    areas = np.prod(np.maximum(corners[:, 2:] - corners[:, :2], 0), axis=1)
    union = areas[:, np.newaxis] + areas - common
    return common / np.maximum(union, 1e-9)


def from_centres(boxes: Array) -> Array:
    """Boxes as x and y of the centre, width, height, [..., 4], as corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=-1)
