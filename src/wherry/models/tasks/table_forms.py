"""The forms in which plain JSON carries a table → one list of values a column, or a matrix.

| body | |
| --- | --- |
| `{"row": [5.1, 3.5]}`, `{"row": {"age": 3}}`, `{"age": 3}`, `{"features": {"age": 3}}` | one row |
| `{"rows": [[…], {…}]}` | many rows, each a list or an object |
| `{"columns": {"age": [3, 4]}}`, `{"data": {"age": [3, 4]}}` | many rows, column by column |
| `{"columns": ["age"], "data": [[3], [4]]}` | many rows, as pandas splits a frame |
| `{"table": {"age": ["3", "4"]}}` | the same as Hugging Face sends it: numbers may be strings |

Each may stand under `inputs`. An object leaves out, or sets to null, what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from wherry.errors import InvalidInput
from wherry.models.tasks.table_columns import check_size, list_names

ROW_KEYS = ("rows", "row", "features", "inputs", "input")
HINT = 'send {"row": […]}, {"rows": […]} or {"columns": {"name": […]}}'


class Table(msgspec.Struct):
    """A table as it came: by rows, or by columns."""

    rows: list[Any] = []
    """Each a list or an object."""
    columns: Mapping[str, list[Any]] | None = None
    many: bool = True
    are_texts: bool = False
    """Whether numbers may be strings."""


def read_table(body: Mapping[str, Any], names: Sequence[str] = ()) -> Table:
    """The table in a plain body.

    Args:
        body: See the module's docstring.
        names: Of the model's columns: an object whose keys they are is a row.
    """
    if not body:
        raise InvalidInput("the body is empty", hint='send {"row": […]}', param="row")
    if not any(name in body for name in names):
        inner = body.get("inputs")
        rest = {key: value for key, value in body.items() if key not in ("inputs", "parameters")}
        if isinstance(inner, dict) and not rest:
            return read_table(inner, names)
        if "inputs" in body and inner is None and rest:
            return read_table(rest, names)
        if body.get("parameters") == {}:
            return read_table({key: body[key] for key in body if key != "parameters"}, names)
        for key in ("table", "columns", "data"):
            if isinstance(body.get(key), dict):
                return _read_columns(key, body)
        if isinstance(body.get("columns"), list):
            return _read_split(body)
    return _read_rows(body)


def _read_rows(body: Mapping[str, Any]) -> Table:
    key = next((key for key in (*ROW_KEYS, "data") if isinstance(body.get(key), list | dict)), None)
    if key is None:
        return Table([body], many=False)
    _check_alone(key, body)
    value: Any = body[key]
    many = isinstance(value, list) and all(isinstance(row, list | dict) for row in value)
    if key in ("rows", "data") and not many:
        raise InvalidInput(
            f"{key!r} must be a list of rows", hint='or send {"row": […]}', param=key
        )
    return Table(value, many=True) if many and value else Table([value], many=False)


def _read_columns(key: str, body: Mapping[str, Any]) -> Table:
    _check_alone(key, body)
    columns: dict[str, Any] = body[key]
    for name, values in columns.items():
        if not isinstance(values, list):
            raise InvalidInput(
                f"column {name[:80]!r} is no list of values", hint=HINT, param=name[:80]
            )
    _check_lengths(columns)
    return Table(columns=columns, are_texts=key != "columns")


def _read_split(body: Mapping[str, Any]) -> Table:
    names, rows = body["columns"], body.get("data")
    if set(body) - {"columns", "data", "index"} or not isinstance(rows, list):
        raise InvalidInput("'columns' as a list goes with 'data', a list of rows", param="data")
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise InvalidInput("'columns' must be names, each of them once", param="columns")
    if not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        raise InvalidInput(f"each row of 'data' must be a list of {len(names)}", param="data")
    check_size(len(rows), len(names))
    columns = {name: [row[index] for row in rows] for index, name in enumerate(names)}
    return Table(columns=columns)


def _check_alone(key: str, body: Mapping[str, Any]) -> None:
    if len(body) > 1:
        raise InvalidInput(f"{key!r} must stand alone in the body", param=key)


def _check_lengths(columns: Mapping[str, list[Any]]) -> None:
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        first = next(iter(columns))
        other = next(name for name in columns if len(columns[name]) != len(columns[first]))
        raise InvalidInput(
            f"column {first[:80]!r} has {len(columns[first])} values, {other[:80]!r} has "
            f"{len(columns[other])}",
            hint="null stands for a missing value",
            param=other[:80],
        )


def by_column(
    table: Table, names: Sequence[str], optional: frozenset[str] = frozenset()
) -> dict[str, list[Any]]:
    """A list of values for each of the model's columns, None where one is missing.

    Args:
        table: As it came.
        names: Of the model's columns, in its order.
        optional: Those that a row or a table may leave out.
    """
    if table.columns is not None:
        check_names(table.columns, names, optional)
        count = max((len(values) for values in table.columns.values()), default=0)
        check_size(count, len(names))
        if not count:
            raise InvalidInput("the table has no rows", hint=HINT)
        return {name: table.columns.get(name) or [None] * count for name in names}
    check_size(len(table.rows), len(names))
    for row in table.rows:
        if isinstance(row, dict):
            check_names(row, names, optional)
        elif not isinstance(row, list) or len(row) != len(names):
            raise InvalidInput(f"a row must have {len(names)} values", hint=list_names(names))
    return {
        name: [row.get(name) if isinstance(row, dict) else row[index] for row in table.rows]
        for index, name in enumerate(names)
    }


def by_row(table: Table, names: Sequence[str]) -> list[list[Any]]:
    """Rows as lists in the model's order of features; names may be unknown."""
    if table.columns is not None:
        if not names:
            raise InvalidInput("the model has no feature names", hint='send {"row": [numbers]}')
        columns = by_column(table, names)
        return [list(row) for row in zip(*(columns[name] for name in names), strict=True)]
    return [_in_order(row, names) for row in table.rows]


def _in_order(row: Any, names: Sequence[str]) -> list[Any]:
    if isinstance(row, list):
        return row
    if not names:
        raise InvalidInput("the model has no feature names", hint='send {"row": [numbers]}')
    check_names(row, names)
    return [row[name] for name in names]


def check_names(
    given: Mapping[str, Any], names: Sequence[str], optional: frozenset[str] = frozenset()
) -> None:
    """Every feature that must be there is, and nothing else."""
    known = frozenset(names)
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise InvalidInput(
            f"unknown feature {unknown[:80]!r}", hint=list_names(names), param=unknown[:80]
        )
    missing = next((name for name in names if name not in given and name not in optional), None)
    if missing is not None:
        raise InvalidInput(f"missing feature {missing!r}", hint=list_names(names), param=missing)
