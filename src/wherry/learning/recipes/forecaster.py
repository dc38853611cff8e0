# pyright: standard
"""The recipe `forecaster`: a version of the classical forecaster, with its quality on real series.

There is nothing to train: each series is fitted when it is asked. The recipe measures that on four
series, from a rolling origin, beside what repeating the last season tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.learning.recipes.series import FOLDER, Array, Measured, measure, read_series
from wherry.models.bundle import Manifest
from wherry.worker.runtimes.forecasts.simple import repeat_season
from wherry.worker.runtimes.forecasts.smoothing import smooth

LEVELS = (0.1, 0.9)
ORIGINS = 12
"""From the last of them a whole horizon is known."""


class Case(msgspec.Struct, frozen=True):
    """A series that is measured."""

    file: str
    season: int
    horizon: int
    sha256: str


CASES = {
    "air passengers": Case(
        "Airline/Airline.csv",
        12,
        12,
        "28af0eb869db6d9fbd31d5af03993a0cbf36c0857c3eb046a068c094b60da851",
    ),
    "road casualties": Case(
        "seatbelts/seatbelts.csv",
        12,
        12,
        "a1cf71093fd69545babe0ded15362835b0f67df3cb75b5f7f98a342a850fb365",
    ),
    "shampoo sold": Case(
        "ShampooSales/ShampooSales.csv",
        12,
        6,
        "dbf2adba68e2f6bae7956ca65771d7dee20cb58b6eb8261c2513d536ac690774",
    ),
    "solar power": Case(
        "solar/solar.csv",
        48,
        48,
        "205b61343a9233f6f532e918154a19b177557086f77801ec26277a1868af7e7e",
    ),
}


class ForecasterParameters(Parameters):
    """None."""


class ForecasterRecipe:
    """See the module's docstring."""

    name = "forecaster"
    summary = "forecasts of any series, fitted when asked; measured here on four of them"
    parameters = ForecasterParameters
    sources: Mapping[str, str] = {
        Path(case.file).name: f"{FOLDER}/{case.file}#sha256={case.sha256}"
        for case in CASES.values()
    }

    def run(
        self,
        parameters: ForecasterParameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Measure; write the bundle, which is a manifest alone."""
        found: dict[str, tuple[Measured, Measured]] = {}
        for number, (name, case) in enumerate(CASES.items()):
            progress(f"measuring {name}", number, len(CASES))
            found[name] = measure_case(read_series(sources[Path(case.file).name]), case)
        manifest = write_manifest(target, describe_model(found))
        progress("done", len(CASES), len(CASES))
        return manifest


FORECASTER = ForecasterRecipe()


def measure_case(values: Array, case: Case) -> tuple[Measured, Measured]:
    """How smoothing does on a series, and how repeating the last season does."""
    first = len(values) - case.horizon - ORIGINS + 1

    def smoothed(past: Array) -> tuple[Array, Array]:
        found = smooth(past, case.season, case.horizon, LEVELS)
        return found.mean, found.quantiles

    def repeated(past: Array) -> tuple[Array, Array]:
        found = repeat_season(past, case.season, case.horizon, LEVELS)
        return found.mean, found.quantiles

    return (
        measure(values, smoothed, first, case.horizon, case.season),
        measure(values, repeated, first, case.horizon, case.season),
    )


def describe_model(found: Mapping[str, tuple[Measured, Measured]]) -> Manifest:
    """The manifest, with what was measured."""
    words = ", ".join(
        f"{name} {ours.mase:.2f} ({naive.mase:.2f})" for name, (ours, naive) in found.items()
    )
    measured: dict[str, Any] = {
        name: {key: round(value, 4) for key, value in msgspec.structs.asdict(ours).items()}
        | {"mase_of_repeating": round(naive.mase, 4)}
        for name, (ours, naive) in found.items()
    }
    return Manifest(
        task="time-series-forecasting",
        runtime="forecaster",
        description="Exponential smoothing with a damped trend and a season, fitted to each series when "
        f"it is asked. MASE on unseen tails (repeating the last season): {words}.",
        licence="Apache-2.0",
        source="recipe:forecaster",
        good_at="single series with a level, a trend, a season, and some missing values",
        bad_at="causes outside of the series, several seasons at once, breaks, mostly zeros",
        options={"measured": measured},
        sample={
            "target": [30, 41, 52, 38, 33, 45, 57, 41, 36, 49, 61, 45],
            "start": "2021-01-01",
            "freq": "QS",
            "horizon": 4,
        },
    )
