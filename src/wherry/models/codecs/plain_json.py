"""What the codecs of plain JSON share."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from wherry.errors import InvalidInput

_encoder = msgspec.json.Encoder()


def encode_plain(answer: Any) -> bytes:
    """An answer as JSON; `InvalidInput` if it holds a number that JSON does not have."""
    body = _encoder.encode(answer)
    # msgspec writes NaN as null: only then is a second look worth its time
    if b"null" in body and has_bad_number(answer):
        raise InvalidInput(
            "the answer holds NaN or infinity, which JSON cannot carry",
            hint="ask for binary data over /v2",
        )
    return body


def has_bad_number(value: Any) -> bool:
    """Whether a plain answer holds NaN or infinity."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(has_bad_number(each) for each in value.values())
    if isinstance(value, (list, tuple)):
        return any(has_bad_number(each) for each in value)
    return False
