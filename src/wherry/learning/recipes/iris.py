# pyright: standard
"""The recipe `iris`: three species of iris from four lengths, the smallest real classifier.

Its data comes with scikit-learn, so it trains in a second and without a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import sklearn
import skops.io
from msgspec import Meta
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.models.bundle import Manifest
from wherry.models.tasks.task import Signature, TensorSpec

FEATURES = ("sepal length", "sepal width", "petal length", "petal width")
"""In centimetres."""
FILE = "model.skops"


class IrisParameters(Parameters):
    """How the model is trained."""

    regularisation: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    """Inverse strength (`C`): smaller is smoother."""
    test_share: Annotated[float, Meta(ge=0.1, le=0.5)] = 0.2
    """Share of the rows that the accuracy is measured on."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    """Which rows those are."""


class IrisRecipe:
    """See the module's docstring."""

    name = "iris"
    summary = "three species of iris from four lengths (150 rows, a second)"
    parameters = IrisParameters
    sources: Mapping[str, str] = {}

    def run(
        self,
        parameters: IrisParameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Train, measure, write the bundle."""
        progress("training", 0, 2)
        model, accuracy, sample = train_model(parameters)
        progress("writing", 1, 2)
        skops.io.dump(model, target / FILE)
        manifest = write_manifest(target, describe_model(accuracy, sample))
        progress("done", 2, 2)
        return manifest


IRIS = IrisRecipe()


def train_model(parameters: IrisParameters) -> tuple[Any, float, list[float]]:
    """A fitted pipeline, its accuracy on rows it has not seen, and one such row."""
    rows, species = load_iris(return_X_y=True)
    train_rows, test_rows, train_species, test_species = train_test_split(
        rows,
        species,
        test_size=parameters.test_share,
        random_state=parameters.seed,
        stratify=species,
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(C=parameters.regularisation))
    model.fit(train_rows, train_species)
    return model, float(model.score(test_rows, test_species)), rows[0].tolist()


def describe_model(accuracy: float, sample: list[float]) -> Manifest:
    """The manifest of the trained model."""
    return Manifest(
        task="tabular-classification",
        runtime="sklearn",
        description=f"Species of iris from four lengths; accuracy {accuracy:.3f} on unseen rows.",
        licence="BSD-3-Clause",
        source="recipe:iris",
        good_at="telling setosa from the other two species",
        bad_at="flowers that are not one of the three species",
        labels=("setosa", "versicolor", "virginica"),
        signature=Signature(
            inputs=(TensorSpec("input", "FP32", (-1, len(FEATURES))),),
            outputs=(
                TensorSpec("label", "BYTES", (-1,)),
                TensorSpec("class", "INT64", (-1,)),
                TensorSpec("probabilities", "FP32", (-1, 3)),
            ),
        ),
        files=(FILE,),
        options={
            "feature_names": list(FEATURES),
            "accuracy": round(accuracy, 4),
            "sklearn_version": sklearn.__version__,
        },
        sample={"row": sample},
    )
