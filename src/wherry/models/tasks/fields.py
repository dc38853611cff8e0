"""Fields beside the input in a plain request: numbers and texts within bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wherry.errors import InvalidInput


def read_number(body: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    """A number of the body; None if it is left out or null."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
        raise InvalidInput(f"{name!r} must be a number from {least:g} to {most:g}", param=name)
    return float(value)


def read_integer(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    """An integer of the body; None if it is left out or null."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise InvalidInput(f"{name!r} must be an integer from {least} to {most}", param=name)
    return value
