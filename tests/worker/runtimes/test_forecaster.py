"""Classical forecasts: right on series whose future is known, and the same as statsmodels tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import real_models

from wherry.errors import InvalidInput
from wherry.models.bundle import Bundle, Manifest
from wherry.models.tasks.forecasting import TIME_SERIES_FORECASTING as TASK
from wherry.worker.runtimes.forecaster import ForecasterRuntime
from wherry.worker.runtimes.forecasts.simple import find_season
from wherry.worker.runtimes.forecasts.smoothing import Tried, find_start, fit, smooth, tell

LEVELS = (0.1, 0.5, 0.9)


def load(**options: Any) -> ForecasterRuntime:
    manifest = Manifest("time-series-forecasting", "forecaster", options=options)
    runtime = ForecasterRuntime()
    runtime.load(Bundle(Path(), manifest), "cpu")
    return runtime


def ask(body: Any, **options: Any) -> Any:
    runtime = load(**options)
    config = Manifest("time-series-forecasting", "forecaster", options=options).task_config()
    (output,) = runtime.run([runtime.prepare(TASK.from_plain(body, config))])
    return TASK.to_plain(output, config)


def passengers() -> np.ndarray:
    lines = real_models.airline_csv().read_text().splitlines()[1:]
    return np.array([float(line.split(",")[1]) for line in lines])


def test_a_season_on_a_line_is_continued():
    steps = np.arange(96.0)
    values = 50 + 0.5 * steps + 10 * np.sin(steps * np.pi / 6)
    answer = ask({"target": values[:84].tolist(), "horizon": 12})
    assert np.abs(np.array(answer["mean"]) - values[84:]).max() < 1.5
    assert "season" in answer["method"]


def test_growth_by_a_share_is_seen_in_logarithms():
    values = 100 * 1.02 ** np.arange(80.0) * (1 + 0.3 * np.sin(np.arange(80) * np.pi / 6))
    answer = ask({"target": values[:68].tolist(), "horizon": 12, "season": 12})
    assert np.abs(np.array(answer["mean"]) / values[68:] - 1).max() < 0.05
    assert answer["method"].endswith("in logarithms")


def test_passengers_are_told_better_than_by_repeating_the_year():
    values = passengers()
    ours, repeated, inside = [], [], []
    for origin in range(108, 133, 3):
        found = smooth(values[:origin], 12, 12, (0.1, 0.9))
        truth = values[origin : origin + 12]
        ours.append(np.abs(found.mean - truth).mean())
        repeated.append(np.abs(values[origin - 12 : origin] - truth).mean())
        inside.append((truth >= found.quantiles[:, 0]) & (truth <= found.quantiles[:, 1]))
    assert np.mean(ours) < 0.8 * np.mean(repeated)
    assert 0.6 < np.mean(inside) <= 1.0


def test_holes_hardly_change_what_is_told():
    values = passengers()
    holed = values.copy()
    holed[np.random.default_rng(1).permutation(np.arange(1, 143))[:20]] = np.nan
    whole, less = (smooth(each, 12, 12, LEVELS).mean for each in (values, holed))
    assert np.abs(less / whole - 1).max() < 0.08


def test_the_recursions_are_those_of_statsmodels():
    """Parity with ETS(A,Ad,A) of the same parameters and the same beginning, to float noise."""
    ets = pytest.importorskip(
        "statsmodels.tsa.exponential_smoothing.ets", reason="pip install statsmodels"
    )
    import pandas

    values, season = passengers(), 12
    alpha, beta, phi, gamma = 0.4, 0.02, 0.95, 0.2
    one = [np.array([each]) for each in (alpha, beta, phi, gamma)]
    tried = Tried(*one, np.array([True]), np.array([False]))
    fitted = fit(values, tried, season)
    start = find_start(values, season)
    model = ets.ETSModel(
        pandas.Series(values),
        error="add",
        trend="add",
        damped_trend=True,
        seasonal="add",
        seasonal_periods=season,
        initialization_method="known",
        initial_level=start.level,
        initial_trend=start.slope,
        initial_seasonal=start.season,
    )
    # statsmodels keeps the season's states newest first
    parameters = [alpha, beta, gamma, phi, start.level, start.slope, *start.season[::-1]]
    theirs = model.smooth(np.array(parameters)[: len(model.param_names)])
    mean, quantiles = tell(tried, fitted, season, len(values), 24, (0.1, 0.9))
    told = theirs.get_prediction(start=len(values), end=len(values) + 23)
    assert np.allclose(mean, told.predicted_mean, rtol=1e-9)
    variance = np.array(told.forecast_variance)
    shape = np.sqrt(variance / variance[0])
    ours = (quantiles[:, 1] - quantiles[:, 0]) / (quantiles[0, 1] - quantiles[0, 0])
    assert np.allclose(ours, shape, rtol=1e-6)


@pytest.mark.parametrize(("season", "length"), [(7, 70), (12, 100), (24, 240), (48, 300)])
def test_a_season_is_found(season: int, length: int):
    random = np.random.default_rng(season)
    pattern = random.normal(size=season)
    values = 3 * np.resize(pattern, length) + 0.3 * random.normal(size=length) + np.arange(length)
    assert find_season(values) == season


def test_noise_and_lines_have_no_season():
    assert find_season(np.random.default_rng(0).normal(size=200).cumsum()) == 0
    assert find_season(np.arange(100.0)) == 0
    assert find_season(np.ones(100)) == 0
    assert find_season(np.array([1.0])) == 0


def test_simple_methods():
    target = [1, 2, 3, 4, 2, 3, 4, 5]
    again = ask({"target": target, "horizon": 5, "season": 4}, method="season")
    assert again["mean"] == [2, 3, 4, 5, 2]
    line = ask({"target": [0, 2, 4, 6], "horizon": 3}, method="drift")
    assert line["mean"] == [8, 10, 12]
    assert line["quantiles"]["0.1"] == line["quantiles"]["0.9"] == line["mean"]
    short = ask({"target": [4, None, 6], "horizon": 2})
    assert short["mean"] == [6, 6]


def test_quantiles_widen_and_keep_their_order():
    answer = ask({"target": passengers().tolist(), "horizon": 36, "quantiles": [0.9, 0.1, 0.5]})
    low, middle, high = (np.array(answer["quantiles"][each]) for each in ("0.1", "0.5", "0.9"))
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert ((high - low) / middle)[35] > ((high - low) / middle)[0]


def test_many_series_are_what_each_is_alone_and_every_one_is_a_row():
    runtime, config = load(), Manifest("time-series-forecasting", "forecaster").task_config()
    random = np.random.default_rng(0)
    bodies = [{"target": random.normal(size=size).cumsum().tolist()} for size in (5, 40, 300)]
    items = [TASK.from_plain(body, config) for body in [*bodies, {"series": bodies}]]
    *alone, together = runtime.run([runtime.prepare(item) for item in items])
    assert together.usage.rows == 3
    for one, found in zip(alone, together.forecasts, strict=True):
        assert np.array_equal(one.forecasts[0].mean, found.mean)
        assert np.array_equal(one.forecasts[0].quantiles, found.quantiles)


def test_what_it_cannot_use_is_refused():
    body = {"target": [1, 2], "horizon": 1, "covariates": {"price": [1, 2, 3]}}
    with pytest.raises(InvalidInput, match="no covariates"):
        ask(body)
    for options in ({"method": "magic"}, {"season": -1}, {"horizon": 0}, {"quantiles": [0.9, 0.1]}):
        with pytest.raises(InvalidInput):
            ask({"target": [1, 2]}, **options)
