# pyright: standard
"""What a fitted scikit-learn model knows of the columns of its table.

Known to the packer (client) and to the runtime (worker); scikit-learn itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

INNER = ("best_estimator_", "estimator_", "regressor_", "_preprocessor")
"""Where an estimator keeps a fitted one that sees the same table."""


class Categories(msgspec.Struct, frozen=True):
    """What an encoder learnt of a column of texts."""

    values: tuple[str, ...]
    accepts_unknown: bool


def number_columns(model: Any) -> None:
    """Let columns that were chosen by a data frame's names be chosen by their numbers.

    A server sends arrays: for them scikit-learn refuses names, though it has the numbers too.
    """
    for each in walk(model):
        indices = getattr(each, "_transformer_to_input_indices", None)
        if indices is not None:
            each.transformers_ = [
                (name, inner, indices.get(name, columns))
                for name, inner, columns in each.transformers_
            ]


def walk(model: Any) -> Iterator[Any]:
    """The model, and the fitted parts of pipelines and searches that see its table."""
    yield model
    for _, step in getattr(model, "steps", ()):
        yield from walk(step)
    for _, part in getattr(model, "transformer_list", ()):
        yield from walk(part)
    for name in INNER:
        if (inner := getattr(model, name, None)) is not None:
            yield from walk(inner)


def find_categories(model: Any) -> dict[int, Categories]:
    """Categories by the number of the column; only those of texts."""
    first = next((each for each in walk(model) if not hasattr(each, "steps")), model)
    if hasattr(first, "categories_"):
        return _categories_of(first, range(len(first.categories_)))
    found: dict[int, Categories] = {}
    indices = getattr(first, "_transformer_to_input_indices", {})
    for name, part, _ in getattr(first, "transformers_", ()):
        steps = [step for _, step in getattr(part, "steps", [("", part)])]
        encoder = next((step for step in steps if hasattr(step, "categories_")), None)
        columns = list(indices.get(name, ()))
        if encoder is not None and len(encoder.categories_) == len(columns):
            found |= _categories_of(encoder, columns)
    return found


def _categories_of(encoder: Any, columns: Any) -> dict[int, Categories]:
    accepts_unknown = getattr(encoder, "handle_unknown", "error") != "error"
    found: dict[int, Categories] = {}
    for column, values in zip(columns, encoder.categories_, strict=True):
        texts = tuple(str(value) for value in values.tolist() if isinstance(value, str))
        if texts:
            found[int(column)] = Categories(texts, accepts_unknown)
    return found


def missing_text(model: Any) -> Any:
    """What stands for a missing text: NaN as in a data frame, None if the model learnt that."""
    encoders = [part for each in walk(model) for part in _encoders_in(each)]
    learnt = [
        value for each in encoders for values in each.categories_ for value in values.tolist()
    ]
    return None if None in learnt else float("nan")


def _encoders_in(estimator: Any) -> list[Any]:
    """The estimator itself, or the parts of a ColumnTransformer, that learnt categories."""
    parts = [part for _, part, _ in getattr(estimator, "transformers_", ())]
    found = [estimator, *(step for part in parts for step in walk(part))]
    return [each for each in found if hasattr(each, "categories_")]
