# pyright: standard
"""What the runtimes of gradient-boosted trees share: a model is a graph from rows to numbers.

A missing value is NaN, which trees know how to go on from. Options: those of tables and of
forecasters ([graphs/tables.py](graphs/tables.py), [forecasts/blocks.py](forecasts/blocks.py)).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wherry.errors import InvalidInput
from wherry.models.bundle import Bundle
from wherry.worker.runtimes.graphs.graph import Array, Graph, GraphTensor
from wherry.worker.runtimes.graphs.runtime import GraphRuntime

TASKS = (
    "tabular-classification",
    "tabular-regression",
    "time-series-forecasting",
    "tensor",
)
ROWS = "rows"


class BoosterRuntime(GraphRuntime):
    """One model. One thread computes; more workers serve more."""

    def load(self, bundle: Bundle, device: str) -> None:
        """See `GraphRuntime.load`."""
        if bundle.manifest.task not in TASKS:
            raise InvalidInput(
                f"boosted trees do not do the task {bundle.manifest.task!r}",
                hint="they do " + ", ".join(TASKS),
            )
        super().load(bundle, device)

    def open_graph(self, path: Path, device: str) -> Graph:
        """Open a file of the bundle."""
        if device != "cpu":
            raise InvalidInput(f"there is no device {device!r}", hint="place the model on 'cpu'")
        return self.open_trees(path)

    @abstractmethod
    def open_trees(self, path: Path) -> Graph:
        """The model; `FormatNotAllowed` if the framework cannot read it."""


class BoosterGraph(Graph):
    """Trees as a graph: one matrix in, one out.

    Args:
        file_name: For messages.
        features: Numbers in a row.
        output: `probabilities` or `value`.
        width: Numbers in a row of the answer.
        datatype: What the framework compares rows in.
    """

    def __init__(
        self, file_name: str, features: int, output: str, width: int, datatype: str
    ) -> None:
        super().__init__(
            file_name,
            [GraphTensor(ROWS, datatype, (None, features))],
            [GraphTensor(output, datatype, (None, width))],
        )
        self._width = width

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """See `Graph.run`."""
        found = np.asarray(self.answer(feeds[ROWS]), dtype=self.outputs[0].dtype)
        return [found.reshape(len(feeds[ROWS]), self._width)]

    @abstractmethod
    def answer(self, rows: Array) -> Array:
        """The framework's answer, float [rows] or [rows, width]."""
