# pyright: standard
"""The recipe `cars`: how far a car goes on a gallon, from numbers of which some are missing.

398 cars of 1970 to 1982 (StatLib's `auto-mpg`, as Vega's examples have it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import sklearn
import skops.io
from msgspec import Meta
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.learning.recipes.tables import as_sample, describe_columns, make_encoder, to_matrix
from wherry.models.bundle import Manifest
from wherry.models.tasks.table_columns import Column

SOURCE = "cars.json"
FILE = "model.skops"
TARGET = "Miles_per_Gallon"
COLUMNS = (
    Column("cylinders", "integer"),
    Column("displacement_cubic_inches"),
    Column("horsepower", required=False),
    Column("weight_lb"),
    Column("seconds_to_60_mph"),
    Column("year", "integer"),
    Column("origin", "category", categories=("Europe", "Japan", "USA")),
)
FIELDS = (
    "Cylinders",
    "Displacement",
    "Horsepower",
    "Weight_in_lbs",
    "Acceleration",
    "Year",
    "Origin",
)
"""The file's names of the columns."""
FOLDS = 5


class CarsParameters(Parameters):
    """How the model is trained."""

    rounds: Annotated[int, Meta(ge=1, le=2000)] = 150
    """Trees."""
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 0.06
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0


class Quality(msgspec.Struct, frozen=True):
    """Mean absolute error in miles a gallon, of cars that were not trained on."""

    model: float
    mean: float
    """Of telling the mean to everybody."""


class CarsRecipe:
    """See the module's docstring."""

    name = "cars"
    summary = "miles a gallon from weight, power, year and origin of a car (398 rows)"
    parameters = CarsParameters
    sources: Mapping[str, str] = {
        SOURCE: "pypi:vega-datasets==0.9.0!/vega_datasets/_data/cars.json"
        "#sha256=f686a53678b21f4231e2f6a5ba7ce5761d9d39204fccdea1caa29fb8c460e319",
    }

    def run(
        self,
        parameters: CarsParameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Measure in folds, then train on all; write the bundle."""
        progress("reading", 0, 3)
        rows, miles = read_rows(sources[SOURCE])
        matrix = to_matrix(rows, COLUMNS)
        progress("training", 1, 3)
        quality = measure(matrix, miles, parameters)
        model = make_model(parameters).fit(matrix, miles)
        progress("writing", 2, 3)
        skops.io.dump(model, target / FILE)
        manifest = write_manifest(target, describe_model(quality, rows[0]))
        progress("done", 3, 3)
        return manifest


CARS = CarsRecipe()


def read_rows(path: Path) -> tuple[list[dict[str, Any]], Any]:
    """Cars whose consumption is known, by the names of the columns; and their miles a gallon."""
    cars = [car for car in json.loads(path.read_text("utf-8")) if car[TARGET] is not None]
    names = [column.name for column in COLUMNS]
    rows = [dict(zip(names, (car[field] for field in FIELDS), strict=True)) for car in cars]
    for row in rows:
        row["year"] = int(row["year"][:4])
    return rows, np.array([float(car[TARGET]) for car in cars])


def make_model(parameters: CarsParameters) -> Any:
    """A pipeline that is not fitted."""
    trees = HistGradientBoostingRegressor(
        loss="gamma",
        max_iter=parameters.rounds,
        learning_rate=parameters.learning_rate,
        min_samples_leaf=8,
        early_stopping=False,  # pyright: ignore[reportArgumentType] - guessed from the default
        random_state=parameters.seed,
    )
    return make_pipeline(make_encoder(COLUMNS), trees)


def measure(matrix: Any, miles: Any, parameters: CarsParameters) -> Quality:
    """Every car is told by a model that has not seen it."""
    folds = KFold(FOLDS, shuffle=True, random_state=parameters.seed)
    told = cross_val_predict(make_model(parameters), matrix, miles, cv=folds)
    return Quality(float(np.abs(told - miles).mean()), float(np.abs(miles.mean() - miles).mean()))


def describe_model(quality: Quality, sample: Mapping[str, Any]) -> Manifest:
    """The manifest of the trained model."""
    return Manifest(
        task="tabular-regression",
        runtime="sklearn",
        description="Miles a gallon of a car of 1970 to 1982. Unseen cars are told with a mean error of "
        f"{quality.model:.2f} miles; telling all of them the mean, {quality.mean:.2f}.",
        licence="MIT",
        source="recipe:cars",
        good_at="cars of those years, also without horsepower",
        bad_at="newer cars, electric ones, and anything else that it never saw",
        files=(FILE,),
        options={
            "columns": describe_columns(COLUMNS),
            "mean_absolute_error": round(quality.model, 3),
            "mean_absolute_error_of_the_mean": round(quality.mean, 3),
            "sklearn_version": sklearn.__version__,
        },
        sample=as_sample(sample, COLUMNS),
    )
