# pyright: standard
"""Graphs that take a picture: what their tasks share, and classifying."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, ModelFailed, WherryError
from wherry.models.bundle import Bundle
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.image_fit import Frame
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput, Usage
from wherry.worker.runtimes.graphs.graph import Array, OpenGraph, rows_agree, trial
from wherry.worker.runtimes.graphs.pixels import Pixels
from wherry.worker.runtimes.graphs.scores import ScoreHead, check_rows
from wherry.worker.runtimes.runtime import Prepared

ONE_PICTURE = Usage(rows=1)


class OutputOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    output: str = ""
    """Name of the graph's output; by default the task's usual one, else the first."""


class Sight(msgspec.Struct):
    """A picture as the graph takes it, and the way back to the client's."""

    numbers: Array
    frame: Frame
    size: tuple[int, int]
    """Height and width of the client's picture, upright."""


class PictureModel(ABC):
    """What tasks share whose graph takes pictures and nothing else.

    At load two pictures run alone and together; the answers decide whether pictures share a run.
    """

    max_batch_cost = 0
    usual_outputs: tuple[str, ...] = ()
    """Names that the wanted output mostly has."""

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self.graph = open_graph(bundle.main_file)
        if len(self.graph.inputs) != 1:
            raise FormatNotAllowed(
                f"{self.graph.file_name!r} takes {len(self.graph.inputs)} inputs, a model of "
                "pictures takes one",
                hint="serve it with the task 'tensor'",
            )
        self.input = self.graph.inputs[0]
        self.pixels = Pixels(self.input, bundle)
        if self.pixels.options.image_size is not None:
            self.graph.expect_one_size()
        self.outputs = self._choose_outputs(bundle)
        pictures = self.pixels.trial_pictures()
        with trial(self.graph):
            self.trial = [self.forward([picture]) for picture in pictures]
        joins_rows = self._joins_rows(pictures)
        self.max_batch_rows = self.pixels.count_batch(self.graph.device) if joins_rows else 1

    def _choose_outputs(self, bundle: Bundle) -> list[str]:
        """Names of the outputs that are read: one, unless a task needs more."""
        stated = read_options(bundle.manifest.options, OutputOptions).output
        return [self.graph.find_output((stated, *self.usual_outputs)).name]

    def _joins_rows(self, pictures: Sequence[Array]) -> bool:
        """Whether pictures may share a run."""
        if not self.input.has_free_rows:
            return False
        try:
            together = self.forward(pictures)
        except WherryError:  # free in the declaration, fixed inside
            return False
        alone = [np.concatenate(parts) for parts in zip(*self.trial, strict=True)]
        return all(map(rows_agree, alone, together))

    def prepare(self, item: Any) -> Prepared:
        """The picture as the graph's numbers; safe in many threads."""
        numbers = self.pixels.to_numbers(item)
        return Prepared(numbers, group=numbers.shape)

    def see(self, item: ImageInput) -> Sight:
        """The same for tasks whose answers are about places."""
        return Sight(self.pixels.to_numbers(item), self.pixels.frame_of(item), item.size)

    def forward(self, pictures: Sequence[Array]) -> list[Array]:
        """What the outputs give, each with a row a picture."""
        feeds = {self.input.name: np.stack(pictures)}
        found = self.graph.run(feeds, self.outputs)
        for each in found:
            check_rows(each, len(pictures))
        return found

    def forward_finite(self, pictures: Sequence[Array]) -> Array:
        """What the first output gives, float32; `ModelFailed` if a number is not finite."""
        found = self.forward(pictures)[0].astype(np.float32, copy=False)
        if not np.isfinite(found).all():
            raise ModelFailed("the model answered with numbers that are not finite")
        return found

    def forward_all_finite(self, pictures: Sequence[Array]) -> list[Array]:
        """As `forward`; `ModelFailed` if a number of any output is not finite."""
        found = self.forward(pictures)
        if not all(np.isfinite(each).all() for each in found):
            raise ModelFailed("the model answered with numbers that are not finite")
        return found

    @abstractmethod
    def answer(self, batch: Sequence[Prepared]) -> Sequence[TaskOutput]:
        """One answer a picture; see `GraphModel.answer`."""


class PictureClassifier(PictureModel):
    """The task `image-classification`."""

    usual_outputs = ("logits",)

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        super().__init__(open_graph, bundle)
        output = self.graph.find_output(self.outputs)
        self.head = ScoreHead(bundle, self._as_rows(self.trial[0][0])[0], output)

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One run for all pictures."""
        rows = self._as_rows(self.forward_finite([prepared.payload for prepared in batch]))
        return [self.head.output_of(row, ONE_PICTURE) for row in self.head.scores(rows)]

    def _as_rows(self, found: Array) -> Array:
        return found.astype(np.float32, copy=False).reshape(len(found), -1)
