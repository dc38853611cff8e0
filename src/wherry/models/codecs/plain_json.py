"""What the codecs of plain JSON share."""

from __future__ import annotations

import math
from typing import Any


def has_bad_number(value: Any) -> bool:
    """Whether a plain answer holds NaN or infinity."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(has_bad_number(each) for each in value.values())
    if isinstance(value, (list, tuple)):
        return any(has_bad_number(each) for each in value)
    return False
