# pyright: standard
"""Graphs of tables, as skl2onnx and others export them: rows in, classes or numbers out.

A graph takes one matrix, or one input a column (texts as strings). A classifier gives a label, whose
classes `labels` of the bundle name, or probabilities, or both; a regressor gives one number a row or
more. A graph knows of missing values only what its exporter wrote: they are taken where the bundle
declares columns that are not required, and an answer that is not finite is refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options
from wherry.models.tasks.table_columns import read_columns
from wherry.models.tasks.tabular import RegressionOutput, Rows, TableOutput
from wherry.models.tasks.task import TaskOutput
from wherry.models.tasks.tensor import join_rows, rows_usage
from wherry.worker.runtimes.graphs.graph import Array, GraphTensor, OpenGraph
from wherry.worker.runtimes.graphs.tensors import joins_rows
from wherry.worker.runtimes.runtime import Prepared


class TableOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    label_output: str = ""
    """Name of the output with the classes; default: the one of integers or texts."""
    value_output: str = ""
    """Name of the output with the probabilities, or the numbers; default: the one of floats."""


class TableModel(ABC):
    """What classifiers and regressors share: the rows as the graph takes them."""

    max_batch_cost = 0

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self.graph = open_graph(bundle.main_file)
        self.options = read_options(bundle.manifest.options, TableOptions)
        self.takes_missing = any(
            not column.required for column in read_columns(bundle.manifest.task_config())
        )
        self.inputs = {each.name: each for each in self.graph.inputs}
        if len(self.inputs) == 1 and not 1 <= len(self.graph.inputs[0].shape) <= 2:
            raise FormatNotAllowed(
                f"{self.graph.file_name!r} takes {len(self.graph.inputs[0].shape)} dimensions, "
                "a table has 2",
                hint="serve it with the task 'tensor'",
            )
        self.joins_rows = joins_rows(self.graph)
        self.max_batch_rows = 256 if self.joins_rows else 1

    def prepare(self, item: Rows) -> Prepared:
        """The rows in the graph's datatypes and shapes; safe in many threads."""
        feeds = self._feeds_of(item.tensors)
        rows = len(next(iter(feeds.values())))
        return Prepared((feeds, item.many), rows=rows)

    def _feeds_of(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        if tensors.keys() != self.inputs.keys():
            if len(self.inputs) > 1:
                raise InvalidInput(f"the graph takes {', '.join(self.inputs)}")
            columns = [array.reshape(len(array), -1) for array in tensors.values()]
            tensors = {self.graph.inputs[0].name: np.concatenate(columns, axis=1)}
        return {name: self._feed_of(self.inputs[name], array) for name, array in tensors.items()}

    def _feed_of(self, wanted: GraphTensor, array: Array) -> Array:
        width = wanted.shape[1] if len(wanted.shape) == 2 else 1
        array = array.reshape(len(array), -1) if len(wanted.shape) == 2 else array.reshape(-1)
        if isinstance(width, int) and array.ndim == 2 and array.shape[1] != width:
            raise InvalidInput(f"a row has {array.shape[1]} features, the model takes {width}")
        if (array.dtype.kind == "O") != (wanted.datatype == "BYTES"):
            raise InvalidInput(f"the graph takes {wanted.datatype}", param=wanted.name)
        if array.dtype.kind == "O":
            return _to_texts(wanted.name, array)
        is_float = array.dtype.kind == "f"
        if is_float and not np.isfinite(array).all():
            self._check_missing(wanted, array)
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(wanted.dtype)
        if is_float and np.isinf(cast).any():
            raise InvalidInput(f"a number does not fit {wanted.datatype}", param=wanted.name)
        return cast

    def _check_missing(self, wanted: GraphTensor, array: Array) -> None:
        if np.isinf(array).any():
            raise InvalidInput("the model takes no infinity", param=wanted.name)
        if not self.takes_missing or wanted.dtype.kind != "f":
            raise InvalidInput("the model takes no missing values (NaN)", param=wanted.name)

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One run for all rows, split again by request."""
        feeds = [prepared.payload[0] for prepared in batch]
        ends = list(accumulate(prepared.rows for prepared in batch))
        found = self._run(join_rows(feeds) if len(feeds) > 1 else feeds[0], ends[-1])
        return [
            self.output_of(
                {name: array[end - prepared.rows : end] for name, array in found.items()}, prepared
            )
            for end, prepared in zip(ends, batch, strict=True)
        ]

    def _run(self, feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
        names = [each.name for each in self.graph.outputs]
        found = dict(zip(names, self.graph.run(feeds), strict=True))
        for name, array in found.items():
            if not isinstance(array, np.ndarray) or array.ndim == 0 or len(array) != rows:
                raise ModelFailed(f"the output {name!r} of the graph has no row for each row")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InvalidInput(
                    "the model's answer is not finite",
                    hint="it takes no missing values, or numbers of this size",
                )
        return found

    @abstractmethod
    def output_of(self, found: Mapping[str, Array], prepared: Prepared) -> TaskOutput:
        """The answer of one request out of its rows of the graph's outputs."""

    def find_output(self, named: str, kinds: str) -> str:
        """The output of that name, else the first of these kinds; "" if there is none."""
        for each in self.graph.outputs:
            if each.name == named or (not named and each.dtype.kind in kinds):
                return each.name
        if named:
            raise InvalidInput(f"the graph has no output {named!r}")
        return ""


class GraphClassifier(TableModel):
    """The task `tabular-classification`."""

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        super().__init__(open_graph, bundle)
        self.labels = bundle.manifest.labels
        self.label = self.find_output(self.options.label_output, "iuO")
        self.value = self.find_output(self.options.value_output, "f")
        by_name = {each.name: each for each in self.graph.outputs}
        if self.label and by_name[self.label].datatype == "BYTES" and not self.labels:
            raise InvalidInput(
                "the graph's labels are texts, and the bundle does not name them",
                hint="give labels in the order of the model's classes",
            )
        width = by_name[self.value].shape[-1] if self.value else None
        if isinstance(width, int) and width > 1 and len(self.labels) not in (0, width):
            raise InvalidInput(
                f"the bundle names {len(self.labels)} labels, the model has {width} classes"
            )
        self.number_of = {label.encode(): index for index, label in enumerate(self.labels)}

    def output_of(self, found: Mapping[str, Array], prepared: Prepared) -> TableOutput:
        """Classes by the graph's label where it gives one, else the most probable."""
        probabilities = self._probabilities(found[self.value]) if self.value else None
        if self.label:
            classes = self._classes(found[self.label].reshape(-1))
        else:
            assert probabilities is not None
            classes = probabilities.argmax(axis=1)
        return TableOutput(
            classes=classes.astype(np.int64),
            probabilities=probabilities,
            labels=self.labels,
            many=prepared.payload[1],
            usage=rows_usage(prepared.rows),
        )

    def _probabilities(self, found: Array) -> Array:
        rows = found.reshape(len(found), -1).astype(np.float32)
        if rows.shape[1] == 1:  # of the second of two classes
            rows = np.concatenate([1 - rows, rows], axis=1)
        return rows

    def _classes(self, found: Array) -> Array:
        if found.dtype.kind in "OSU":
            names = [each if isinstance(each, bytes) else str(each).encode() for each in found]
            numbers = [self.number_of.get(name, -1) for name in names]
        else:
            names = [str(each).encode() for each in found.tolist()]
            are_names = all(name in self.number_of for name in names)
            numbers = [self.number_of[name] for name in names] if are_names else found.tolist()
        if min(numbers, default=0) < 0 or (
            self.labels and max(numbers, default=0) >= len(self.labels)
        ):
            raise ModelFailed("the model answered with a class that the bundle does not name")
        return np.array(numbers, dtype=np.int64)


class GraphRegressor(TableModel):
    """The task `tabular-regression`."""

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        super().__init__(open_graph, bundle)
        self.value = self.find_output(self.options.value_output, "f")
        if not self.value:
            raise FormatNotAllowed("the graph gives no numbers", hint="serve it as a classifier")

    def output_of(self, found: Mapping[str, Array], prepared: Prepared) -> RegressionOutput:
        """One number a row, or several."""
        values = found[self.value].astype(np.float64)
        values = values.reshape(len(values), -1)
        return RegressionOutput(
            values=values[:, 0] if values.shape[1] == 1 else values,
            many=prepared.payload[1],
            usage=rows_usage(prepared.rows),
        )


def _to_texts(name: str, array: Array) -> Array:
    try:
        texts = [bytes(each).decode() for each in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r} is not valid UTF-8: {error}", param=name) from error
    found = np.empty(len(texts), dtype=object)
    found[:] = texts
    return found.reshape(array.shape)
