# pyright: standard
"""What recipes of tables share: rows as they are in a file → the matrix that a model is served with.

The same matrix is made of requests: by `[[options.columns]]`, in their order, a missing value NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OrdinalEncoder

from wherry.models.tasks.table_columns import Column

Array = np.ndarray[Any, np.dtype[Any]]


def to_matrix(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> Array:
    """Objects (rows, columns): texts, floats, and NaN for what is missing (None)."""
    matrix = np.empty((len(rows), len(columns)), dtype=object)
    for row, values in enumerate(rows):
        for column, each in enumerate(columns):
            value = values[each.name]
            matrix[row, column] = math.nan if value is None else value
    return matrix


def make_encoder(columns: Sequence[Column]) -> ColumnTransformer:
    """Categories as numbers, other columns as they are; what is missing stays NaN."""
    parts = [
        (f"category {index}", _encode(column), [index])
        for index, column in enumerate(columns)
        if column.kind == "category"
    ]
    return ColumnTransformer(parts, remainder="passthrough")


def _encode(column: Column) -> OrdinalEncoder:
    categories: Any = [np.array([*column.categories, math.nan], dtype=object)]
    if column.accepts_unknown:
        return OrdinalEncoder(
            categories=categories, handle_unknown="use_encoded_value", unknown_value=math.nan
        )
    return OrdinalEncoder(categories=categories)


def describe_columns(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Columns as a bundle's option."""
    return [msgspec.to_builtins(column) for column in columns]


def as_sample(row: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    """A row in the plain form: what is missing is left out."""
    found = {each.name: row[each.name] for each in columns if row[each.name] is not None}
    return {"row": found}
