"""The task `time-series-forecasting`: the past of one series or several in, their future out.

The plain form is `{"target": [112, 118, null, 129], "horizon": 12}`, or several under `series`. A
missing value is null (NaN in a tensor). Times are optional: `start` and `freq`, or `timestamps`. As
tensors: `target` (series, length), shorter series with NaN before them; the bundle's options `horizon`
and `quantiles` say what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, Tensors, TensorSpec
from wherry.models.tasks.tensor import Array
from wherry.models.tasks.timeline import Timeline, read_timeline, read_timestamps

MAX_LENGTH = 1 << 16
"""Most values of a series."""
MAX_SERIES = 1024
MAX_VALUES = 1 << 20
"""Most values of all series of a request, or of their forecasts."""
MAX_HORIZON = 4096
MAX_COVARIATES = 64
LARGEST = 1e100
"""Largest value: squares of differences must be numbers still."""

Level = Annotated[float, Meta(gt=0, lt=1)]
Levels = Annotated[tuple[Level, ...], Meta(max_length=99)]
Values = Annotated[list[float | None], Meta(min_length=1, max_length=MAX_LENGTH)]
Numbers = Annotated[list[float], Meta(max_length=MAX_LENGTH + MAX_HORIZON)]
Horizon = Annotated[int, Meta(ge=1, le=MAX_HORIZON)]
Time = Annotated[str, Meta(min_length=4, max_length=40)]


class ForecastOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    horizon: Horizon = 12
    """Steps that are told where a request does not say."""
    quantiles: Levels = (0.1, 0.5, 0.9)
    """Levels that are told where a request does not say."""


class SeriesBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One series of a plain request."""

    target: Values
    id: Annotated[str, Meta(max_length=256)] = ""
    start: Time | None = None
    freq: Annotated[str, Meta(max_length=16)] | None = None
    timestamps: Annotated[list[Time], Meta(max_length=MAX_LENGTH)] | None = None
    covariates: Annotated[dict[str, Numbers], Meta(max_length=MAX_COVARIATES)] = {}
    """Known beside it, each as long as the series and the horizon together."""


class Wish(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a plain request wants to know of all its series."""

    horizon: Horizon | None = None
    quantiles: Levels | None = None
    season: Annotated[int, Meta(ge=0, le=MAX_LENGTH)] | None = None
    """Values after which things are alike; 0 or 1 for none."""


class ManyBody(Wish, kw_only=True):
    """Several series."""

    series: Annotated[list[SeriesBody], Meta(min_length=1, max_length=MAX_SERIES)]


class Series(msgspec.Struct):
    """The past of one thing."""

    values: Array
    """float64 [length], the newest last; NaN where one is missing."""
    covariates: Mapping[str, Array] = {}
    """float64 [length + horizon] each."""
    timeline: Timeline | None = None
    id: str = ""


class ForecastInput(msgspec.Struct):
    """One request."""

    series: Sequence[Series]
    horizon: int
    quantiles: tuple[float, ...]
    """Levels, rising."""
    season: int | None = None
    """None = find out."""
    many: bool = True
    """False for the plain form of one series."""


class SeriesForecast(msgspec.Struct):
    """The future of one series."""

    mean: Array
    """float64 [horizon]"""
    quantiles: Array
    """float64 [horizon, levels]"""
    method: str = ""
    """How it was found, in a word or two, where that is chosen for each series."""


class Forecast(TaskOutput, kw_only=True):
    """The answer to one request."""

    asked: ForecastInput
    forecasts: Sequence[SeriesForecast]


class ForecastingTask:
    """Series in, forecasts out."""

    name = "time-series-forecasting"
    input_type = ForecastInput
    output_type = Forecast

    def signature(self, config: TaskConfig) -> Signature:
        """Series in; means and quantiles out, by the bundle's options."""
        options = read_forecast_options(config)
        shape = (-1, options.horizon)
        return Signature(
            (TensorSpec("target", "FP64", (-1, -1)),),
            (
                TensorSpec("mean", "FP64", shape),
                TensorSpec("quantiles", "FP64", (*shape, len(options.quantiles))),
            ),
        )

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> Sequence[ForecastInput]:
        """One item with all series."""
        target = tensors.get("target")
        if target is None or len(tensors) != 1:
            raise InvalidInput(
                f"the model takes one input tensor 'target', not {sorted(tensors)!r}",
                param="target",
            )
        if target.ndim != 2 or target.dtype.kind not in "fiu" or target.dtype == np.float16:
            raise InvalidInput(
                "'target' must be numbers (series, length)", hint="FP64 or FP32", param="target"
            )
        options = read_forecast_options(config)
        rows = target.astype(np.float64)
        if np.isinf(rows).any():
            raise InvalidInput("a value is infinite", param="target")
        series = [Series(_without_padding(row)) for row in rows]
        return [check_item(ForecastInput(series, options.horizon, options.quantiles))]

    def to_tensors(self, outputs: Sequence[Forecast], config: TaskConfig) -> dict[str, Array]:
        """A row a series."""
        options = read_forecast_options(config)
        found = [each for output in outputs for each in output.forecasts]
        if not found:
            shape = (0, options.horizon)
            return {
                "mean": np.zeros(shape),
                "quantiles": np.zeros((*shape, len(options.quantiles))),
            }
        return {
            "mean": np.stack([each.mean for each in found]),
            "quantiles": np.stack([each.quantiles for each in found]),
        }

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> ForecastInput:
        """See the module's docstring."""
        options = read_forecast_options(config)
        many = "series" in body
        if many:
            wish = found = _convert(body, ManyBody)
            series = found.series
        else:
            own = {key: body[key] for key in body if key in Wish.__struct_fields__}
            wish = _convert(own, Wish)
            series = [_convert({key: body[key] for key in body if key not in own}, SeriesBody)]
        horizon = wish.horizon or options.horizon
        levels = options.quantiles if wish.quantiles is None else wish.quantiles
        item = ForecastInput(
            [_read_series(each, horizon) for each in series],
            horizon,
            tuple(sorted(set(levels))),
            wish.season,
            many,
        )
        return check_item(item)

    def to_plain(self, output: Forecast, config: TaskConfig) -> dict[str, Any]:
        """`{"mean", "quantiles", "timestamps"}`; a list of them under `forecasts` for many series."""
        asked = output.asked
        answers = [
            _to_plain(series, forecast, asked)
            for series, forecast in zip(asked.series, output.forecasts, strict=True)
        ]
        return {"forecasts": answers} if asked.many else answers[0]


TIME_SERIES_FORECASTING = ForecastingTask()


def read_forecast_options(config: TaskConfig) -> ForecastOptions:
    """The bundle's options for the task."""
    options = read_options(config.options, ForecastOptions)
    if list(options.quantiles) != sorted(set(options.quantiles)):
        raise InvalidInput("the bundle's quantiles must rise")
    return options


def check_item(item: ForecastInput) -> ForecastInput:
    """Bounds of a request as a whole, and of every value."""
    if len(item.series) > MAX_SERIES:
        raise InvalidInput(f"over {MAX_SERIES} series", hint="send several requests")
    width = item.horizon * (1 + len(item.quantiles))
    longest = sum(max(len(each.values), width) for each in item.series)
    if longest > MAX_VALUES:
        raise InvalidInput(
            f"the series or their forecasts hold over {MAX_VALUES} values",
            hint="send several requests, or fewer quantiles",
        )
    for index, each in enumerate(item.series):
        seen = np.abs(each.values[~np.isnan(each.values)])
        if not len(seen):
            raise InvalidInput(f"series {index} has no value at all", param="target")
        if len(each.values) > MAX_LENGTH or seen.max() > LARGEST:
            raise InvalidInput(f"series {index} is too long, or a value too large", param="target")
    return item


def _convert(body: Mapping[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(body, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise InvalidInput(
            f"not a request for a forecast: {error}",
            hint='for example {"target": [1, 2, 3], "horizon": 2}',
            param=next((key for key in ("target", "series", "horizon") if key in str(error)), None),
        ) from error


def _read_series(body: SeriesBody, horizon: int) -> Series:
    values = np.array([np.nan if each is None else each for each in body.target], dtype=np.float64)
    covariates = {name: np.array(each, dtype=np.float64) for name, each in body.covariates.items()}
    for name, each in covariates.items():
        if len(each) != len(values) + horizon:
            raise InvalidInput(
                f"the covariate {name[:80]!r} has {len(each)} values, the series and the horizon "
                f"{len(values) + horizon}",
                param="covariates",
            )
    timeline = _read_times(body)
    if timeline is not None:
        timeline.times(len(values) + horizon - 1, 1)  # is there such a time?
    return Series(values, covariates, timeline, body.id)


def _read_times(body: SeriesBody) -> Timeline | None:
    if body.timestamps is not None:
        if body.start is not None:
            raise InvalidInput("'start' and 'timestamps' say the same", param="start")
        if len(body.timestamps) != len(body.target):
            raise InvalidInput("there is not one timestamp for each value", param="timestamps")
        return read_timestamps(body.timestamps, body.freq or "")
    if body.start is None and body.freq is None:
        return None
    if body.start is None or body.freq is None:
        raise InvalidInput("'start' and 'freq' go together", param="start" if body.freq else "freq")
    return read_timeline(body.start, body.freq)


def _without_padding(row: Array) -> Array:
    seen = np.flatnonzero(~np.isnan(row))
    return row[seen[0] :] if len(seen) else row


def _to_plain(series: Series, forecast: SeriesForecast, asked: ForecastInput) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "mean": forecast.mean.tolist(),
        "quantiles": {
            f"{level:g}": column
            for level, column in zip(asked.quantiles, forecast.quantiles.T.tolist(), strict=True)
        },
    }
    if series.timeline is not None:
        answer["timestamps"] = series.timeline.times(len(series.values), asked.horizon)
    if series.id:
        answer["id"] = series.id
    if forecast.method:
        answer["method"] = forecast.method
    return answer
