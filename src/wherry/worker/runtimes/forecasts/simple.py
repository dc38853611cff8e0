# pyright: standard
"""The simplest forecasts, which all others are measured against; and seasons, found in the values."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np

from wherry.models.tasks.forecasting import SeriesForecast

Array = np.ndarray[Any, np.dtype[Any]]

CLEAR = 0.35
"""Least autocorrelation that counts as a season."""
NEARLY = 0.8
"""Share of the largest autocorrelation with which an earlier lag is preferred: its multiples are peaks, too."""
CYCLES = 3
"""Least times that a season must have been seen to be found."""
LONGEST = 400
"""Longest season that is looked for."""


def repeat_season(
    values: Array, season: int, horizon: int, levels: tuple[float, ...]
) -> SeriesForecast:
    """What was a season ago comes again; without a season, the last value."""
    filled = fill(values)
    period = season if 2 <= season <= len(filled) else 1
    steps = np.arange(horizon)
    mean = filled[len(filled) - period + steps % period]
    errors = filled[period:] - filled[:-period]
    spread = _spread(errors) * np.sqrt(steps // period + 1)
    name = "the last season again" if period > 1 else "the last value again"
    return SeriesForecast(mean, _quantiles(mean, spread, levels), name)


def drift(values: Array, horizon: int, levels: tuple[float, ...]) -> SeriesForecast:
    """The straight line through the first and the last value."""
    filled = fill(values)
    steps, changes = np.arange(1, horizon + 1), np.diff(filled)
    slope = float(changes.mean()) if len(changes) else 0.0
    mean = filled[-1] + slope * steps
    spread = _spread(changes - slope) * np.sqrt(steps * (1 + steps / max(len(changes), 1)))
    return SeriesForecast(mean, _quantiles(mean, spread, levels), "a straight line")


def fill(values: Array) -> Array:
    """Missing values by a line between their neighbours."""
    seen = ~np.isnan(values)
    if seen.all():
        return values
    return np.interp(np.arange(len(values)), np.flatnonzero(seen), values[seen])


def find_season(values: Array, hinted: int = 0) -> int:
    """The first lag at which changes are about as alike as at any; 0 if they nowhere are.

    A hinted one is believed if they are alike at all.
    """
    changes = np.diff(fill(values))
    changes = changes - changes.mean() if len(changes) else changes
    power = float(changes @ changes)
    longest = min(LONGEST, len(changes) // CYCLES)
    if longest < 2 or power <= 0:
        return 0
    spectrum = np.abs(np.fft.rfft(changes, 2 * len(changes))) ** 2
    alike = np.fft.irfft(spectrum)[: len(changes)] / power
    if 2 <= hinted <= len(changes) // 2 and alike[hinted] >= CLEAR / 2:
        return hinted
    inner = alike[2:longest]
    peaks = 2 + np.flatnonzero(
        (inner >= alike[1 : longest - 1]) & (inner >= alike[3 : longest + 1])
    )
    peaks = peaks[alike[peaks] >= CLEAR]
    return int(peaks[alike[peaks] >= NEARLY * alike[peaks].max()][0]) if len(peaks) else 0


def _spread(errors: Array) -> float:
    return float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0


def _quantiles(mean: Array, spread: Array, levels: tuple[float, ...]) -> Array:
    bends = np.array([NormalDist().inv_cdf(level) for level in levels])
    return mean[:, None] + spread[:, None] * bends
