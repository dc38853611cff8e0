# pyright: standard
"""What recipes of series share: reading them, and measuring forecasts from a rolling origin."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
FOLDER = "pypi:sktime==1.2.0!/sktime/datasets/data"
Tell = Callable[[Array], tuple[Array, Array]]
"""A past → means [horizon], and bounds of four fifths [horizon, 2]."""


class Measured(msgspec.Struct, frozen=True):
    """Means over all origins."""

    mase: float
    """Absolute error as a multiple of that of repeating the season before, within the past."""
    smape: float
    """Absolute error as a share of the mean of both sizes."""
    coverage: float
    """Share of values between the quantiles 0.1 and 0.9, which should be 0.8."""


def read_series(path: Path, column: int = 1) -> Array:
    """A column of numbers of a file with a head."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return np.array([float(row[column]) for row in rows])


def measure(values: Array, tell: Tell, first: int, horizon: int, season: int) -> Measured:
    """Forecast from every origin from `first` on whose horizon is known."""
    errors, shares, inside = [], [], []
    for origin in range(first, len(values) - horizon + 1):
        past, truth = values[:origin], values[origin : origin + horizon]
        mean, bounds = tell(past)
        unit = np.abs(past[season:] - past[:-season]).mean()
        errors.append(np.abs(mean - truth).mean() / unit)
        sizes = (np.abs(mean) + np.abs(truth)) / 2
        shares.append((np.abs(mean - truth) / np.maximum(sizes, 1e-12)).mean())
        inside.append(((truth >= bounds[:, 0]) & (truth <= bounds[:, 1])).mean())
    return Measured(*(float(np.mean(each)) for each in (errors, shares, inside)))
