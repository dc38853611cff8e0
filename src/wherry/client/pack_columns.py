# pyright: standard
"""Columns of a table out of the data frame that a model was trained on, for its bundle.

pandas is not needed: a frame is whatever has `columns`, `dtypes` and items by name, so that one of
polars does as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wherry.errors import InvalidInput

if TYPE_CHECKING:
    from wherry.models.tasks.table_columns import Column, Kind

MAX_SAMPLE_ROWS = 100_000
"""Rows of a frame that are looked at."""


def read_frame(model: Any, sample: Any) -> tuple[Column, ...]:
    """The columns of a frame that holds a text, a boolean or a hole; none of other samples.

    Args:
        model: A fitted estimator; what its encoders learnt are the categories.
        sample: Rows as the model was trained on them: a column with a hole in it is not required.
    """
    from wherry.models.tasks.sklearn_columns import find_categories
    from wherry.models.tasks.table_columns import Column

    if not all(hasattr(sample, each) for each in ("columns", "dtypes", "shape")):
        return ()
    categories = find_categories(model)
    found: list[Column] = []
    for index, name in enumerate(map(str, sample.columns)):
        values = [_plain(value) for value in list(sample[name])[:MAX_SAMPLE_ROWS]]
        present = [value for value in values if value is not None]
        known = categories.get(index)
        kind = "category" if known is not None else _kind_of(name, present)
        column = Column(
            name,
            kind,
            required=len(present) == len(values),
            categories=known.values if known is not None else (),
            accepts_unknown=known is not None and known.accepts_unknown,
        )
        found.append(column)
    is_plain = all(column.kind == "number" and column.required for column in found)
    return () if is_plain else tuple(found)


def first_row(sample: Any, columns: Sequence[Column]) -> dict[str, Any]:
    """The frame's first row in the plain form: what is missing is left out."""
    row = {each.name: _plain(next(iter(sample[each.name]))) for each in columns}
    return {name: value for name, value in row.items() if value is not None}


def row_of(values: Mapping[str, Any], columns: Sequence[Column]) -> Any:
    """A row as the runtime gives it to the model: objects if there is a text, floats if not."""
    import numpy as np

    has_text = any(column.datatype == "BYTES" for column in columns)
    row = [values.get(column.name, math.nan) for column in columns]
    return np.array([row], dtype=object if has_text else np.float64)


def _plain(value: Any) -> Any:
    """A cell as Python has it; None for a hole."""
    value = value.item() if hasattr(value, "item") else value
    if value is None or isinstance(value, str | bool):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        # pandas' own holes (NA, NaT) are equal to nothing, not even to themselves
        return None if type(value).__name__ in ("NAType", "NaTType") else str(value)
    return None if math.isnan(number) else value


def _kind_of(name: str, values: Sequence[Any]) -> Kind:
    kinds = {str if isinstance(each, str) else type(each) for each in values}
    if kinds == {bool}:
        return "boolean"
    if kinds == {str}:
        return "text"
    if str in kinds or (bool in kinds and len(kinds) > 1):
        raise InvalidInput(
            f"the column {name!r} of the sample holds texts and numbers",
            hint="make it all text, or all numbers, and fit the model again",
        )
    return "number"
