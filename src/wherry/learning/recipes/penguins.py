# pyright: standard
"""The recipe `penguins`: three species of penguin from a table with categories and missing values.

344 penguins of three islands of the Palmer archipelago (Gorman, Williams, Fraser 2014; Horst, Hill,
Gorman 2020). Few values are missing there, more where the model is asked: it also learns from copies
of every row without some of its values. An island that is not one of the three counts as missing; a
sex that is not known is refused.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import sklearn
import skops.io
from msgspec import Meta
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.learning.recipes.tables import as_sample, describe_columns, make_encoder, to_matrix
from wherry.models.bundle import Manifest
from wherry.models.tasks.table_columns import Column

SOURCE = "penguins.csv"
FILE = "model.skops"
SPECIES = ("Adelie", "Chinstrap", "Gentoo")
COLUMNS = (
    Column(
        "island",
        "category",
        required=False,
        categories=("Biscoe", "Dream", "Torgersen"),
        accepts_unknown=True,
    ),
    Column("bill_length_mm", required=False),
    Column("bill_depth_mm", required=False),
    Column("flipper_length_mm", required=False),
    Column("body_mass_g", required=False),
    Column("sex", "category", required=False, categories=("female", "male")),
)
BLANKED = 2
"""Values that are taken from every row to measure how the model does without them."""
MOST_BLANKED = 4
"""Most values that are taken from a copy for training."""


class PenguinsParameters(Parameters):
    """How the model is trained."""

    rounds: Annotated[int, Meta(ge=1, le=1000)] = 30
    """Trees a species."""
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 0.1
    copies: Annotated[int, Meta(ge=0, le=50)] = 6
    """Copies of every row that are trained on without some of their values."""
    test_share: Annotated[float, Meta(ge=0.1, le=0.5)] = 0.25
    """Share of the rows that the quality is measured on."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0


class Quality(msgspec.Struct, frozen=True):
    """Mean over the species of the share of their penguins that were recognised."""

    whole: float
    """Of rows as they are in the data."""
    blanked: float
    """Of the same rows with `BLANKED` values less."""


class PenguinsRecipe:
    """See the module's docstring."""

    name = "penguins"
    summary = "three species of penguin from categories and numbers, some missing (344 rows)"
    parameters = PenguinsParameters
    sources: Mapping[str, str] = {
        SOURCE: "pypi:palmerpenguins==0.1.6!/palmerpenguins/data/penguins.csv"
        "#sha256=f204db2c753b0937caac3cb35258562c14f073e4bbc76be24b4c51ce22767a93",
    }

    def run(
        self,
        parameters: PenguinsParameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Train on a part and measure, then train on all; write the bundle."""
        progress("reading", 0, 3)
        rows = read_rows(sources[SOURCE])
        matrix, species = to_matrix(rows, COLUMNS), np.array([row["species"] for row in rows])
        progress("training", 1, 3)
        quality = measure(matrix, species, parameters)
        model = train(matrix, species, parameters)
        progress("writing", 2, 3)
        skops.io.dump(model, target / FILE)
        manifest = write_manifest(target, describe_model(quality, rows[8]))
        progress("done", 3, 3)
        return manifest


PENGUINS = PenguinsRecipe()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows by the names of the columns, and `species`; None where the file says NA."""
    kinds = {column.name: column.kind for column in COLUMNS}
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                name: None if text == "NA" else float(text) if kinds.get(name) == "number" else text
                for name, text in row.items()
            }
            for row in csv.DictReader(file)
        ]


def make_model(parameters: PenguinsParameters) -> Any:
    """A pipeline that is not fitted."""
    trees = HistGradientBoostingClassifier(
        max_iter=parameters.rounds,
        learning_rate=parameters.learning_rate,
        min_samples_leaf=20,
        early_stopping=False,  # pyright: ignore[reportArgumentType] - guessed from the default
        random_state=parameters.seed,
    )
    return make_pipeline(make_encoder(COLUMNS), trees)


def train(matrix: Any, species: Any, parameters: PenguinsParameters) -> Any:
    """A pipeline that is fitted to the rows, and to copies of which values were taken."""
    draw = np.random.default_rng(parameters.seed)
    copies = np.repeat(matrix, parameters.copies, axis=0)
    counts = draw.integers(1, MOST_BLANKED + 1, len(copies))
    rows = np.concatenate([matrix, blank(copies, counts, draw)])
    labels = np.concatenate([species, np.repeat(species, parameters.copies)])
    return make_model(parameters).fit(rows, labels)


def blank(matrix: Any, counts: Any, draw: np.random.Generator) -> Any:
    """The rows without so many values each, whichever."""
    blanked = matrix.copy()
    for row, count in zip(blanked, counts.tolist(), strict=True):
        row[draw.permutation(len(COLUMNS))[:count]] = np.nan
    return blanked


def measure(matrix: Any, species: Any, parameters: PenguinsParameters) -> Quality:
    """Quality on rows that the model has not seen."""
    rows, test, row_species, test_species = train_test_split(
        matrix,
        species,
        test_size=parameters.test_share,
        random_state=parameters.seed,
        stratify=species,
    )
    model = train(rows, row_species, parameters)
    blanked = blank(test, np.full(len(test), BLANKED), np.random.default_rng(parameters.seed))
    whole, less = (
        float(balanced_accuracy_score(test_species, model.predict(each)))
        for each in (test, blanked)
    )
    return Quality(whole, less)


def describe_model(quality: Quality, sample: Mapping[str, Any]) -> Manifest:
    """The manifest of the trained model."""
    return Manifest(
        task="tabular-classification",
        runtime="sklearn",
        description="Species of penguin from island, sex and measures, any of which may be missing. Of "
        f"unseen penguins of each species it knows {quality.whole:.1%}; {quality.blanked:.1%} with "
        f"{BLANKED} of {len(COLUMNS)} values less.",
        licence="MIT",
        source="recipe:penguins",
        good_at="rows with missing values, as field work gives them",
        bad_at="other species than Adelie, chinstrap and gentoo: it names one of them all the same",
        labels=SPECIES,
        files=(FILE,),
        options={
            "columns": describe_columns(COLUMNS),
            "balanced_accuracy": round(quality.whole, 4),
            "balanced_accuracy_blanked": round(quality.blanked, 4),
            "sklearn_version": sklearn.__version__,
        },
        sample=as_sample(sample, COLUMNS),
    )
