"""A model that returns its tensor as it came: the smallest Python class that Wherry serves."""

from __future__ import annotations

from typing import Any


class Model:
    """Takes `X` of any datatype and shape, gives `X` back."""

    def predict(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One result for every item: a dict of arrays, as it came in."""
        return [{"X": item["X"]} for item in batch]
