"""Times of series, and what a request for a forecast may say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from wherry.errors import InvalidInput
from wherry.models.tasks.forecasting import TIME_SERIES_FORECASTING as TASK
from wherry.models.tasks.forecasting import Forecast, SeriesForecast
from wherry.models.tasks.task import TaskConfig
from wherry.models.tasks.timeline import read_frequency, read_timeline, read_timestamps


@pytest.mark.parametrize(
    ("start", "frequency", "first", "times"),
    [
        ("2024-01-31", "MS", 1, ["2024-02-29", "2024-03-31"]),
        ("1949-01", "M", 11, ["1949-12", "1950-01"]),
        ("2023", "Y", 1, ["2024", "2025"]),
        ("2024-02-28", "D", 1, ["2024-02-29", "2024-03-01"]),
        ("2024-12-30", "W", 1, ["2025-01-06", "2025-01-13"]),
        ("2024-01-01", "QS", 3, ["2024-10-01", "2025-01-01"]),
        ("2024-01-01", "12h", 1, ["2024-01-01T12:00:00", "2024-01-02T00:00:00"]),
        ("2024-01-01T23:45:00+02:00", "15min", 1, ["2024-01-02T00:00:00+02:00"]),
    ],
)
def test_times_go_on_as_they_were_written(start: str, frequency: str, first: int, times: list[str]):
    assert read_timeline(start, frequency).times(first, len(times)) == times


@pytest.mark.parametrize(
    ("frequency", "season"),
    [("MS", 12), ("QS", 4), ("YS", 0), ("W", 52), ("D", 7), ("h", 24), ("30min", 48), ("min", 60)],
)
def test_a_frequency_has_a_season(frequency: str, season: int):
    assert read_frequency(frequency).season == season


@pytest.mark.parametrize(
    ("stamps", "following"),
    [
        (["2024-01-01", "2024-01-02", "2024-01-03"], "2024-01-04"),
        (["2023-11-30", "2023-12-30", "2024-01-30"], "2024-02-29"),
        (["2024-01", "2024-04", "2024-07"], "2024-10"),
        (["2024-01-01T00:00", "2024-01-01T00:15"], "2024-01-01T00:30:00"),
    ],
)
def test_timestamps_tell_their_step(stamps: list[str], following: str):
    assert read_timestamps(stamps, "").times(len(stamps), 1) == [following]


@pytest.mark.parametrize(
    "stamps",
    [
        ["2024-01-01"],
        ["2024-01-02", "2024-01-01"],
        ["2024-01-01", "2024-01-01"],
        ["2024-01-01", "2024-01-02", "2024-01-04"],
        ["2024-01-01T00:00:00", "2024-01-02T00:00:00+01:00"],
        ["2024-01-01", "x"],
        ["2024-13-01", "2024-14-01"],
    ],
    ids=str,
)
def test_uneven_timestamps_are_refused(stamps: list[str]):
    with pytest.raises(InvalidInput):
        read_timestamps(stamps, "")


@pytest.mark.parametrize("frequency", ["", "x", "0D", "-1D", "D1", "99999D", "B", "1.5h", "٣D"])
def test_unknown_frequencies_are_refused(frequency: str):
    with pytest.raises(InvalidInput):
        read_frequency(frequency)


def test_a_request_says_what_it_wants_or_the_bundle_does():
    config = TaskConfig(options={"horizon": 3, "quantiles": [0.25, 0.75]})
    plain = TASK.from_plain({"target": [1, None, 3]}, config)
    assert (plain.horizon, plain.quantiles, plain.many) == (3, (0.25, 0.75), False)
    assert math.isnan(plain.series[0].values[1])
    wish = {"series": [{"target": [1]}], "horizon": 1, "quantiles": [0.9, 0.1, 0.9], "season": 0}
    several = TASK.from_plain(wish, config)
    assert (several.horizon, several.quantiles, several.season) == (1, (0.1, 0.9), 0)
    assert several.many


def test_padding_before_a_shorter_series_falls_off():
    tensors = {"target": np.array([[np.nan, np.nan, 3, np.nan, 5], [1, 2, 3, 4, 5]])}
    (item,) = TASK.from_tensors(tensors, TaskConfig())
    assert [len(each.values) for each in item.series] == [3, 5]


@pytest.mark.parametrize(
    "target",
    [
        np.full((1, 3), np.nan),
        np.array([[1, np.inf]]),
        np.ones(3),
        np.ones((1, 2, 3)),
        np.array([[b"a"]], dtype=object),
        np.ones((2000, 1)),
        np.ones((1, 0)),
        np.full((1, 2), 1e200),
        np.ones((1, 70_000)),
    ],
    ids=lambda array: str(array.shape),
)
def test_tensors_that_are_no_series_are_refused(target: Any):
    with pytest.raises(InvalidInput):
        TASK.from_tensors({"target": target}, TaskConfig())


def test_an_answer_names_levels_times_and_series():
    body = {"target": [1, 2], "id": "a", "start": "2024-01-01", "freq": "D", "horizon": 2}
    asked = TASK.from_plain({**body, "quantiles": [0.05, 0.5]}, TaskConfig())
    found = SeriesForecast(np.array([3.0, 4.0]), np.array([[2.0, 3.0], [2.5, 4.0]]), "by hand")
    assert TASK.to_plain(Forecast(asked=asked, forecasts=[found]), TaskConfig()) == {
        "mean": [3, 4],
        "quantiles": {"0.05": [2, 2.5], "0.5": [3, 4]},
        "timestamps": ["2024-01-03", "2024-01-04"],
        "id": "a",
        "method": "by hand",
    }
