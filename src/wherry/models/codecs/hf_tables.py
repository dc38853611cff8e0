"""Hugging Face's shapes of tasks whose input is a table.

A table is an object of columns, whose values are texts, also where the model wants numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Reply
from wherry.models.codecs.hf_request import HfRequest, reply_json
from wherry.models.codecs.plain_json import encode_plain
from wherry.models.tasks.table_columns import number_of_text
from wherry.models.tasks.tabular import RegressionOutput, TableOutput, TabularTask, label_of
from wherry.models.tasks.task import TaskConfig

MAX_ROWS = 1 << 16
MAX_COLUMNS = 1 << 16

Table = Annotated[
    dict[str, Annotated[list[Any], Meta(min_length=1, max_length=MAX_ROWS)]],
    Meta(min_length=1, max_length=MAX_COLUMNS),
]


class TableRows:
    """What both tasks take: `table`, or one of the plain forms under `inputs`."""

    def __init__(self, request: HfRequest) -> None:
        assert isinstance(request.task, TabularTask)
        self._config = request.config
        fields = request.inputs if isinstance(request.inputs, dict) else {"rows": request.inputs}
        for key in ("table", "data"):  # the second is what the service's own pages show
            if set(fields) == {key}:
                fields = plain_table(fields[key], request.task, request.config)
        self.items = [request.task.from_plain(fields, request.config)]


class RowLabels(TableRows):
    """`tabular-classification`."""

    def answer(self, outputs: Sequence[TableOutput]) -> Reply:
        """`[label, …]`, one a row."""
        (output,) = outputs
        known = output.labels or self._config.labels
        return reply_json([label_of(index, known) for index in output.classes.tolist()])


class RowNumbers(TableRows):
    """`tabular-regression`."""

    def answer(self, outputs: Sequence[RegressionOutput]) -> Reply:
        """`[number, …]`, one a row."""
        (output,) = outputs
        return Reply(encode_plain(output.values.tolist()))


def plain_table(given: Any, task: TabularTask, config: TaskConfig) -> dict[str, Any]:
    """A table in a plain form: as it is, or as rows by its order for a model without names."""
    if has_names(task, config):
        return {"table": given}
    try:
        table: dict[str, list[Any]] = msgspec.convert(given, Table)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"'table' is wrong: {error}", param="table") from error
    if len({len(column) for column in table.values()}) > 1:
        raise InvalidInput("the columns of 'table' are not equally long", param="table")
    columns = [[number_of_text(value) for value in column] for column in table.values()]
    return {"rows": [list(row) for row in zip(*columns, strict=True)]}


def has_names(task: TabularTask, config: TaskConfig) -> bool:
    """Whether the model knows its columns by name."""
    options: Mapping[str, Any] = config.options
    return bool(
        len(task.inputs(config)) > 1 or options.get("feature_names") or options.get("columns")
    )
