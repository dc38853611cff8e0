"""Forecasts without a model file: each series is fitted when it is asked.

Options of a bundle: `method` (`auto`, the default, is exponential smoothing; `season` repeats the last
season; `drift` draws a line), `season` (values after which things are alike; 0 for none) and those of
the task. A season that neither the request nor the bundle says follows from the frequency if the series
shows it, else from its autocorrelation. Longer pasts than are fitted are cut: see `smoothing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.forecasting import Forecast, ForecastInput, Series, SeriesForecast
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput, Usage
from wherry.worker.runtimes.forecasts.simple import drift, fill, find_season, repeat_season
from wherry.worker.runtimes.forecasts.smoothing import smooth
from wherry.worker.runtimes.runtime import ItemError, Prepared

FEWEST_SMOOTHED = 4
"""A shorter series is told its last value."""


class ForecasterOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    method: Literal["auto", "season", "drift"] = "auto"
    season: Annotated[int, Meta(ge=0, le=1 << 16)] | None = None


class ForecasterRuntime:
    """Classical forecasts in numpy."""

    max_batch_rows = 64
    max_batch_cost = 0

    def load(self, bundle: Bundle, device: str) -> None:
        """Read the options: there is nothing to open."""
        if bundle.manifest.task != "time-series-forecasting":
            raise InvalidInput(f"the forecaster does not do the task {bundle.manifest.task!r}")
        self.options = read_options(bundle.manifest.options, ForecasterOptions)

    def prepare(self, item: ForecastInput) -> Prepared:
        """Refuse what these methods cannot use."""
        if any(series.covariates for series in item.series):
            raise InvalidInput("the model takes no covariates", param="covariates")
        return Prepared(item, rows=max(1, len(item.series)))

    def run(self, batch: Sequence[Prepared]) -> Sequence[TaskOutput | ItemError]:
        """One series after the other."""
        return [self._answer(prepared.payload) for prepared in batch]

    def _answer(self, item: ForecastInput) -> Forecast:
        forecasts = [self._forecast(series, item) for series in item.series]
        return Forecast(asked=item, forecasts=forecasts, usage=Usage(rows=max(1, len(forecasts))))

    def _forecast(self, series: Series, item: ForecastInput) -> SeriesForecast:
        values = fill(series.values)
        if self.options.method == "drift":
            return drift(values, item.horizon, item.quantiles)
        season = self._season_of(series, item)
        if self.options.method == "season" or len(values) < FEWEST_SMOOTHED:
            return repeat_season(values, season, item.horizon, item.quantiles)
        return smooth(series.values, season, item.horizon, item.quantiles)

    def _season_of(self, series: Series, item: ForecastInput) -> int:
        stated = item.season if item.season is not None else self.options.season
        if stated is not None:
            return stated
        hinted = series.timeline.step.season if series.timeline else 0
        return find_season(series.values, hinted)

    def close(self) -> None:
        """Nothing is held."""
