"""A linear model's shortcut says what the model itself says, or there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from wherry.worker.runtimes.sklearn_linear import find_shortcut

ROWS, SPECIES = load_iris(return_X_y=True)
PATIENTS, PROGRESS = load_diabetes(return_X_y=True)
TWO = SPECIES != 2

CLASSIFIERS = {
    "three classes": LogisticRegression(max_iter=500).fit(ROWS, SPECIES),
    "two classes": LogisticRegression(max_iter=500).fit(ROWS[TWO], SPECIES[TWO]),
    "scaled": make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, SPECIES),
    "not centred": make_pipeline(
        StandardScaler(with_mean=False), LogisticRegression(max_iter=1000)
    ).fit(ROWS, SPECIES),
}
REGRESSORS = {
    "least squares": LinearRegression().fit(PATIENTS, PROGRESS),
    "ridge": make_pipeline(StandardScaler(), Ridge()).fit(PATIENTS, PROGRESS),
    "lasso": Lasso(0.1).fit(PATIENTS, PROGRESS),
    "two targets": LinearRegression().fit(PATIENTS, np.stack([PROGRESS, -PROGRESS], axis=1)),
}


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_probabilities_are_the_models_own_to_the_last_bit(name: str, kind: Any) -> None:
    model, rows = CLASSIFIERS[name], ROWS.astype(kind)
    shortcut = find_shortcut(model)
    assert shortcut is not None
    for count in (1, 5, len(rows)):
        before = rows[:count].copy()
        assert np.array_equal(shortcut(rows[:count]), model.predict_proba(rows[:count]))
        assert np.array_equal(before, rows[:count]), "inputs stay as they are"


@pytest.mark.parametrize("name", REGRESSORS)
def test_values_are_the_models_own_to_the_last_bit(name: str) -> None:
    model = REGRESSORS[name]
    shortcut = find_shortcut(model)
    assert shortcut is not None
    assert np.array_equal(shortcut(PATIENTS), model.predict(PATIENTS))


class Cautious(LogisticRegression):
    """Answers otherwise than its class."""

    def predict_proba(self, X: Any) -> Any:  # noqa: N803 - scikit-learn's name
        return super().predict_proba(X) * 0.5


@pytest.mark.parametrize(
    "model",
    [
        DecisionTreeClassifier().fit(ROWS, SPECIES),
        make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=1000)).fit(ROWS, SPECIES),
        Cautious(max_iter=500).fit(ROWS, SPECIES),
    ],
    ids=["not linear", "another scaler", "a subclass"],
)
def test_other_models_have_none(model: Any) -> None:
    assert find_shortcut(model) is None


@pytest.mark.parametrize("steps", [["passthrough", "model"], [None, "model"], ["passthrough"]])
def test_pipelines_with_empty_steps_are_no_obstacle(steps: list[Any]) -> None:
    made = [LogisticRegression(max_iter=500) if each == "model" else each for each in steps]
    pipeline = Pipeline([(f"step {at}", each) for at, each in enumerate(made)]).fit(ROWS, SPECIES)
    shortcut = find_shortcut(pipeline)
    if "model" in steps:
        assert shortcut is not None
        assert np.array_equal(shortcut(ROWS), pipeline.predict_proba(ROWS))
    else:
        assert shortcut is None


def test_a_model_that_answers_otherwise_than_its_weights_has_none() -> None:
    model = LogisticRegression(max_iter=500).fit(ROWS, SPECIES)
    ask = model.predict_proba
    model.predict_proba = lambda rows: ask(rows) + 1e-16  # a later scikit-learn may do so
    assert find_shortcut(model) is None
