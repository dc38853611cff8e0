# pyright: standard
"""A graph of tensors, whichever framework opened it: what it takes and gives, and running it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.tasks.task import Signature, TensorSpec, type_by_datatype

Array = np.ndarray[Any, np.dtype[Any]]

SAME = 5e-3
"""Largest difference, relative to the largest value, between a row alone and in a batch: float
noise is near 1e-6 (1e-3 in half precision); dynamic quantisation moves MiniLM by 0.1."""


class Quantisation(msgspec.Struct, frozen=True):
    """What whole numbers stand for: `value = (number - zero) * scale`."""

    scale: float
    zero: int
    least: int
    """The smallest number of the type."""

    @property
    def is_probability(self) -> bool:
        """Whether the values go from 0 to nearly 1 in 256 steps, as softmax and sigmoid give them."""
        return self.zero == self.least and self.scale == 1 / 256


class GraphTensor(msgspec.Struct, frozen=True):
    """An input or output of the graph."""

    name: str
    datatype: str
    shape: tuple[int | str | None, ...]
    """A size, the name of a free dimension, or None for a free one without a name."""
    quantisation: Quantisation | None = None
    """Of FP32 that the file keeps in whole numbers."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of its elements."""
        return np.dtype(type_by_datatype.get(self.datatype, "O"))

    @property
    def spec(self) -> TensorSpec:
        """As the Open Inference Protocol shows it."""
        shape = tuple(size if isinstance(size, int) else -1 for size in self.shape)
        return TensorSpec(self.name, self.datatype, shape)

    @property
    def has_free_rows(self) -> bool:
        """Whether the first dimension may have any size."""
        return bool(self.shape) and not isinstance(self.shape[0], int)


class Graph(ABC):
    """An opened file of a model; `run` may be called by one thread at a time.

    Args:
        file_name: For messages.
        inputs: What it takes, in the file's order.
        outputs: What it gives.
    """

    def __init__(
        self, file_name: str, inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor]
    ) -> None:
        self.file_name = file_name
        self.device = "cpu"
        self.metadata: Mapping[str, str] = {}
        """What the file says of itself."""
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)

    @property
    def signature(self) -> Signature:
        """The tensors of the graph."""
        return Signature(
            tuple(each.spec for each in self.inputs), tuple(each.spec for each in self.outputs)
        )

    def find_output(self, preferred: Sequence[str]) -> GraphTensor:
        """The first output with one of these names, else the first of all."""
        by_name = {each.name: each for each in self.outputs}
        for name in preferred:
            if name in by_name:
                return by_name[name]
        return self.outputs[0]

    def expect_one_size(self) -> None:  # noqa: B027 - most frameworks have nothing to do
        """Whoever runs it will give it inputs of one size: it may keep what a run needs."""

    @abstractmethod
    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Outputs by name, in order; all of them by default.

        Raises:
            InvalidInput: an input does not fit the graph.
            ModelFailed: a node of the graph failed.
        """


OpenGraph = Callable[[Path], Graph]
"""Opens one of a bundle's files on the runtime's device; `FormatNotAllowed` if it cannot be read."""


@contextmanager
def trial(graph: Graph) -> Iterator[None]:
    """Inputs of ours at load: a graph that fails on them is broken, not the input wrong."""
    try:
        yield
    except FormatNotAllowed:
        raise
    except (InvalidInput, ModelFailed) as error:
        raise ModelFailed(f"{graph.file_name!r} fails on a trial input: {error.text}") from error


def rows_agree(alone: Array, together: Array) -> bool:
    """Whether the rows of a batch are what each of them gave alone."""
    if alone.shape != together.shape or alone.dtype.kind != together.dtype.kind:
        return False
    if alone.dtype.kind != "f" or not np.isfinite(alone).all():
        return np.array_equal(alone, together, equal_nan=alone.dtype.kind == "f")
    largest = np.abs(alone).max(initial=0.0)
    return bool(np.abs(alone - together).max(initial=0.0) <= SAME * largest)
