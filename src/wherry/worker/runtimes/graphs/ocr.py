# pyright: standard
"""Graphs that read: one finds lines, one may say which are upside down, one reads a line.

The bundle's files are those of PaddleOCR's family: a detector (DB), a recogniser (CTC), and maybe a
classifier of direction. The characters are the bundle's labels, or what the recogniser's file says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.image_fit import ImageOptions, fit_image
from wherry.models.tasks.image_to_text import ImageText, TextLine
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput, Usage
from wherry.worker.runtimes.graphs.graph import Array, Graph, OpenGraph, trial
from wherry.worker.runtimes.graphs.text_lines import LineOptions, cut_out, find_lines
from wherry.worker.runtimes.runtime import Prepared

COLOUR = ImageOptions(image_mode="RGB")
MAX_SIDE = 2000
"""Larger pictures are looked at in this size, in pixels."""
MAX_ASPECT = 8
"""A longer strip gets a border: the detector was not taught such."""
LEAST_HEIGHT = 32
LOOKED_AT = 736
"""The shorter side of what the detector sees, at least."""
STEP = 32
"""Sides of what the detector sees are multiples of it."""
LINE_HEIGHT = 48
LINE_WIDTH = 320
"""Least width of what the recogniser sees."""
DIRECTION_WIDTH = 192
TRIAL_SIDE = 64


class OcrOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here, besides `LineOptions`."""

    threshold: float = 0.5
    """A line of whose characters the model is less sure is not told."""
    turn_threshold: float = 0.9
    """A line is turned round if the classifier is surer than this that it is upside down."""


class OcrModel:
    """The task `image-to-text`, for printed and clearly written text."""

    max_batch_rows = 1
    max_batch_cost = 0

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        files = bundle.manifest.files
        if len(files) not in (2, 3):
            raise FormatNotAllowed(
                f"reading takes 2 or 3 files, the bundle names {len(files)}",
                hint="files = [detector, recogniser, classifier of direction]",
            )
        self.graph = open_graph(bundle.path(files[0]))
        self.reader = open_graph(bundle.path(files[1]))
        self.direction = open_graph(bundle.path(files[2])) if len(files) == 3 else None
        self.options = read_options(bundle.manifest.options, OcrOptions)
        self.line_options = read_options(bundle.manifest.options, LineOptions)
        known = bundle.manifest.labels or self.reader.metadata.get("character", "").splitlines()
        self.characters = ("", *known, " ")  # the first stands for nothing
        self._try_out()

    def _try_out(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (TRIAL_SIDE, TRIAL_SIDE, 3), np.uint8)
        with trial(self.graph):
            find_lines(self._map_of(to_numbers(noise, noise.shape[:2])), (9, 9), self.line_options)
        with trial(self.reader):
            found = self._run(self.reader, line_to_numbers(noise, LINE_WIDTH))
        if found.ndim != 3 or found.shape[2] != len(self.characters):
            raise FormatNotAllowed(
                f"{self.reader.file_name!r} gives {list(found.shape)}, the bundle knows "
                f"{len(self.characters) - 2} characters",
                hint="name them in the model's order in `labels`",
            )
        if self.direction is not None:
            with trial(self.direction):
                self._is_upside_down(noise)

    def prepare(self, item: ImageInput) -> Prepared:
        """The picture as the detector sees it, and as lines are cut from; safe in many threads."""
        picture = fit_image(item.pixels, COLOUR)[:, :, ::-1]  # the models learnt from BGR
        picture = with_border(shrink(picture))
        return Prepared((to_numbers(picture, size_looked_at(picture)), picture, item.size))

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One picture after another."""
        return [self._read(*prepared.payload) for prepared in batch]

    def _read(self, numbers: Array, picture: Array, size: tuple[int, int]) -> TaskOutput:
        height, width = picture.shape[:2]
        lines: list[TextLine] = []
        for corners in find_lines(self._map_of(numbers), (height, width), self.line_options):
            text, score = self._read_line(cut_out(picture, corners))
            if text and score >= self.options.threshold:
                lines.append(TextLine(text, score, to_original(corners, (height, width), size)))
        text = "\n".join(line.text for line in lines)
        return ImageText(text=text, lines=lines, usage=Usage(rows=1))

    def _map_of(self, numbers: Array) -> Array:
        found = self._run(self.graph, numbers)
        if found.ndim != 4 or found.shape[:2] != (1, 1):
            raise FormatNotAllowed(
                f"{self.graph.file_name!r} gives {list(found.shape)}, not a map of where text is",
                hint="files = [detector, recogniser, classifier of direction]",
            )
        return found[0, 0]

    def _read_line(self, line: Array) -> tuple[str, float]:
        """Its text, and the mean certainty of its characters."""
        if self.direction is not None and self._is_upside_down(line):
            line = np.rot90(line, 2)
        width = max(LINE_WIDTH, math.ceil(LINE_HEIGHT * line.shape[1] / line.shape[0]))
        steps = self._run(self.reader, line_to_numbers(line, width))[0]
        return self._decode(steps)

    def _decode(self, steps: Array) -> tuple[str, float]:
        """CTC: a character said on and on is one; between two of a kind, nothing is said."""
        best = steps.argmax(axis=1)
        is_new = np.ones(len(best), dtype=bool)
        is_new[1:] = best[1:] != best[:-1]
        chosen = np.flatnonzero(is_new & (best != 0))
        if not len(chosen):
            return "", 0.0
        text = "".join(self.characters[each] for each in best[chosen])
        return text, float(steps.max(axis=1)[chosen].mean())

    def _is_upside_down(self, line: Array) -> bool:
        assert self.direction is not None
        scores = self._run(self.direction, line_to_numbers(line, DIRECTION_WIDTH))[0]
        return bool(scores[1] > self.options.turn_threshold)

    def _run(self, graph: Graph, numbers: Array) -> Array:
        found = graph.run({graph.inputs[0].name: numbers}, [graph.outputs[0].name])[0]
        if not np.isfinite(found).all():
            raise ModelFailed("the model answered with numbers that are not finite")
        return found


def shrink(picture: Array) -> Array:
    """Within `MAX_SIDE`."""
    height, width = picture.shape[:2]
    scale = MAX_SIDE / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(picture)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def with_border(picture: Array) -> Array:
    """A strip of a line gets black at its bottom or right, until its shape is a usual one."""
    height, width = picture.shape[:2]
    down = max(LEAST_HEIGHT, math.ceil(width / MAX_ASPECT)) - height
    across = max(LEAST_HEIGHT, math.ceil(height / MAX_ASPECT)) - width
    if down <= 0 and across <= 0:
        return picture
    return cv2.copyMakeBorder(picture, 0, max(0, down), 0, max(0, across), cv2.BORDER_CONSTANT)


def size_looked_at(picture: Array) -> tuple[int, int]:
    """Height and width of what the detector sees."""
    height, width = picture.shape[:2]
    scale = max(1.0, LOOKED_AT / min(height, width))
    return tuple(max(STEP, round(side * scale / STEP) * STEP) for side in (height, width))  # pyright: ignore[reportReturnType]


def to_numbers(picture: Array, size: tuple[int, int]) -> Array:
    """float32 [1, 3, height, width], -1 to 1."""
    height, width = size
    resized = cv2.resize(picture, (width, height)).astype(np.float32)
    return np.ascontiguousarray((resized / 255 - 0.5).transpose(2, 0, 1)[np.newaxis] / 0.5)


def line_to_numbers(line: Array, width: int) -> Array:
    """float32 [1, 3, 48, width], -1 to 1, with zeros behind the line."""
    needed = min(width, math.ceil(LINE_HEIGHT * line.shape[1] / line.shape[0]))
    numbers = np.zeros((1, 3, LINE_HEIGHT, width), dtype=np.float32)
    numbers[..., :needed] = to_numbers(np.ascontiguousarray(line), (LINE_HEIGHT, needed))
    return numbers


def to_original(corners: Array, seen: tuple[int, int], size: tuple[int, int]) -> Array:
    """Corners in the client's picture; what `with_border` added lies outside of it."""
    scale = max(1.0, max(size) / MAX_SIDE)
    limits = np.array((size[1], size[0]), dtype=np.float32)
    return np.clip(corners * scale, 0, limits).astype(np.float32)
