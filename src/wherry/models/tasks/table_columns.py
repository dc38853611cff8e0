"""The columns of a table: what a bundle declares of each, and values → one array a column.

A bundle declares its columns in `[[options.columns]]`. One that does not has a signature of one
tensor a column, or of one matrix, whose columns `[options].feature_names` may name.

A missing value is NaN in a column of numbers, and an empty string in one of texts. Numbers in plain
JSON may be strings where all values are (Hugging Face's `table`), and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.tasks.task import TaskConfig, TensorSpec
from wherry.models.tasks.tensor import Array

MAX_COLUMNS = 1 << 16
MAX_CELLS = 1 << 22
"""Most values of one request: rows as objects may be shorter than the values they stand for."""
MAX_NAMED = 12
"""Most names that an error message lists."""
MAX_DIGITS = 64
"""Longest text that is read as a number."""
INT64_LIMIT = 1 << 63
MISSING_TEXTS = frozenset({"", "nan", "NaN", "NA", "null", "None", "<NA>"})
"""What pandas and others write for a missing value where everything is text."""
BOOLEANS = {"true": True, "True": True, "1": True, "false": False, "False": False, "0": False}

Kind = Literal["number", "integer", "boolean", "category", "text"]


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One column, as a bundle declares it."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    kind: Kind = "number"
    required: bool = True
    """False if values may be missing."""
    categories: tuple[str, ...] = ()
    """Values that the model knows, of a category."""
    accepts_unknown: bool = False
    """Whether another category is handed to the model, whose encoder knows what to do with it."""

    @property
    def datatype(self) -> str:
        """Open Inference datatype; of what may be missing one that has a missing value."""
        if self.kind in ("category", "text"):
            return "BYTES"
        if self.kind == "number" or not self.required:
            return "FP64"
        return "INT64" if self.kind == "integer" else "BOOL"

    @property
    def spec(self) -> TensorSpec:
        """The column as a tensor of its own."""
        return TensorSpec(self.name, self.datatype, (-1,))


class ColumnOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    columns: Annotated[tuple[Column, ...], Meta(max_length=MAX_COLUMNS)] = ()


def read_columns(config: TaskConfig) -> tuple[Column, ...]:
    """The declared columns; none if the bundle declares none."""
    declared = config.options.get("columns")
    if not declared:
        return ()
    try:
        columns = msgspec.convert(config.options, ColumnOptions).columns
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the bundle's columns are wrong: {error}") from error
    names = [column.name for column in columns]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(f"the bundle declares the column {twice!r} twice")
    return columns


def check_columns(config: TaskConfig) -> None:
    """A bundle's columns are what its signature takes: `InvalidInput` if not."""
    columns = read_columns(config)
    inputs = list(config.signature.inputs)
    names = [column.name for column in columns]
    if not columns or not inputs or [spec.name for spec in inputs] == names:
        return
    shape = inputs[0].shape
    if len(inputs) > 1 or len(shape) != 2 or shape[1] not in (-1, len(names)):
        raise InvalidInput(
            "the bundle's columns are not the inputs of its signature",
            hint="leave out the inputs: they follow from the columns",
        )
    if any(column.datatype == "BYTES" for column in columns):
        raise InvalidInput("a matrix of numbers cannot hold the bundle's columns of text")


def to_arrays(
    values: Mapping[str, Sequence[Any]], columns: Sequence[Column], *, are_texts: bool = False
) -> dict[str, Array]:
    """One array (rows,) a column of plain values.

    Args:
        values: Of every column, a value a row; None where one is missing.
        columns: What they must be.
        are_texts: Whether numbers may be written as strings.
    """
    return {
        column.name: _to_array(column, values[column.name], are_texts=are_texts)
        for column in columns
    }


def _to_array(column: Column, values: Sequence[Any], *, are_texts: bool) -> Array:
    read = _READERS[column.kind]
    missing: Any = b"" if column.datatype == "BYTES" else math.nan
    found: list[Any] = []
    for row, value in enumerate(values):
        if are_texts and isinstance(value, str):
            value = _read_text(column, value)
        if value is None:
            _refuse_missing(column, row)
            found.append(missing)
            continue
        read_value = read(value)
        if read_value is None:
            raise _wrong(column, row, f"is {_shown(value)}, not {_WANTED[column.kind]}")
        found.append(read_value)
    if column.datatype == "BYTES":
        array = np.empty(len(found), dtype=object)
        array[:] = found
        return array
    kind = {"INT64": np.int64, "BOOL": np.bool_}.get(column.datatype, np.float64)
    return np.array(found, dtype=kind)


def check_arrays(arrays: Mapping[str, Array], columns: Sequence[Column]) -> None:
    """Values are there where they must be, finite, and known categories; as tensors too."""
    for column in columns:
        array = arrays[column.name]
        if array.dtype.kind == "O":
            _check_texts(column, array.ravel().tolist())
        elif array.dtype.kind == "f":
            if np.isinf(array).any():
                row = int(np.argmax(np.isinf(array).ravel()))
                raise _wrong(column, row, "is infinite")
            if column.required and np.isnan(array).any():
                _refuse_missing(column, int(np.argmax(np.isnan(array).ravel())))


def _check_texts(column: Column, values: Sequence[bytes]) -> None:
    if column.required and column.kind == "category" and b"" in values:
        _refuse_missing(column, values.index(b""))
    if not column.categories or column.accepts_unknown:
        return
    known = _encoded(column.categories)
    if unknown := set(values) - known - {b""}:
        row = next(row for row, value in enumerate(values) if value in unknown)
        text = values[row].decode("utf-8", "replace")
        raise InvalidInput(
            f"column {column.name!r}, row {row}: unknown category {text[:80]!r}",
            hint=list_names(column.categories, "categories"),
            param=column.name,
        )


@lru_cache(maxsize=256)
def _encoded(categories: tuple[str, ...]) -> frozenset[bytes]:
    return frozenset(category.encode() for category in categories)


def _refuse_missing(column: Column, row: int) -> None:
    if column.required:
        raise _wrong(column, row, "is missing, and the model needs it")


def _wrong(column: Column, row: int, what: str) -> InvalidInput:
    return InvalidInput(f"column {column.name!r}, row {row}: the value {what}", param=column.name)


def _shown(value: Any) -> str:
    if isinstance(value, str | int | float):
        return repr(value)[:80]
    return f"a JSON {'object' if isinstance(value, dict) else 'list'}"


def _read_text(column: Column, text: str) -> Any:
    """A value out of a table whose values are all text; as it is where it is not of its kind."""
    if text in column.categories or (column.kind == "text" and column.required):
        return text
    if text in MISSING_TEXTS:
        return None
    if column.kind == "boolean":
        return BOOLEANS.get(text, text)
    return number_of_text(text) if column.kind in ("number", "integer") else text


def number_of_text(value: Any) -> Any:
    """The number that a text says, None for a missing one; anything else as it is."""
    if not isinstance(value, str):
        return value
    if value in MISSING_TEXTS:
        return None
    if len(value) > MAX_DIGITS or "_" in value:
        return value
    try:
        return int(value)
    except ValueError:
        try:
            return float(value)
        except ValueError:
            return value


def _number(value: Any) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        return found if math.isfinite(found := float(value)) else None
    except OverflowError:
        return None


def _integer(value: Any) -> int | None:
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and -INT64_LIMIT <= value < INT64_LIMIT else None


def _boolean(value: Any) -> bool | None:
    return value if type(value) is bool else None


def _text(value: Any) -> bytes | None:
    return value.encode() if type(value) is str else None


_READERS: dict[Kind, Any] = {
    "number": _number,
    "integer": _integer,
    "boolean": _boolean,
    "category": _text,
    "text": _text,
}
_WANTED: dict[Kind, str] = {
    "number": "a finite number",
    "integer": "a whole number of 64 bits",
    "boolean": "true or false",
    "category": "a string",
    "text": "a string",
}


def check_size(rows: int, columns: int) -> None:
    """Refuse more values than one request may stand for."""
    if rows * columns > MAX_CELLS:
        raise InvalidInput(
            f"{rows} rows of {columns} columns are over {MAX_CELLS} values",
            hint="send several requests",
        )


def list_names(names: Sequence[str], what: str = "features") -> str:
    """The first names, for a hint."""
    more = f" … ({len(names)} in all)" if len(names) > MAX_NAMED else ""
    return f"{what}: " + ", ".join(name[:80] for name in names[:MAX_NAMED]) + more
