# pyright: standard
"""Graphs that do the task `tensor`: arrays in, arrays out, joined by rows where that is safe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.task import TaskOutput
from wherry.models.tasks.tensor import (
    TensorInput,
    TensorOutput,
    Tensors,
    check_tensors,
    count_rows,
    join_rows,
    rows_usage,
    split_rows,
)
from wherry.worker.runtimes.graphs.graph import Array, Graph, GraphTensor, OpenGraph, rows_agree
from wherry.worker.runtimes.runtime import Prepared

PROBE_SIZES = (8, 1, 64)
"""Sizes tried for the free dimensions other than the rows."""


class TensorModel:
    """A graph as it is."""

    max_batch_cost = 0

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self.graph = open_graph(bundle.main_file)
        self.specs = self.graph.signature.inputs
        declared = {spec.name for spec in bundle.manifest.signature.inputs}
        if declared and declared != {spec.name for spec in self.specs}:
            known = ", ".join(spec.name for spec in self.specs)
            raise InvalidInput(f"the bundle's signature is not the graph's, which takes {known}")
        self.joins_rows = joins_rows(self.graph)
        self.max_batch_rows = 256 if self.joins_rows else 1

    def prepare(self, item: TensorInput) -> Prepared:
        """Check against the graph itself: a bundle's signature may be open."""
        check_tensors(item.tensors, self.specs)
        if not self.joins_rows:
            return Prepared(item.tensors)
        rows = count_rows(item.tensors, self.specs)
        # only tensors that are equal but for their rows can be joined
        group = tuple(item.tensors[spec.name].shape[1:] for spec in self.specs)
        return Prepared(item.tensors, rows=rows, group=group)

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One run for all rows, split again by request."""
        if len(batch) == 1:
            return [TensorOutput(tensors=self._run(batch[0].payload), usage=_usage(batch[0]))]
        found = self._run(join_rows([prepared.payload for prepared in batch]))
        parts = split_rows(found, [prepared.rows for prepared in batch])
        return [
            TensorOutput(tensors=tensors, usage=_usage(prepared))
            for prepared, tensors in zip(batch, parts, strict=True)
        ]

    def _run(self, tensors: Tensors) -> dict[str, Array]:
        feeds = {name: _to_text(name, array) for name, array in tensors.items()}
        found = self.graph.run(feeds)
        if not all(isinstance(array, np.ndarray) for array in found):
            raise ModelFailed("the model gave something else than tensors")
        names = [output.name for output in self.graph.outputs]
        return {name: _to_bytes(array) for name, array in zip(names, found, strict=True)}


def _usage(prepared: Prepared):
    return rows_usage(prepared.rows)


def _to_text(name: str, array: Array) -> Array:
    """Strings as frameworks take them; other arrays as they are."""
    if array.dtype.kind != "O":
        return array
    try:
        texts = [bytes(each).decode("utf-8") for each in array.ravel()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r} is not valid UTF-8: {error}", param=name) from error
    return np.array(texts, dtype=object).reshape(array.shape)


def _to_bytes(array: Array) -> Array:
    if array.dtype.kind not in "OU":
        return array
    found = np.empty(array.size, dtype=object)
    found[:] = [each if isinstance(each, bytes) else str(each).encode() for each in array.ravel()]
    return found.reshape(array.shape)


def joins_rows(graph: Graph) -> bool:
    """Whether requests may share a run: rows are free everywhere, and do not touch each other.

    The second is tried out, because a graph can normalise over its batch, or quantise it as one.
    """
    tensors = (*graph.inputs, *graph.outputs)
    if not graph.inputs or not all(tensor.has_free_rows for tensor in tensors):
        return False
    if len({tensor.shape[0] for tensor in graph.inputs}) > 1:
        return False
    return any(_rows_are_independent(graph, size) for size in PROBE_SIZES)


def _rows_are_independent(graph: Graph, free_size: int) -> bool:
    random = np.random.default_rng(0)
    first, second = (
        {each.name: _probe_array(each, free_size, random) for each in graph.inputs}
        for _ in range(2)
    )
    try:
        alone = [graph.run(first), graph.run(second)]
        together = graph.run(join_rows([first, second]))
    except (InvalidInput, ModelFailed):
        return False  # the graph wants other sizes or values than the probe's
    return all(
        len(one) == len(other) == 1 and rows_agree(np.concatenate([one, other]), both)
        for one, other, both in zip(*alone, together, strict=True)
    )


def _probe_array(tensor: GraphTensor, free_size: int, random: np.random.Generator) -> Array:
    shape = [size if isinstance(size, int) else free_size for size in tensor.shape]
    shape[0] = 1
    if tensor.datatype == "BYTES":
        return np.full(shape, str(random.integers(1000)), dtype=object)
    if tensor.dtype.kind == "f":
        # spread over magnitudes, so that a scale shared by the batch shows
        return (random.normal(size=shape) * random.uniform(1, 10)).astype(tensor.dtype)
    return random.integers(0, 2, size=shape).astype(tensor.dtype)
