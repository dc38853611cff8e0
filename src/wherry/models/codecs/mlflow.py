"""MLflow's scoring protocol, for every task: data frames, instances, inputs and CSV.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#json-input
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.codecs.scoring import (
    MAX_ROWS,
    instances_of_table,
    known_names,
    read_columns,
    read_instances,
    write_predictions,
)
from wherry.models.tasks.task import Task, TaskConfig, TaskInput

MAX_COLUMNS = 10_000
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
CSV = "text/csv"

Rows = Annotated[list[list[Any]], Meta(max_length=MAX_ROWS)]
Names = Annotated[list[str | int], Meta(max_length=MAX_COLUMNS)]


class Split(msgspec.Struct):
    """A data frame as pandas writes it with `orient="split"`; its index says nothing to a model."""

    data: Rows
    columns: Names | None = None


class ScoringRequest(msgspec.Struct):
    """The body: exactly one of the forms, and perhaps `params`."""

    dataframe_split: Split | UnsetType = UNSET
    dataframe_records: Annotated[list[dict[str, Any]], Meta(max_length=MAX_ROWS)] | UnsetType = (
        UNSET
    )
    instances: list[Any] | UnsetType = UNSET
    inputs: list[Any] | dict[str, Any] | str | UnsetType = UNSET
    params: dict[str, Any] | None = None


_request_decoder = msgspec.json.Decoder(ScoringRequest)


class MlflowCodec:
    """See the module's docstring."""

    tasks: frozenset[str] = frozenset()

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """Items of a request in any of the forms."""
        kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == CSV:
            return Decoded(_read_csv(body, task, config))
        request: ScoringRequest = decode_json(body, _request_decoder)
        given = [name for name in FORMS if getattr(request, name) is not UNSET]
        if len(given) != 1:
            raise InvalidInput(
                f"exactly one of {', '.join(FORMS)} is needed",
                hint='for example {"instances": [[5.1, 3.5, 1.4, 0.2]]}',
                param=given[1] if given else FORMS[0],
            )
        return Decoded(_read_form(request, task, config))

    def encode(
        self, decoded: Decoded, outputs: Sequence[Any], call: Call, task: Task, config: TaskConfig
    ) -> Reply:
        """`{"predictions": [...]}`."""
        return write_predictions(outputs, task, config)


MLFLOW = MlflowCodec()


def _read_form(request: ScoringRequest, task: Task, config: TaskConfig) -> list[TaskInput]:
    if request.dataframe_split is not UNSET:
        instances = _read_split(request.dataframe_split, task, config)
    elif request.dataframe_records is not UNSET:
        instances = _read_records(request.dataframe_records, task, config)
    elif request.instances is not UNSET:
        instances = request.instances
    elif isinstance(request.inputs, dict):
        columns = {
            name: values if isinstance(values, list) else [values]
            for name, values in request.inputs.items()
        }
        return read_columns(columns, task, config, request.params)
    else:
        assert request.inputs is not UNSET
        instances = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    return read_instances(instances, task, config, request.params)


def _read_split(frame: Split, task: Task, config: TaskConfig) -> list[Any]:
    if frame.columns is None:
        return frame.data
    names = [str(name) for name in frame.columns]
    _check_rows(names, frame.data, "dataframe_split")
    return instances_of_table(names, frame.data, task, config)


def _read_records(records: Sequence[dict[str, Any]], task: Task, config: TaskConfig) -> list[Any]:
    names = list(records[0]) if records else []
    if any(set(record) != set(names) for record in records):
        raise InvalidInput(
            "the records do not all have the same columns", param="dataframe_records"
        )
    rows = [[record[name] for name in names] for record in records]
    return instances_of_table(names, rows, task, config)


def _check_rows(names: Sequence[str], rows: Sequence[Sequence[Any]], param: str) -> None:
    if len(set(names)) != len(names):
        raise InvalidInput("two columns have the same name", param=param)
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise InvalidInput(
                f"row {number} has {len(row)} values, there are {len(names)} columns", param=param
            )


def _read_csv(body: memoryview, task: Task, config: TaskConfig) -> list[TaskInput]:
    """A header and rows; cells are numbers where they can be and the model wants no text there."""
    try:
        lines = list(csv.reader(io.StringIO(bytes(body).decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"the body is not CSV in UTF-8: {error}") from error
    if len(lines) > MAX_ROWS + 1:
        raise InvalidInput(f"there are over {MAX_ROWS} rows", hint="send several requests")
    lines = [line for line in lines if line]
    if not lines:
        raise InvalidInput("the body has no line with the columns' names")
    names, *rows = lines
    _check_rows(names, rows, "csv")
    texts = {spec.name for spec in task.signature(config).inputs if spec.datatype == "BYTES"}
    is_text = [name in texts for name in names]
    if len(names) == 1 and known_names(task, config) == tuple(texts):
        is_text = [True]  # the one text of a model, whatever its column is called
    read = [
        [cell if text else _number_of(cell) for cell, text in zip(row, is_text, strict=True)]
        for row in rows
    ]
    return read_instances(instances_of_table(names, read, task, config), task, config)


def _number_of(cell: str) -> float | int | str | None:
    """A cell as pandas would read it."""
    if not cell:
        return None
    if "_" in cell:  # which Python alone takes for a number's
        return cell
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
