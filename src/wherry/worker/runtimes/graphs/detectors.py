# pyright: standard
"""How families of detectors say what is where: their outputs as scores and boxes.

A reader takes the outputs of one picture, in the graph's order and without the rows. It gives the
score of each class at each place, and a function that computes the boxes of some places: most
places hold nothing, and their boxes are not worth computing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from wherry.errors import FormatNotAllowed
from wherry.worker.runtimes.graphs.boxes import from_centres
from wherry.worker.runtimes.graphs.graph import Array

STRIDES = (8, 16, 32, 64, 128)
"""Pixels from one place to the next, of the first map and its coarser ones."""

Size = tuple[int, int]
"""Height and width of the graph's picture."""


class Places(NamedTuple):
    """Where something may be on one picture."""

    scores: Array
    """float32 [places, classes]."""
    boxes_of: Callable[[Array], Array]
    """Numbers of places → their boxes in the graph's pixels, float32 [n, 4], as corners."""


Reader = Callable[[Sequence[Array], Size], Places]


def read_distances(outputs: Sequence[Array], size: Size) -> Places:
    """NanoDet, PicoDet: at each place of each map a chance for each distance to each side.

    Of one map, the scores come before the distances. A distance is its expected value, in steps of
    the map's stride, from the middle of the place.
    """
    maps = _pair_maps(outputs, size)
    scores = np.concatenate([each.scores for each in maps])
    starts = np.cumsum([0, *(len(each.scores) for each in maps)])

    def boxes_of(places: Array) -> Array:
        boxes = np.empty((len(places), 4), dtype=np.float32)
        number = np.searchsorted(starts, places, side="right") - 1
        for index, each in enumerate(maps):
            here = number == index
            boxes[here] = each.boxes_of(places[here] - starts[index])
        return boxes

    return Places(scores, boxes_of)


class _Map(NamedTuple):
    """One resolution of a detector."""

    scores: Array
    distances: Array
    stride: int
    columns: int

    def boxes_of(self, places: Array) -> Array:
        bins = self.distances.shape[1] // 4
        chances = self.distances[places].reshape(-1, 4, bins)
        powers = np.exp(chances - chances.max(axis=2, keepdims=True))
        steps = powers @ np.arange(bins, dtype=np.float32) / powers.sum(axis=2)
        rows, columns = np.divmod(places, self.columns)
        middle = np.stack([columns, rows, columns, rows], axis=1) + np.float32(0.5)
        signs = np.array([-1, -1, 1, 1], dtype=np.float32)
        return ((middle + signs * steps) * self.stride).astype(np.float32)


def _pair_maps(outputs: Sequence[Array], size: Size) -> list[_Map]:
    by_places: dict[int, list[Array]] = {}
    for output in outputs:
        if output.ndim != 2:
            raise _unfit("gives an output that is not [places, numbers]")
        by_places.setdefault(len(output), []).append(output)
    found: list[_Map] = []
    for stride, places in zip(STRIDES, sorted(by_places, reverse=True), strict=False):
        rows, columns = (-(-side // stride) for side in size)
        pair = by_places[places]
        if places != rows * columns or len(pair) != 2 or pair[1].shape[1] % 4:
            raise _unfit(f"gives maps that are not scores and distances at each {stride} pixels")
        found.append(_Map(pair[0], pair[1], stride, columns))
    return found


def read_yolov5(outputs: Sequence[Array], size: Size) -> Places:
    """YOLOv5 and its kin: [places, 5 + classes]; the fifth is whether there is anything."""
    table = outputs[0]
    if table.ndim != 2 or table.shape[1] < 6:
        raise _unfit("gives no [places, 5 + classes]")
    return Places(table[:, 5:] * table[:, 4:5], lambda places: from_centres(table[places, :4]))


def read_yolov8(outputs: Sequence[Array], size: Size) -> Places:
    """YOLOv8 and its kin: [4 + classes, places]."""
    if outputs[0].ndim != 2 or len(outputs[0]) < 5:
        raise _unfit("gives no [4 + classes, places]")
    table = outputs[0].T
    return Places(table[:, 4:], lambda places: from_centres(table[places, :4]))


def read_detr(outputs: Sequence[Array], size: Size) -> Places:
    """DETR: logits [places, classes + 1], the last for nothing; boxes as shares of the picture."""
    by_width = sorted((each for each in outputs if each.ndim == 2), key=lambda each: each.shape[1])
    boxes = next((each for each in by_width if each.shape[1] == 4), None)
    logits = next((each for each in by_width if each is not boxes and each.shape[1] > 1), None)
    if boxes is None or logits is None or len(boxes) != len(logits):
        raise _unfit("gives no logits [places, classes + 1] and boxes [places, 4]")
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (powers / powers.sum(axis=1, keepdims=True))[:, :-1]
    corners = from_centres(boxes) * _sides(size)
    return Places(scores, lambda places: corners[places])


SSD_OUTPUTS = ("detection_boxes", "detection_classes", "detection_scores")
"""As TensorFlow's object detection API calls them."""


def read_ssd(outputs: Sequence[Array], size: Size) -> Places:
    """SSD as TensorFlow post-processes it: boxes, then classes, then scores.

    Boxes are [places, 4]: ymin, xmin, ymax, xmax as shares of the picture.
    """
    boxes = next((each for each in outputs if each.ndim == 2 and each.shape[1] == 4), None)
    lists = [each for each in outputs if each.ndim == 1]
    if boxes is None or len(lists) < 2 or {len(each) for each in lists[:2]} != {len(boxes)}:
        raise _unfit("gives no boxes [places, 4], classes [places] and scores [places]")
    classes = np.clip(lists[0], 0, None).astype(np.int64)
    scores = np.zeros((len(boxes), int(classes.max(initial=0)) + 1), dtype=np.float32)
    scores[np.arange(len(boxes)), classes] = lists[1]
    corners = boxes[:, [1, 0, 3, 2]] * _sides(size)
    return Places(scores, lambda places: corners[places])


def _sides(size: Size) -> Array:
    height, width = size
    return np.array([width, height, width, height], dtype=np.float32)


def _unfit(what: str) -> FormatNotAllowed:
    return FormatNotAllowed(
        f"the graph {what}", hint="the bundle's option 'family' says how its outputs are read"
    )


def choose_outputs(names: Sequence[str], family: str) -> list[str]:
    """Which outputs a family reads: all, but for those that TensorFlow's detectors have beside."""
    by_name = {name.partition(":")[0]: name for name in names}
    wanted = SSD_OUTPUTS if family == "ssd" and set(SSD_OUTPUTS) <= by_name.keys() else by_name
    return [by_name[name] for name in wanted]


READER_BY_FAMILY: dict[str, Reader] = {
    "nanodet": read_distances,
    "picodet": read_distances,
    "yolov5": read_yolov5,
    "yolov8": read_yolov8,
    "detr": read_detr,
    "ssd": read_ssd,
}
"""What a bundle's option `family` may be → how its outputs are read."""
