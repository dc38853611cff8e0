# pyright: standard
"""Graphs that classify pictures."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, ModelFailed, WherryError
from wherry.models.bundle import Bundle
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.task import TaskOutput, Usage
from wherry.worker.runtimes.graphs.graph import Array, OpenGraph, rows_agree, trial
from wherry.worker.runtimes.graphs.options import read_options
from wherry.worker.runtimes.graphs.pixels import Pixels
from wherry.worker.runtimes.graphs.scores import ScoreHead, check_rows
from wherry.worker.runtimes.runtime import Prepared


class OutputOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    output: str = ""
    """Name of the graph's output; by default `logits`, else the first."""


class PictureClassifier:
    """The task `image-classification`."""

    max_batch_cost = 0

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self.graph = open_graph(bundle.main_file)
        if len(self.graph.inputs) != 1:
            raise FormatNotAllowed(
                f"{self.graph.file_name!r} takes {len(self.graph.inputs)} inputs, a classifier of "
                "pictures takes one",
                hint="serve it with the task 'tensor'",
            )
        self.input = self.graph.inputs[0]
        self.pixels = Pixels(self.input, bundle)
        self.output = self.graph.find_output((read_options(bundle, OutputOptions).output, "logits"))
        joins_rows, row = self._try_out()
        self.head = ScoreHead(bundle, row)
        self.max_batch_rows = self.pixels.max_batch_rows if joins_rows else 1

    def _try_out(self) -> tuple[bool, Array]:
        """Whether pictures may share a run, and the answer to one of them."""
        pictures = self.pixels.trial_pictures()
        with trial(self.graph):
            alone = np.concatenate([self.forward([picture]) for picture in pictures])
        if not self.input.has_free_rows:
            return False, alone[0]
        try:
            return rows_agree(alone, self.forward(pictures)), alone[0]
        except WherryError:  # free in the declaration, fixed inside
            return False, alone[0]

    def prepare(self, item: ImageInput) -> Prepared:
        """The picture as the graph's numbers; safe in many threads."""
        numbers = self.pixels.to_numbers(item)
        return Prepared(numbers, group=numbers.shape)

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One run for all pictures."""
        scores = self.head.scores(self.forward([prepared.payload for prepared in batch]))
        if not np.isfinite(scores).all():
            raise ModelFailed("the model answered with numbers that are not finite")
        return [self.head.output_of(row, Usage(rows=1)) for row in scores]

    def forward(self, pictures: Sequence[Array]) -> Array:
        """Raw numbers of each picture, float32 [pictures, numbers]."""
        feeds = {self.input.name: np.stack(pictures)}
        found = self.graph.run(feeds, [self.output.name])[0]
        check_rows(found, len(pictures))
        return found.astype(np.float32, copy=False).reshape(len(pictures), -1)
