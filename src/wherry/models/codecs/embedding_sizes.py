"""What the embedding codecs share: vectors shorter than the model's own."""

from __future__ import annotations

import numpy as np

from wherry.errors import InvalidInput
from wherry.models.tasks.task import TaskConfig

MAX_DIMENSIONS = 1 << 16


def check_dimensions(wanted: int, own: int, config: TaskConfig) -> None:
    """Refuse a length that the model's vectors do not have and may not be cut to; `own` 0 = unknown."""
    if own == 0 or wanted == own:  # unknown yet: checked again with the first vector
        return
    if wanted < own and config.options.get("shortenable") is True:
        return
    raise InvalidInput(
        f"the model's vectors have {own} dimensions, not {wanted}",
        hint=f"leave 'dimensions' out, or send {own}",
        param="dimensions",
    )


def shorten(vector: np.ndarray, wanted: int | None, config: TaskConfig) -> np.ndarray:
    """The vector with so many dimensions, of length 1 if it had to be cut."""
    if wanted is None:
        return vector
    check_dimensions(wanted, len(vector), config)
    if wanted == len(vector):
        return vector
    vector = vector[:wanted]
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
