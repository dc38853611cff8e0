"""The tasks `tabular-classification` and `tabular-regression`: rows of features in, answers out.

Rows come as one tensor of shape [-1, features], or as one tensor a feature (columns). The plain
form is `{"row": [5.1, 3.5]}`, `{"rows": [[…], […]]}`, or the features by name, alone or under
`features`. A request of many rows is one item, so a runtime answers it in one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.tasks.classification import shortest_floats
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
    check_names,
    check_tensor,
    check_tensors,
    count_rows,
    type_of,
)

FP32, INT64 = np.dtype(np.float32), np.dtype(np.int64)
MAX_NAMED = 12
"""Most feature names that an error message lists."""


class Rows(msgspec.Struct):
    """The rows of one request."""

    tensors: Mapping[str, Array]
    """One matrix (rows, features), or one column (rows,) or (rows, 1) a feature."""
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
        """The bundle's inputs, or one matrix of any width."""
        return config.signature.inputs or (TensorSpec("input", "FP32", (-1, -1)),)

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> Sequence[Rows]:
        """One item with all rows."""
        specs = self.inputs(config)
        if len(specs) == 1 and len(tensors) == 1:  # nearly always
            array = tensors.get(specs[0].name)
            if array is not None:
                check_tensor(array, specs[0])
                return [Rows(tensors)]
        check_tensors(tensors, specs)
        count_rows(tensors, specs)
        return [Rows(tensors)]

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> Rows:
        """See the module's docstring."""
        specs = self.inputs(config)
        rows, many = rows_of(body)
        if len(specs) == 1 and len(specs[0].shape) == 2:
            names = tuple(config.options.get("feature_names", ()))
            matrix = [vector_of(row, names) for row in rows]
            return Rows({specs[0].name: array_from_plain(matrix, specs[0])}, many)
        return Rows(columns_of(rows, specs), many)


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


def rows_of(body: Mapping[str, Any]) -> tuple[list[Any], bool]:
    """The rows of a plain body, each a list or an object, and whether there may be many."""
    for key in ("rows", "row", "features", "inputs", "input"):
        if key in body and isinstance(body[key], (list, dict)):
            break
    else:
        if not body:
            raise InvalidInput("the body is empty", hint='send {"row": […]}', param="row")
        return [body], False
    if len(body) > 1:
        raise InvalidInput(f"{key!r} must stand alone in the body", param=key)
    value: Any = body[key]
    many = isinstance(value, list) and all(isinstance(row, (list, dict)) for row in value)
    if key == "rows" and not many:
        raise InvalidInput("'rows' must be a list of rows", hint='or send {"row": […]}')
    return (value, True) if many and value else ([value], False)


def vector_of(row: Any, names: Sequence[str]) -> list[Any]:
    """A row as a list in the model's order of features."""
    if isinstance(row, list):
        return row
    if not names:
        raise InvalidInput("the model has no feature names", hint='send {"row": [numbers]}')
    check_features(row, names)
    return [row[name] for name in names]


def columns_of(rows: Sequence[Any], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Rows as one tensor a feature."""
    names = [spec.name for spec in specs]
    for row in rows:
        if isinstance(row, dict):
            check_features(row, names)
        elif not isinstance(row, list) or len(row) != len(names):
            raise InvalidInput(f"a row must have {len(names)} values", hint=list_names(names))
    columns: dict[str, Array] = {}
    for index, spec in enumerate(specs):
        column = [row[spec.name] if isinstance(row, dict) else row[index] for row in rows]
        wrapped = [[value] for value in column] if len(spec.shape) == 2 else column
        columns[spec.name] = array_from_plain(wrapped, spec)
    check_names(columns, specs)
    return columns


def check_features(row: Mapping[str, Any], names: Sequence[str]) -> None:
    """Every feature is in the row and nothing else."""
    known = frozenset(names)
    unknown = next((name for name in row if name not in known), None)
    if unknown is not None:
        raise InvalidInput(f"unknown feature {unknown[:80]!r}", hint=list_names(names))
    missing = next((name for name in names if name not in row), None)
    if missing is not None:
        raise InvalidInput(f"missing feature {missing!r}", hint=list_names(names))


def list_names(names: Sequence[str]) -> str:
    """The first names, for a hint."""
    more = f" … ({len(names)} in all)" if len(names) > MAX_NAMED else ""
    return "features: " + ", ".join(names[:MAX_NAMED]) + more


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
