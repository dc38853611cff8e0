# pyright: standard, reportMissingImports=false
"""XGBoost's boosters, saved as JSON or UBJSON.

After early stopping the best iteration answers, as it does in XGBoost's scikit-learn classes.
Columns of categories take XGBoost's codes: numbers from 0.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xgboost

from wherry.errors import FormatNotAllowed
from wherry.models.tasks.classification import sigmoid, softmax
from wherry.worker.runtimes.boosters import BoosterGraph, BoosterRuntime
from wherry.worker.runtimes.graphs.graph import Array, Graph


class XgboostRuntime(BoosterRuntime):
    """See the module."""

    def open_trees(self, path: Path) -> Graph:
        """See `BoosterRuntime.open_trees`."""
        booster = xgboost.Booster({"nthread": 1})
        try:
            booster.load_model(path)
        except xgboost.core.XGBoostError as error:
            raise FormatNotAllowed(
                f"{path.name!r} cannot be opened as an XGBoost model",
                hint="save it again with Booster.save_model, as .json or .ubj",
            ) from error
        return XgboostGraph(booster, path.name)


class XgboostGraph(BoosterGraph):
    """A booster."""

    def __init__(self, booster: xgboost.Booster, file_name: str) -> None:
        self._booster = booster
        learner = json.loads(booster.save_config())["learner"]
        self._objective = learner["objective"]["name"]
        numbers = learner["learner_model_param"]
        width = max(int(numbers["num_class"]), int(numbers.get("num_target", 1)), 1)
        best = booster.attr("best_iteration")
        self._iterations = (0, int(best) + 1) if best else (0, 0)
        gives_labels = self._objective.startswith(("binary:", "multi:"))
        output = "probabilities" if gives_labels else "value"
        super().__init__(file_name, booster.num_features(), output, width, "FP32")

    def answer(self, rows: Array) -> Array:
        """See `BoosterGraph.answer`."""
        matrix = xgboost.DMatrix(
            rows,
            missing=np.nan,
            nthread=1,
            feature_names=self._booster.feature_names,
            feature_types=self._booster.feature_types,
            enable_categorical=True,
        )
        is_margin = self._objective in ("multi:softmax", "binary:logitraw")
        found = self._booster.predict(
            matrix, output_margin=is_margin, strict_shape=True, iteration_range=self._iterations
        )
        if is_margin:  # these objectives would tell the class, or no probability
            return softmax(found) if found.shape[1] > 1 else sigmoid(found)
        return found
