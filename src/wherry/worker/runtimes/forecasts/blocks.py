# pyright: standard
"""Forecasts by a learnt function: a window of the past in, a block of the future out.

The window is scaled as the bundle says (models learn shapes, not sizes), missing values in it are
filled by a line between their neighbours, and a shorter past is filled up on the left with its first
value. A longer horizon is told block by block, each taking the means of the one before as its past;
the spread of a later block is joined with that at the end of the one before (their squares add).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.tasks.forecasting import (
    MAX_HORIZON,
    MAX_LENGTH,
    Forecast,
    ForecastInput,
    Series,
    SeriesForecast,
)
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import Usage
from wherry.worker.runtimes.forecasts.simple import fill

Array = np.ndarray[Any, np.dtype[Any]]
Step = Callable[[Array, Array | None], Array]
"""Scaled windows [series, context, features] and what is known of the future [series, block,
covariates] → scaled values [series, block] or [series, block, levels]."""


class BlockOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    context: Annotated[int, Meta(ge=0, le=MAX_LENGTH)] = 0
    """Values of the past that the function sees; 0 = as many as the file says."""
    scaling: Literal["standard", "mean", "last", "none"] = "standard"
    """What is taken from a window: mean and deviation; its mean size; its last value; nothing."""
    levels: tuple[Annotated[float, Meta(gt=0, lt=1)], ...] = ()
    """Levels of the quantiles that the function gives, rising; none if it gives one number a step."""
    errors: tuple[Annotated[float, Meta(ge=0)], ...] = ()
    """Deviation of the errors at each step of a block, scaled: the spread of one that gives numbers."""
    covariates: tuple[str, ...] = ()
    """Names of what goes with the series, in the order of the function's features."""


class Known(msgspec.Struct):
    """What is known while a horizon is told; grows by a block at a time."""

    past: Array
    """[length]"""
    covariates: Array
    """[length + horizon, covariates]"""


def read_block_options(options: Mapping[str, Any]) -> BlockOptions:
    """The options, checked."""
    found = read_options(options, BlockOptions)
    if list(found.levels) != sorted(set(found.levels)):
        raise InvalidInput("the bundle's levels must rise")
    return found


class BlockForecaster:
    """See the module's docstring.

    Args:
        options: Of the bundle; `context` is set.
        step: The learnt function.
    """

    def __init__(self, options: BlockOptions, step: Step) -> None:
        self.options = options
        self._step = step
        self.block = 0

    def try_out(self) -> Array:
        """One block of a window of ours."""
        past = np.linspace(1.0, 2.0, self.options.context)
        width = len(self.options.covariates)
        return self._run([Known(past, np.zeros((len(past) + MAX_HORIZON, width)))])

    def take_form(self, found: Array) -> None:
        """Learn from a trial how long a block is; the bundle must describe what it holds."""
        options = self.options
        self.block = found.shape[1]
        if found.ndim == 3 and found.shape[2] != len(options.levels):
            raise InvalidInput(
                f"the model gives {found.shape[2]} numbers a step, the bundle names "
                f"{len(options.levels)} levels"
            )
        if found.ndim == 2 and len(options.errors) not in (0, self.block):
            raise InvalidInput(f"the bundle's errors must be {self.block}, one a step of a block")

    def check(self, item: ForecastInput) -> None:
        """Refuse what the function cannot use."""
        for series in item.series:
            if set(series.covariates) != set(self.options.covariates):
                names = ", ".join(self.options.covariates) or "none"
                raise InvalidInput(f"the model takes the covariates: {names}", param="covariates")

    def answer(self, items: Sequence[ForecastInput]) -> list[Forecast]:
        """Forecasts of all series of all items, by as many calls as the longest horizon takes."""
        series = [(each, item) for item in items for each in item.series]
        found = iter(self._tell([each for each, _ in series], [item for _, item in series]))
        return [
            Forecast(
                asked=item,
                forecasts=[next(found) for _ in item.series],
                usage=Usage(rows=max(1, len(item.series))),
            )
            for item in items
        ]

    def _tell(
        self, series: Sequence[Series], items: Sequence[ForecastInput]
    ) -> list[SeriesForecast]:
        known = [self._begin(each, item.horizon) for each, item in zip(series, items, strict=True)]
        means: list[list[Array]] = [[] for _ in series]
        tables: list[list[Array]] = [[] for _ in series]
        longest = max((item.horizon for item in items), default=0)
        for done in range(0, longest, self.block):
            going = [index for index, item in enumerate(items) if item.horizon > done]
            blocks = self._run([known[index] for index in going])
            for index, block in zip(going, blocks, strict=True):
                mean, table = self._read(block, known[index], items[index].quantiles)
                if tables[index]:
                    table = _widen(mean, table, means[index][-1], tables[index][-1])
                means[index].append(mean)
                tables[index].append(table)
                known[index].past = np.concatenate([known[index].past, mean])
        return [
            SeriesForecast(
                np.concatenate(means[index])[: item.horizon],
                np.concatenate(tables[index])[: item.horizon],
            )
            for index, item in enumerate(items)
        ]

    def _begin(self, series: Series, horizon: int) -> Known:
        columns = [series.covariates[name] for name in self.options.covariates]
        beside = (
            np.stack(columns, axis=1) if columns else np.zeros((len(series.values) + horizon, 0))
        )
        past, cut = series.values, max(0, len(series.values) - self.options.context)
        past, beside = fill(past)[cut:], beside[cut:]
        short = self.options.context - len(past)
        if short > 0:
            past = np.concatenate([np.full(short, past[0]), past])
            beside = np.concatenate([np.repeat(beside[:1], short, axis=0), beside])
        return Known(past, beside)

    def _run(self, known: Sequence[Known]) -> Array:
        """One block for each, scaled."""
        context, features = self.options.context, len(self.options.covariates)
        windows = np.zeros((len(known), context, 1 + features))
        future: Array | None = None
        block = self.block
        if features and block:
            future = np.zeros((len(known), block, features))
        for row, each in enumerate(known):
            end = len(each.past)
            shift, scale = self._scale_of(each.past)
            windows[row, :, 0] = (each.past[-context:] - shift) / scale
            windows[row, :, 1:] = each.covariates[end - context : end]
            if future is not None:
                coming = each.covariates[end : end + block]
                future[row, : len(coming)] = coming
        found = np.asarray(self._step(windows, future), dtype=np.float64)
        if found.ndim == 1:
            found = found[:, None]
        if found.ndim not in (2, 3) or len(found) != len(known) or 0 in found.shape:
            raise FormatNotAllowed(
                f"the model gives shape {list(found.shape)}, not [series, steps] or "
                "[series, steps, levels]"
            )
        if not np.isfinite(found).all():
            raise ModelFailed("the model answered with numbers that are not finite")
        return found

    def _scale_of(self, past: Array) -> tuple[float, float]:
        window = past[-self.options.context :]
        match self.options.scaling:
            case "standard":
                return float(window.mean()), float(window.std()) or 1.0
            case "mean":
                return 0.0, float(np.abs(window).mean()) or 1.0
            case "last":
                return float(window[-1]), float(
                    np.abs(np.diff(window)).mean() if len(window) > 1 else 0
                ) or 1.0
            case "none":
                return 0.0, 1.0

    def _read(self, block: Array, known: Known, levels: tuple[float, ...]) -> tuple[Array, Array]:
        """Means and quantiles of a block in the series' own numbers."""
        shift, scale = self._scale_of(known.past)
        if block.ndim == 2:
            table = shift + scale * np.sort(block, axis=1)
            wanted = np.stack([np.interp(levels, self.options.levels, row) for row in table])
            middle = np.stack([np.interp([0.5], self.options.levels, row) for row in table])[:, 0]
            return middle, wanted.reshape(len(table), len(levels))
        mean = shift + scale * block
        errors = scale * np.array(self.options.errors or [0.0] * len(block))
        bends = np.array([NormalDist().inv_cdf(level) for level in levels])
        return mean, mean[:, None] + errors[:, None] * bends


def _widen(mean: Array, table: Array, mean_before: Array, table_before: Array) -> Array:
    """Quantiles of a block whose past is itself a forecast."""
    own, before = table - mean[:, None], table_before[-1] - mean_before[-1]
    return mean[:, None] + np.sign(own) * np.sqrt(own**2 + before**2)
