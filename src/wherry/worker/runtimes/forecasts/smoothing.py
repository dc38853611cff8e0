# pyright: standard
"""Exponential smoothing with a damped trend and a season, fitted when it is asked.

The additive models of Hyndman and others (Forecasting with Exponential Smoothing, 2008), of the
values and of their logarithms, which makes trend and season grow with the level. All parameters
of all models are tried side by side, as one vector: a step in time costs some operations of numpy,
whatever their number. The one with the lowest AICc answers; its own errors make the quantiles.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np

from wherry.models.tasks.forecasting import SeriesForecast

Array = np.ndarray[Any, np.dtype[Any]]

MAX_FITTED = 1000
"""Newest values that are fitted, or three seasons of them if that is more."""
MAX_SEASON = 800
"""Longest season that is fitted."""
ROUNDS = 2
"""Times that parameters near the best ones are tried."""
NEAR = 96
"""So many of them."""
LEVELS = (0.02, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.99)
TRENDS = ((0.02, 0.9), (0.1, 0.9), (0.3, 0.9), (0.02, 0.98), (0.1, 0.98), (0.3, 0.98))
"""Share of the level's correction that the trend takes, and what is left of it after a step."""
SEASONS = (0.01, 0.1, 0.3)
"""Share of what the level leaves that the season takes."""
SMALLEST = 1e-12


class Start(msgspec.Struct):
    """Where a series begins, in values or logarithms."""

    level: float
    slope: float
    """Of a step, if there is a trend."""
    season: Array
    """[season]; zeros if there is none."""


class Tried(msgspec.Struct):
    """Parameters that are tried side by side, each [tried]."""

    alpha: Array
    beta: Array
    """0 where there is no trend."""
    phi: Array
    gamma: Array
    """0 where there is no season."""
    has_season: Array
    is_log: Array

    def pick(self, chosen: Any) -> Tried:
        """Some of them."""
        return Tried(*(getattr(self, name)[chosen] for name in self.__struct_fields__))


class Fitted(msgspec.Struct):
    """How they did, each [tried]; states [tried] after the last value."""

    score: Array
    sigma: Array
    level: Array
    slope: Array
    season: Array
    """[season, tried]"""


def smooth(values: Array, season: int, horizon: int, levels: tuple[float, ...]) -> SeriesForecast:
    """Forecast a series.

    Args:
        values: float64 [length], NaN where one is missing; the first is not.
        season: Values after which things are alike; 0 if they never are.
        horizon: Steps to tell.
        levels: Of the quantiles.
    """
    season = season if 2 <= season <= MAX_SEASON and len(values) >= 2 * season + 3 else 0
    values = values[-max(MAX_FITTED, 3 * season) :]
    values = values[np.flatnonzero(~np.isnan(values))[0] :]
    unit = float(np.nanmax(np.abs(values))) or 1.0
    scaled = values / unit
    tried = make_grid(season, bool(np.nanmin(scaled) > SMALLEST))
    best, fitted = fit_best(scaled, tried, season)
    mean, quantiles = tell(best, fitted, season, len(values), horizon, levels)
    return SeriesForecast(mean * unit, quantiles * unit, name_of(best))


def make_grid(season: int, is_positive: bool) -> Tried:
    """Parameters that are tried first."""
    rows = [
        (alpha, alpha * beta, phi, (1 - alpha) * gamma, gamma > 0, is_log)
        for is_log in ([False, True] if is_positive else [False])
        for alpha in LEVELS
        for beta, phi in ((0.0, 1.0), *TRENDS)
        for gamma in ((0.0, *SEASONS) if season else (0.0,))
    ]
    return Tried(*(np.array(column) for column in zip(*rows, strict=True)))


def fit_best(values: Array, tried: Tried, season: int) -> tuple[Tried, Fitted]:
    """The best of the grid and of what is near it."""
    random = np.random.default_rng(0)
    best, best_fit = _best(values, tried, season)
    for round_number in range(ROUNDS):
        near = _near(best, 0.5 ** (round_number + 1), random)
        found, found_fit = _best(values, near, season)
        if found_fit.score[0] < best_fit.score[0]:
            best, best_fit = found, found_fit
    return best, best_fit


def _best(values: Array, tried: Tried, season: int) -> tuple[Tried, Fitted]:
    fitted = fit(values, tried, season)
    index = [int(np.argmin(fitted.score))]
    return tried.pick(index), Fitted(
        fitted.score[index],
        fitted.sigma[index],
        fitted.level[index],
        fitted.slope[index],
        fitted.season[:, index],
    )


def _near(best: Tried, spread: float, random: np.random.Generator) -> Tried:
    near = best.pick(np.zeros(NEAR, dtype=int))
    alpha = np.clip(near.alpha * np.exp(spread * random.normal(size=NEAR)), 0.001, 0.999)
    share = near.beta / near.alpha * np.exp(spread * random.normal(size=NEAR))
    phi = np.clip(near.phi + 0.05 * spread * random.normal(size=NEAR), 0.8, 0.98)
    gamma = near.gamma * np.exp(spread * random.normal(size=NEAR))
    return Tried(
        alpha,
        alpha * np.clip(share, 0, 1),
        np.where(near.beta > 0, phi, 1.0),
        np.minimum(gamma, 1 - alpha),
        near.has_season,
        near.is_log,
    )


def fit(values: Array, tried: Tried, season: int) -> Fitted:
    """Let every set of parameters go through the series, one step behind it."""
    length, count, period = len(values), len(tried.alpha), max(season, 1)
    starts = [find_start(values, season)]
    starts.append(find_start(np.log(values), season) if tried.is_log.any() else starts[0])
    of = tried.is_log.astype(int)
    has_trend = tried.beta > 0
    level = np.array([start.level for start in starts])[of]
    slope = np.where(has_trend, np.array([start.slope for start in starts])[of], 0.0)
    seasons = np.where(tried.has_season, np.stack([start.season for start in starts])[of].T, 0.0)
    both = np.stack([values, np.log(values) if tried.is_log.any() else values])
    squares, seen = np.zeros(count), 0
    for step in range(length):
        phase = step % period
        forward = tried.phi * slope
        base = level + forward
        if np.isnan(values[step]):
            level, slope = base, forward
            continue
        error = both[of, step] - base - seasons[phase]
        squares += error * error
        seen += 1
        level = base + tried.alpha * error
        slope = forward + tried.beta * error
        seasons[phase] += tried.gamma * error
    parameters = 2.0 + 3.0 * has_trend + tried.has_season * (1.0 + (period - 1) / 2)
    return Fitted(
        _score(squares, seen, parameters, both[1], tried.is_log),
        np.sqrt(squares / np.maximum(seen - parameters, max(1.0, seen / 3))),
        level,
        slope,
        seasons,
    )


def _score(squares: Array, seen: int, parameters: Array, logs: Array, is_log: Array) -> Array:
    """AICc; that of logarithms as one of the values themselves, by their Jacobian.

    The season's start counts half: it is not fitted with the rest, but averaged beforehand.
    """
    jacobian = 2 * float(np.nansum(logs)) if is_log.any() else 0.0
    spare = np.maximum(seen - parameters - 1, 1.0)
    penalty = 2 * parameters + 2 * parameters * (parameters + 1) / spare
    return seen * np.log(np.maximum(squares / seen, SMALLEST)) + penalty + jacobian * is_log


def find_start(values: Array, season: int) -> Start:
    """Level, slope and season of the first values, before the first of them."""
    if not season:
        some = np.diff(values[: min(len(values), 12)])
        some = some[~np.isnan(some)]
        return Start(float(values[0]), float(some.mean()) if len(some) else 0.0, np.zeros(1))
    cycles = min(len(values) // season, 4)
    table = values[: cycles * season].reshape(cycles, season)
    means = _mean(table, 1, float(np.nanmean(values)))
    slope = float(means[-1] - means[0]) / (season * max(cycles - 1, 1))
    line = means[:, None] + slope * (np.arange(season) - (season - 1) / 2)
    phases = _mean(table - line, 0, 0.0)
    level = float(means[0]) - slope * (season + 1) / 2
    return Start(level, slope, phases - phases.mean())


def _mean(table: Array, axis: int, otherwise: float) -> Array:
    """Means of what is there."""
    counts = (~np.isnan(table)).sum(axis=axis)
    return np.where(counts > 0, np.nansum(table, axis=axis) / np.maximum(counts, 1), otherwise)


def tell(
    best: Tried, fitted: Fitted, season: int, length: int, horizon: int, levels: tuple[float, ...]
) -> tuple[Array, Array]:
    """Means [horizon] (medians of logarithms) and quantiles [horizon, levels]."""
    steps = np.arange(1, horizon + 1)
    damped = np.cumsum(best.phi[0] ** steps)
    period = max(season, 1)
    centre = fitted.level[0] + damped * fitted.slope[0]
    centre = centre + fitted.season[(length + steps - 1) % period, 0]
    effect = best.alpha[0] + best.beta[0] * damped
    if season:
        effect = effect + best.gamma[0] * (steps % period == 0)
    variance = fitted.sigma[0] ** 2 * (1 + np.concatenate([[0.0], np.cumsum(effect[:-1] ** 2)]))
    spread = np.sqrt(variance)
    bends = np.array([NormalDist().inv_cdf(level) for level in levels])
    quantiles = centre[:, None] + spread[:, None] * bends
    if not best.is_log[0]:
        return centre, quantiles
    limit = 600.0  # of what exp can still tell
    # of logarithms the median: their mean grows with the variance, which is an estimate of a few errors
    return np.exp(np.clip(centre, -limit, limit)), np.exp(np.clip(quantiles, -limit, limit))


def name_of(best: Tried) -> str:
    """What was chosen, in words."""
    parts = ["level"]
    if best.beta[0] > 0:
        parts.append("damped trend")
    if best.has_season[0]:
        parts.append("season")
    return "smoothing of " + ", ".join(parts) + (" in logarithms" if best.is_log[0] else "")
