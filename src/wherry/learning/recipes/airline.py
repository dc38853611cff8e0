# pyright: standard
"""The recipe `airline`: the next twelve months of a monthly series, learnt from one of 144 months.

A linear model of the last 13 months, scaled by their mean size, tells the next 12 at once. It learns
on international airline passengers of 1949 to 1960 (Box and Jenkins), is measured on months after
those that it learnt from, beside what repeating the last year tells, and is then trained on all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import sklearn
import skops.io
from msgspec import Meta
from sklearn.linear_model import Ridge

from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.learning.recipes.series import FOLDER, Array, Measured, measure, read_series
from wherry.models.bundle import Manifest

SOURCE, FILE = "Airline.csv", "model.skops"
HORIZON = SEASON = 12
FOUR_FIFTHS = 1.2816
"""Deviations from the mean within which four fifths of normal errors are."""


class AirlineParameters(Parameters):
    """How the model is trained."""

    context: Annotated[int, Meta(ge=12, le=48)] = 13
    """Months that the model sees."""
    regularisation: Annotated[float, Meta(gt=0, le=1e3)] = 0.01
    test_months: Annotated[int, Meta(ge=24, le=60)] = 36
    """Last months, which the quality is measured on."""


class AirlineRecipe:
    """See the module's docstring."""

    name = "airline"
    summary = "the next twelve months of a monthly series (144 months of air passengers)"
    parameters = AirlineParameters
    sources: Mapping[str, str] = {
        SOURCE: f"{FOLDER}/Airline/{SOURCE}"
        "#sha256=28af0eb869db6d9fbd31d5af03993a0cbf36c0857c3eb046a068c094b60da851",
    }

    def run(
        self,
        parameters: AirlineParameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Train on the earlier months and measure, then train on all; write the bundle."""
        progress("training", 0, 2)
        values = read_series(sources[SOURCE])
        first = len(values) - parameters.test_months
        earlier = train(values[:first], parameters)
        errors = deviations(earlier, values, first, parameters.context)
        quality = measure(
            values,
            lambda past: tell(earlier, past, errors, parameters.context),
            first,
            HORIZON,
            SEASON,
        )
        naive = measure(values, repeat_year, first, HORIZON, SEASON)
        progress("writing", 1, 2)
        skops.io.dump(train(values, parameters), target / FILE)
        described = describe_model(quality, naive, errors, parameters, values)
        manifest = write_manifest(target, described)
        progress("done", 2, 2)
        return manifest


AIRLINE = AirlineRecipe()


def windows_of(values: Array, context: int, first: int = 0) -> tuple[Array, Array]:
    """Scaled pasts [windows, context] and futures [windows, horizon] from `first` on."""
    origins = range(max(context, first), len(values) - HORIZON + 1)
    units = [np.abs(values[end - context : end]).mean() for end in origins]
    pasts = [values[end - context : end] / unit for end, unit in zip(origins, units, strict=True)]
    futures = [values[end : end + HORIZON] / unit for end, unit in zip(origins, units, strict=True)]
    return np.array(pasts), np.array(futures)


def train(values: Array, parameters: AirlineParameters) -> Ridge:
    """A fitted model."""
    pasts, futures = windows_of(values, parameters.context)
    return Ridge(alpha=parameters.regularisation).fit(pasts, futures)


def deviations(model: Ridge, values: Array, first: int, context: int) -> Array:
    """Of the scaled errors at each step, on windows that the model has not seen the future of."""
    pasts, futures = windows_of(values, context, first)
    return np.sqrt(((model.predict(pasts) - futures) ** 2).mean(axis=0))


def tell(model: Ridge, past: Array, errors: Array, context: int) -> tuple[Array, Array]:
    """Means, and bounds of four fifths."""
    unit = np.abs(past[-context:]).mean()
    mean = unit * model.predict([past[-context:] / unit])[0]
    reach = FOUR_FIFTHS * unit * errors
    return mean, np.stack([mean - reach, mean + reach], axis=1)


def repeat_year(past: Array) -> tuple[Array, Array]:
    """What everybody would tell; without bounds."""
    return past[-SEASON:], np.zeros((HORIZON, 2))


def describe_model(
    quality: Measured,
    naive: Measured,
    errors: Array,
    parameters: AirlineParameters,
    values: Array,
) -> Manifest:
    """The manifest of the trained model."""
    options: dict[str, Any] = {
        "horizon": HORIZON,
        "context": parameters.context,
        "scaling": "mean",
        "errors": [round(float(each), 5) for each in errors],
        "measured": {key: round(each, 4) for key, each in msgspec.structs.asdict(quality).items()},
        "mase_of_repeating": round(naive.mase, 4),
        "sklearn_version": sklearn.__version__,
    }
    return Manifest(
        task="time-series-forecasting",
        runtime="sklearn",
        description="The next months of a monthly series with a year's season and growth. On the last "
        f"{parameters.test_months} months of air passengers, from every month on: MASE "
        f"{quality.mase:.2f}, sMAPE {quality.smape:.1%}; repeating the last year, {naive.mase:.2f} and "
        f"{naive.smape:.1%}.",
        licence="BSD-3-Clause",
        source="recipe:airline",
        good_at="monthly numbers that grow and have the season of travel",
        bad_at="series with another season, or none: the forecaster fits each by itself",
        files=(FILE,),
        options=options,
        sample={
            "target": values[-2 * SEASON :].tolist(),
            "start": "1959-01",
            "freq": "MS",
            "horizon": HORIZON,
        },
    )
