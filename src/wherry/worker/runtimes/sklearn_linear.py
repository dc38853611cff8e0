# pyright: standard
"""Linear models of scikit-learn evaluated without scikit-learn's checks of its arguments.

Those checks cost some 300 µs a call, the two lines of arithmetic behind them about ten, and what
they look for (shape, type, finite numbers) the runtime has seen to already. The arithmetic is
scikit-learn's own, in its order; `find_shortcut` gives it only if it answers the same as the
estimator itself, to the last bit, when the model is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    Ridge,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from wherry.models.tasks.tensor import Array

Shortcut = Callable[[Array], Array]
"""Floats (rows, features) of one of `PROVED_TYPES` → what `predict_proba` (rows, classes) or `predict` gives."""

REGRESSORS = (ElasticNet, Lasso, LinearRegression, Ridge)
PROVED_TYPES = (np.dtype(np.float64), np.dtype(np.float32))
PROBED_ROWS = (1, 2, 3, 7, 64, 256)


def find_shortcut(model: Any) -> Shortcut | None:
    """Another way to the same numbers, if there is one and it is proved.

    Args:
        model: a fitted estimator, or a pipeline of scalers and one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _find_proved(model)
    except Exception:  # noqa: BLE001 - an odd model is asked itself
        return None


def _find_proved(model: Any) -> Shortcut | None:
    steps = [step for _, step in model.steps] if type(model) is Pipeline else [model]
    *scalers, last = [step for step in steps if step not in (None, "passthrough")]
    if any(type(each) is not StandardScaler for each in scalers):
        return None
    if type(last) is LogisticRegression:
        end, ask = _probabilities_of(last), model.predict_proba
    elif type(last) in REGRESSORS:
        end, ask = _values_of(last), model.predict
    else:
        return None
    shortcut = _after(scalers, end) if scalers else end
    return shortcut if _is_proved(shortcut, ask, (scalers or [last])[0].n_features_in_) else None


def _probabilities_of(model: Any) -> Shortcut:
    weights, bias = model.coef_.T, model.intercept_

    def binary(matrix: Array) -> Array:
        positive = expit((matrix @ weights + bias).reshape(-1))
        return np.stack([1 - positive, positive], axis=1)

    def several(matrix: Array) -> Array:
        scores = matrix @ weights + bias
        scores -= np.maximum.reduce(scores, axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= np.add.reduce(scores, axis=1, keepdims=True)
        return scores

    return binary if len(model.classes_) <= 2 else several


def _values_of(model: Any) -> Shortcut:
    weights, bias = model.coef_.T, model.intercept_
    return lambda matrix: matrix @ weights + bias


def _after(scalers: Sequence[Any], end: Shortcut) -> Shortcut:
    def scaled(matrix: Array) -> Array:
        matrix = matrix.copy()
        for scaler in scalers:
            if scaler.with_mean:
                matrix -= scaler.mean_.astype(matrix.dtype)
            if scaler.with_std:
                matrix /= scaler.scale_.astype(matrix.dtype)
        return end(matrix)

    return scaled


def _is_proved(shortcut: Shortcut, ask: Shortcut, features: int) -> bool:
    """Whether both give the same, bit by bit, for rows of all sizes of numbers."""
    draw = np.random.default_rng(0)
    for rows in PROBED_ROWS:
        scale = 10.0 ** draw.integers(-3, 4, size=(rows, 1))
        for kind in PROVED_TYPES:
            matrix = (draw.normal(size=(rows, features)) * scale).astype(kind)
            ours, theirs = shortcut(matrix), np.asarray(ask(matrix))
            if ours.dtype != theirs.dtype or not np.array_equal(ours, theirs):
                return False
    return True
