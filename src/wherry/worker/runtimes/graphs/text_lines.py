# pyright: standard
"""Lines of text in a picture: from a map of where text is to their corners, and cut out upright.

The map is that of DB (Liao et al. 2019, Differentiable Binarization): the heart of each line, which
is grown by `growth` times its area by its circumference. Steps and numbers are PaddleOCR's.
"""

from __future__ import annotations

from typing import Any

import cv2
import msgspec
import numpy as np

from wherry.worker.runtimes.graphs.graph import Array

LEAST_SIDE = 3.0
"""Of a heart, in pixels of the map; a grown one has 2 more."""
SAME_LINE = 10.0
"""How far apart, in pixels, lines may begin and still be read as one row."""
STANDING = 1.5
"""A cut this many times as high as wide holds a line that runs from top to bottom."""


class LineOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that says what a line is."""

    map_threshold: float = 0.3
    """A pixel of the map with less is no text."""
    line_threshold: float = 0.5
    """A heart whose mean is less is no line."""
    growth: float = 1.6
    max_lines: int = 1000


def find_lines(text_map: Array, size: tuple[int, int], options: LineOptions) -> list[Array]:
    """Corners float32 [4, 2] of each line, in reading order, in pixels of a picture of `size`.

    Args:
        text_map: float32 [height, width], 0 to 1.
        size: Height and width of the picture that the map is of.
        options: What a line is.
    """
    hearts = (text_map > options.map_threshold).astype(np.uint8)
    hearts = cv2.dilate(hearts, np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(hearts, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    factors = np.array((size[1] / text_map.shape[1], size[0] / text_map.shape[0]), dtype=np.float32)
    found: list[Array] = []
    for contour in contours[: options.max_lines]:
        corners = _line_of(contour, text_map, options)
        if corners is not None:
            placed = np.clip(np.round(corners * factors), 0, (size[1] - 1, size[0] - 1))
            if min(_sides(placed)) > LEAST_SIDE:
                found.append(placed.astype(np.float32))
    return _in_reading_order(found)


def _line_of(contour: Any, text_map: Array, options: LineOptions) -> Array | None:
    centre, (width, height), angle = cv2.minAreaRect(contour)
    if min(width, height) < LEAST_SIDE:
        return None
    heart = _corners(((centre), (width, height), angle))
    if _mean_inside(text_map, heart) < options.line_threshold:
        return None
    distance = width * height * options.growth / (2 * (width + height))
    return _corners((centre, (width + 2 * distance, height + 2 * distance), angle))


def _corners(rectangle: Any) -> Array:
    """Clockwise from the top left."""
    points = cv2.boxPoints(rectangle)
    by_x = points[np.argsort(points[:, 0], kind="stable")]
    left, right = (each[np.argsort(each[:, 1], kind="stable")] for each in (by_x[:2], by_x[2:]))
    return np.stack([left[0], right[0], right[1], left[1]])


def _mean_inside(text_map: Array, corners: Array) -> float:
    height, width = text_map.shape
    low = np.clip(np.floor(corners.min(axis=0)), 0, (width - 1, height - 1)).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)), 0, (width - 1, height - 1)).astype(int)
    mask = np.zeros((high[1] - low[1] + 1, high[0] - low[0] + 1), np.uint8)
    cv2.fillPoly(mask, [(corners - low).astype(np.int32)], 1)
    return cv2.mean(text_map[low[1] : high[1] + 1, low[0] : high[0] + 1], mask)[0]


def _sides(corners: Array) -> tuple[float, float]:
    """Length and height of a line."""
    top_left, top_right, _, bottom_left = corners
    return (
        float(np.linalg.norm(top_right - top_left)),
        float(np.linalg.norm(bottom_left - top_left)),
    )


def _in_reading_order(lines: list[Array]) -> list[Array]:
    """From top to bottom; what begins at nearly one height, from left to right."""
    waiting = sorted(lines, key=lambda corners: (corners[0, 1], corners[0, 0]))
    ordered: list[Array] = []
    while waiting:
        top = waiting[0][0, 1]
        row = [each for each in waiting if each[0, 1] - top < SAME_LINE]
        ordered += sorted(row, key=lambda corners: corners[0, 0])
        waiting = waiting[len(row) :]
    return ordered


def cut_out(picture: Array, corners: Array) -> Array:
    """The line alone, upright and level: uint8 [height, width, 3]; a standing one is laid down."""
    top_left, top_right, bottom_right, bottom_left = corners
    width = int(
        max(np.linalg.norm(top_left - top_right), np.linalg.norm(bottom_right - bottom_left))
    )
    height = int(
        max(np.linalg.norm(top_left - bottom_left), np.linalg.norm(top_right - bottom_right))
    )
    width, height = max(1, width), max(1, height)
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    level = cv2.warpPerspective(
        picture,
        cv2.getPerspectiveTransform(corners, target),
        (width, height),
        borderMode=cv2.BORDER_REPLICATE,
        flags=cv2.INTER_CUBIC,
    )
    return np.rot90(level) if height >= STANDING * width else level
