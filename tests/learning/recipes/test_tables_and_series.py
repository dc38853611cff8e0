"""Recipes of tables and series: the quality on what they have not seen, and that a seed decides it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import real_models

pytest.importorskip("skops")

import skops.io

from wherry.errors import InvalidInput
from wherry.learning.recipes.airline import AIRLINE, AirlineParameters
from wherry.learning.recipes.cars import CARS, CarsParameters
from wherry.learning.recipes.cars import read_rows as read_cars
from wherry.learning.recipes.catalog import find_recipe
from wherry.learning.recipes.forecaster import CASES, measure_case
from wherry.learning.recipes.penguins import PENGUINS, PenguinsParameters
from wherry.learning.recipes.penguins import read_rows as read_penguins
from wherry.learning.recipes.recipe import read_parameters
from wherry.learning.recipes.series import read_series
from wherry.models.bundle import open_bundle
from wherry.models.registry.catalog import find_entry
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.sklearn_types import TRUSTED_SKLEARN_TYPES
from wherry.worker.runtimes.catalog import create_runtime


class Served:
    """A trained bundle in its runtime, asked in plain JSON."""

    def __init__(self, folder: Path) -> None:
        bundle = open_bundle(folder)
        self.manifest = bundle.manifest
        self.task, self.config = find_task(self.manifest.task), self.manifest.task_config()
        self.runtime: Any = create_runtime(self.manifest.runtime)
        self.runtime.load(bundle, "cpu")

    def ask(self, body: Any) -> Any:
        item = self.task.from_plain(json.loads(json.dumps(body)), self.config)
        (output,) = self.runtime.run([self.runtime.prepare(item)])
        return self.task.to_plain(output, self.config)


def sources_of(recipe: Any) -> dict[str, Path]:
    return {
        "penguins": lambda: {"penguins.csv": real_models.penguins_csv()},
        "cars": lambda: {"cars.json": real_models.cars_json()},
        "airline": lambda: {"Airline.csv": real_models.airline_csv()},
    }[recipe.name]()


@pytest.fixture(scope="module", params=[PENGUINS, CARS, AIRLINE], ids=lambda recipe: recipe.name)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    target = tmp_path_factory.mktemp(request.param.name)
    request.param.run(
        request.param.parameters(), sources_of(request.param), target, lambda *_: None
    )
    return request.param, Served(target), target


def test_it_is_in_the_catalogue_with_the_same_sources(trained: Any):
    recipe, served, _ = trained
    assert find_recipe(recipe.name) is recipe
    entry = find_entry(recipe.name)
    assert (entry.task, entry.runtime) == (served.manifest.task, served.manifest.runtime)
    assert {f"{file.source}#sha256={file.sha256}" for file in entry.files} == set(
        recipe.sources.values()
    )


def test_its_file_holds_trusted_types_only(trained: Any):
    unknown = skops.io.get_untrusted_types(file=trained[2] / "model.skops")
    assert set(unknown) <= TRUSTED_SKLEARN_TYPES


def test_its_sample_is_answered(trained: Any):
    recipe, served, _ = trained
    answer = served.ask(served.manifest.sample)
    if recipe is PENGUINS:
        assert answer["label"] == "Adelie"
    elif recipe is CARS:
        assert answer["prediction"] == pytest.approx(18, abs=3)
    else:
        assert answer["timestamps"][0] == "1961-01"
        assert 420 < answer["mean"][0] < 480


def test_the_same_parameters_give_the_same_model(trained: Any, tmp_path: Path):
    recipe, served, _ = trained
    recipe.run(recipe.parameters(), sources_of(recipe), tmp_path, lambda *_: None)
    assert Served(tmp_path).ask(served.manifest.sample) == served.ask(served.manifest.sample)


def test_parameters_have_bounds(trained: Any):
    recipe = trained[0]
    for name in recipe.parameters.__struct_fields__:
        with pytest.raises(InvalidInput):
            read_parameters(recipe, {name: -1})


def test_penguins_are_recognised_with_and_without_their_values(tmp_path: Path):
    PENGUINS.run(PenguinsParameters(seed=1), sources_of(PENGUINS), tmp_path, lambda *_: None)
    served = Served(tmp_path)
    assert served.manifest.options["balanced_accuracy"] > 0.95
    assert served.manifest.options["balanced_accuracy_blanked"] > 0.85
    rows = read_penguins(real_models.penguins_csv())
    assert len(rows) == 344
    assert sum(value is None for row in rows for value in row.values()) == 19
    names = [column["name"] for column in served.manifest.options["columns"]]
    body = {"columns": {name: [row[name] for row in rows] for name in names}}
    told = [each["label"] for each in served.ask(body)["predictions"]]
    assert np.mean([a == row["species"] for a, row in zip(told, rows, strict=True)]) > 0.97


def test_without_its_copies_it_would_need_every_value(tmp_path: Path):
    bare = PENGUINS.run(
        PenguinsParameters(copies=0), sources_of(PENGUINS), tmp_path, lambda *_: None
    )
    assert bare.options["balanced_accuracy_blanked"] < 0.85


def test_cars_are_told_far_better_than_by_the_mean(tmp_path: Path):
    rows, miles = read_cars(real_models.cars_json())
    assert (len(rows), len(miles)) == (398, 398)
    manifest = CARS.run(CarsParameters(seed=3), sources_of(CARS), tmp_path, lambda *_: None)
    assert manifest.options["mean_absolute_error"] < 2.4
    assert manifest.options["mean_absolute_error_of_the_mean"] > 6


def test_months_are_told_better_than_by_repeating_the_year(tmp_path: Path):
    parameters = AirlineParameters(test_months=48)
    manifest = AIRLINE.run(parameters, sources_of(AIRLINE), tmp_path, lambda *_: None)
    measured = manifest.options["measured"]
    assert measured["mase"] < 0.7 * manifest.options["mase_of_repeating"]
    assert 0.6 < measured["coverage"] < 0.95


@pytest.mark.parametrize("name", ["air passengers", "road casualties", "shampoo sold"])
def test_the_forecaster_beats_repeating_the_season(name: str):
    case = CASES[name]
    ours, naive = measure_case(read_series(real_models.series_csv(case.file, case.sha256)), case)
    assert ours.mase < 0.7 * naive.mase
    assert 0.5 < ours.coverage <= 1
