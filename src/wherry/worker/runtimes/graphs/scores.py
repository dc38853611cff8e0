# pyright: standard
"""A row of numbers from a graph → scores of labels."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.classification import Classification, sigmoid, softmax
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import Usage
from wherry.worker.runtimes.graphs.graph import Array, GraphTensor

SUM_SLACK = 1e-3
"""How far a sum of probabilities may be from 1 (half precision)."""


class ScoreOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that says what the numbers mean."""

    function: Literal["auto", "softmax", "sigmoid", "none"] = "auto"
    """`softmax`: one label holds; `sigmoid`: each may; `none`: they are scores already. `auto` is
    `none` if a trial gave probabilities that sum to 1 or the output is quantised as they are, else
    `softmax`."""


class ScoreHead:
    """Logits or probabilities to scores, float32 [rows, labels].

    Args:
        bundle: Its labels, and the option `function`.
        trial: What the graph gave for some input, float32 [numbers].
        output: The graph's output that gave it.
    """

    def __init__(self, bundle: Bundle, trial: Array, output: GraphTensor | None = None) -> None:
        if trial.ndim != 1:
            raise InvalidInput(f"the model gives {trial.ndim} dimensions of numbers for each input")
        function = read_options(bundle.manifest.options, ScoreOptions).function
        # one number for two labels: the probability, or the logit, of the second
        self._is_binary = len(trial) == 1 and len(bundle.manifest.labels) in (0, 2)
        if function == "auto":
            function = "sigmoid" if self._is_binary else "softmax"
            if not self._is_binary and _are_probabilities(trial):
                function = "none"
            if output and output.quantisation and output.quantisation.is_probability:
                function = "none"  # their sum need not be 1: most are rounded down to 0
        self._function = function
        self.labels = self._check_labels(bundle, 2 if self._is_binary else len(trial))

    def _check_labels(self, bundle: Bundle, count: int) -> tuple[str, ...]:
        labels = bundle.manifest.labels or tuple(f"LABEL_{index}" for index in range(count))
        if len(labels) != count:
            raise InvalidInput(
                f"the bundle names {len(labels)} labels, the model gives {count} scores"
            )
        return labels

    def scores(self, rows: Array) -> Array:
        """Scores of the labels; `rows` is float32 [rows, numbers]."""
        if self._function == "softmax":
            return softmax(rows)
        if self._function == "sigmoid":
            rows = sigmoid(rows)
        return np.concatenate([1.0 - rows, rows], axis=1) if self._is_binary else rows

    def output_of(self, scores: Array, usage: Usage) -> Classification:
        """The answer for one row of `scores`."""
        return Classification(labels=self.labels, scores=scores, usage=usage)


def check_rows(found: Array, count: int) -> None:
    """The graph answered `count` inputs with as many rows, or it is `ModelFailed`."""
    if found.ndim == 0 or len(found) != count:
        raise ModelFailed(f"the model answered {count} inputs with shape {list(found.shape)}")


def _are_probabilities(row: Array) -> bool:
    return bool((row >= 0).all() and abs(float(row.sum()) - 1.0) <= SUM_SLACK)
