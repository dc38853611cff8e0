"""The tasks `tabular-classification` and `tabular-regression`: rows of features in, answers out.

Rows come as one tensor of shape [-1, features], or as one tensor a feature (columns); the plain
forms are those of `table_forms`, what a bundle says of its columns is in `table_columns`. A request
of many rows is one item, so a runtime answers it in one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.table_columns import (
    Column,
    check_arrays,
    number_of_text,
    read_columns,
    to_arrays,
)
from wherry.models.tasks.table_forms import by_column, by_row, read_table
from wherry.models.tasks.task import (
    Signature,
    TaskConfig,
    TaskOutput,
    Tensors,
    TensorSpec,
)
from wherry.models.tasks.tensor import (
    Array,
    array_from_plain,
    check_tensor,
    check_tensors,
    count_rows,
    type_of,
)

FP32, INT64 = np.dtype(np.float32), np.dtype(np.int64)


class Rows(msgspec.Struct):
    """The rows of one request."""

    tensors: Mapping[str, Array]
    """One matrix (rows, features), or one column (rows,) or (rows, 1) a feature.

    A missing value is NaN, or an empty text in a column that the bundle declares as not required."""
    many: bool = True
    """False for the plain form of a single row, whose answer is one object."""


class TableOutput(TaskOutput, kw_only=True):
    """Classes of the rows of one request."""

    classes: Array
    """Index of each row's class in the bundle's labels: (rows,), int64."""
    probabilities: Array | None = None
    """(rows, labels), float32; None if the model gives none."""
    labels: tuple[str, ...] = ()
    """Names of the classes, where the model knows them; empty = the bundle's."""
    many: bool = True
    """As in the `Rows` that it answers."""


class RegressionOutput(TaskOutput, kw_only=True):
    """Numbers for the rows of one request."""

    values: Array
    """(rows,) or (rows, targets), float64."""
    many: bool = True
    """As in the `Rows` that it answers."""


class TabularTask:
    """What both tabular tasks share: how rows come in."""

    input_type = Rows

    def __init__(self, name: str) -> None:
        self.name = name

    def inputs(self, config: TaskConfig) -> tuple[TensorSpec, ...]:
        """The bundle's inputs, its columns, or one matrix of any width."""
        if config.signature.inputs:
            return config.signature.inputs
        columns = tuple(column.spec for column in read_columns(config))
        return columns or (TensorSpec("input", "FP32", (-1, -1)),)

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> Sequence[Rows]:
        """One item with all rows."""
        specs = self.inputs(config)
        if len(specs) == 1 and len(tensors) == 1 and "columns" not in config.options:
            array = tensors.get(specs[0].name)  # nearly always
            if array is not None:
                check_tensor(array, specs[0])
                return [Rows(tensors)]
        check_tensors(tensors, specs)
        count_rows(tensors, specs)
        if columns := read_columns(config):
            check_arrays(split_columns(tensors, columns, specs), columns)
        return [Rows(tensors)]

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> Rows:
        """One item with all rows of a table in one of its plain forms."""
        specs = self.inputs(config)
        if columns := read_columns(config):
            return declared_rows(body, columns, specs)
        if is_matrix(specs):
            names = tuple(config.options.get("feature_names", ()))
            table = read_table(body, names)
            matrix = array_of(by_row(table, names), specs[0], are_texts=table.are_texts)
            return Rows({specs[0].name: matrix}, table.many)
        names = tuple(spec.name for spec in specs)
        table = read_table(body, names)
        values = by_column(table, names)
        arrays = {
            spec.name: array_of(values[spec.name], spec, are_texts=table.are_texts)
            for spec in specs
        }
        return Rows(arrays, table.many)


class TabularClassification(TabularTask):
    """A class for every row, with probabilities where the model has them."""

    output_type = TableOutput

    def signature(self, config: TaskConfig) -> Signature:
        """The bundle's; its outputs are among `label`, `class` and `probabilities`."""
        return Signature(inputs=self.inputs(config), outputs=self.outputs(config))

    def outputs(self, config: TaskConfig) -> tuple[TensorSpec, ...]:
        """The bundle's outputs, or labels and probabilities."""
        return config.signature.outputs or (
            TensorSpec("label", "BYTES", (-1,)),
            TensorSpec("probabilities", "FP32", (-1, len(config.labels) or -1)),
        )

    def to_tensors(self, outputs: Sequence[TableOutput], config: TaskConfig) -> dict[str, Array]:
        """The declared ones of `label`, `class`, `probabilities`."""
        return {spec.name: class_tensor(spec, outputs, config) for spec in self.outputs(config)}

    def to_columns(
        self, outputs: Sequence[TableOutput], config: TaskConfig
    ) -> dict[str, Array | list[str]] | None:
        """As `to_tensors`, labels as `str`; None if there is more to it than there nearly always is."""
        if len(outputs) != 1:
            return None
        (output,) = outputs
        labels, probabilities = output.labels or config.labels, output.probabilities
        found: dict[str, Array | list[str]] = {}
        for spec in self.outputs(config):
            name = spec.name
            if name == "label" and labels:
                try:
                    found[name] = [labels[index] for index in output.classes.tolist()]
                except IndexError:
                    return None
            elif name == "class" and output.classes.dtype == INT64:
                found[name] = output.classes
            elif name == "probabilities" and probabilities is not None:
                if probabilities.dtype != FP32:
                    return None
                found[name] = probabilities
            else:
                return None
        return found

    def to_plain(self, output: TableOutput, config: TaskConfig) -> dict[str, Any]:
        """`{"prediction", "label", "confidence", "probabilities"}`, a list for many rows."""
        answers = plain_classes(output, config)
        return {"predictions": answers} if output.many else answers[0]


class TabularRegression(TabularTask):
    """A number, or several, for every row."""

    output_type = RegressionOutput

    def signature(self, config: TaskConfig) -> Signature:
        """The bundle's; its one output holds the values."""
        outputs = config.signature.outputs or (TensorSpec("prediction", "FP64", (-1,)),)
        return Signature(inputs=self.inputs(config), outputs=outputs)

    def to_tensors(
        self, outputs: Sequence[RegressionOutput], config: TaskConfig
    ) -> dict[str, Array]:
        """The values under the name and datatype of the declared output."""
        spec = self.signature(config).outputs[0]
        values = join([output.values for output in outputs])
        if values.ndim < len(spec.shape):
            values = values.reshape(len(values), 1 if len(values) else max(spec.shape[1], 0))
        return {spec.name: values.astype(type_of(spec.datatype), copy=False)}

    def to_plain(self, output: RegressionOutput, config: TaskConfig) -> dict[str, Any]:
        """`{"prediction": 21.3}`, a list for many rows."""
        answers = [{"prediction": value} for value in output.values.tolist()]
        return {"predictions": answers} if output.many else answers[0]


TABULAR_CLASSIFICATION = TabularClassification("tabular-classification")
TABULAR_REGRESSION = TabularRegression("tabular-regression")


def is_matrix(specs: Sequence[TensorSpec]) -> bool:
    """Whether all features come in one tensor."""
    return len(specs) == 1 and len(specs[0].shape) == 2


def declared_rows(
    body: Mapping[str, Any], columns: Sequence[Column], specs: Sequence[TensorSpec]
) -> Rows:
    """A plain table by the columns that the bundle declares."""
    names = tuple(column.name for column in columns)
    table = read_table(body, names)
    optional = frozenset(column.name for column in columns if not column.required)
    values = by_column(table, names, optional)
    arrays = to_arrays(values, columns, are_texts=table.are_texts)
    check_arrays(arrays, columns)
    if is_matrix(specs) and specs[0].name not in arrays:
        kind = type_of(specs[0].datatype)
        matrix = np.stack([arrays[name].astype(kind) for name in names], axis=1)
        return Rows({specs[0].name: matrix}, table.many)
    tensors = {
        spec.name: arrays[spec.name]
        .astype(type_of(spec.datatype), copy=False)
        .reshape((-1, *(1,) * (len(spec.shape) - 1)))
        for spec in specs
    }
    return Rows(tensors, table.many)


def split_columns(
    tensors: Tensors, columns: Sequence[Column], specs: Sequence[TensorSpec]
) -> Mapping[str, Array]:
    """The declared columns of a request's tensors."""
    if not is_matrix(specs) or specs[0].name in {column.name for column in columns}:
        return tensors
    matrix = tensors[specs[0].name]
    if matrix.shape[1] != len(columns):
        raise InvalidInput(f"a row has {matrix.shape[1]} features, the model takes {len(columns)}")
    return {column.name: matrix[:, index] for index, column in enumerate(columns)}


def array_of(values: list[Any], spec: TensorSpec, *, are_texts: bool) -> Array:
    """A matrix of rows, or a column of values, that no column of the bundle describes.

    A missing value is NaN, where the datatype has one.
    """
    if len(spec.shape) == 2 and not (values and isinstance(values[0], list)):
        values = [[value] for value in values]
    rows: list[list[Any]] = values if len(spec.shape) == 2 else [values]
    if are_texts and spec.datatype != "BYTES":
        rows = [[number_of_text(value) for value in row] for row in rows]
    has_holes = any(None in row for row in rows) and spec.datatype in ("FP16", "FP32", "FP64")
    filled = [[0.0 if value is None else value for value in row] for row in rows]
    plain: list[Any] = filled if has_holes else rows
    array = array_from_plain(plain if len(spec.shape) == 2 else plain[0], spec)
    if has_holes:
        holes = np.array([[value is None for value in row] for row in rows])
        array[holes.reshape(array.shape)] = np.nan
    return array


def label_of(index: int, labels: Sequence[str]) -> str:
    """Name of a class; its number where nobody knows a name."""
    return labels[index] if index < len(labels) else str(index)


def class_tensor(spec: TensorSpec, outputs: Sequence[TableOutput], config: TaskConfig) -> Array:
    """One declared output of a classification."""
    output = outputs[0] if len(outputs) == 1 else join_outputs(outputs)
    classes, labels = output.classes, output.labels or config.labels
    if spec.name == "probabilities":
        if output.probabilities is not None:
            return output.probabilities.astype(np.float32, copy=False)
        if config.signature.outputs or not labels:
            raise ModelFailed("the model gives no probabilities, though its signature names them")
        return np.eye(len(labels), dtype=np.float32)[classes]  # the bundle declares nothing
    if spec.name == "class":
        return classes.astype(np.int64, copy=False)
    if spec.name == "label":
        try:
            return encoded_labels(labels)[classes]
        except IndexError:
            names = np.empty(len(classes), dtype=object)
            names[:] = [label_of(index, labels).encode() for index in classes.tolist()]
            return names
    raise ModelFailed(f"tabular-classification has no output {spec.name!r}")


@lru_cache(maxsize=8)
def encoded_labels(labels: tuple[str, ...]) -> Array:
    """The elements of a BYTES tensor that stand for the classes."""
    found = np.empty(len(labels), dtype=object)
    found[:] = [label.encode() for label in labels]
    return found


def join_outputs(outputs: Sequence[TableOutput]) -> TableOutput:
    """The answers of several items as one."""
    found = [output.probabilities for output in outputs if output.probabilities is not None]
    return TableOutput(
        classes=join([output.classes for output in outputs]),
        probabilities=join(found) if len(found) == len(outputs) else None,
        labels=outputs[0].labels,
    )


def join(arrays: Sequence[Array]) -> Array:
    """Arrays below one another; a single one as it is, which is nearly always the case."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def plain_classes(output: TableOutput, config: TaskConfig) -> list[dict[str, Any]]:
    """Every classified row as plain JSON."""
    known = output.labels or config.labels
    classes: list[int] = output.classes.tolist()
    labels = [label_of(index, known) for index in classes]
    if output.probabilities is None:
        return [{"prediction": label, "label": label} for label in labels]
    names = [label_of(index, known) for index in range(output.probabilities.shape[1])]
    rows: list[Any] = shortest_floats(output.probabilities)
    return [
        {
            "prediction": label,
            "label": label,
            "confidence": scores[index],
            "probabilities": dict(zip(names, scores, strict=True)),
        }
        for label, index, scores in zip(labels, classes, rows, strict=True)
    ]
