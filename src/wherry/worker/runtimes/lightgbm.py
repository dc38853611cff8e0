# pyright: standard, reportMissingImports=false
"""LightGBM's boosters, saved as text.

After early stopping the best iteration answers, as in LightGBM itself. Columns of categories take
LightGBM's codes: numbers from 0.
"""

from __future__ import annotations

from pathlib import Path

import lightgbm
import numpy as np

from wherry.errors import FormatNotAllowed
from wherry.worker.runtimes.boosters import BoosterGraph, BoosterRuntime
from wherry.worker.runtimes.graphs.graph import Array, Graph


class LightgbmRuntime(BoosterRuntime):
    """See the module."""

    def open_trees(self, path: Path) -> Graph:
        """See `BoosterRuntime.open_trees`."""
        try:
            booster = lightgbm.Booster(model_file=path)
        except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as error:  # of its own message
            raise FormatNotAllowed(
                f"{path.name!r} cannot be opened as a LightGBM model",
                hint="save it again with Booster.save_model",
            ) from error
        return LightgbmGraph(booster, path.name)


class LightgbmGraph(BoosterGraph):
    """A booster."""

    def __init__(self, booster: lightgbm.Booster, file_name: str) -> None:
        self._booster = booster
        trial = np.asarray(booster.predict(np.zeros((1, booster.num_feature())), num_threads=1))
        objective = str(booster.dump_model(num_iteration=1).get("objective", "")).split(" ")[0]
        gives_labels = objective in ("binary", "multiclass", "multiclassova")
        output = "probabilities" if gives_labels else "value"
        super().__init__(file_name, booster.num_feature(), output, trial.size, "FP64")

    def answer(self, rows: Array) -> Array:
        """See `BoosterGraph.answer`."""
        return np.asarray(self._booster.predict(rows, num_threads=1))
