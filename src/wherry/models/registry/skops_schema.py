"""Guesses from a .skops file's schema which task its estimator does; nothing is loaded."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from wherry.models.trust.archives import open_bounded_zip

MAX_SCHEMA_BYTES = 16 << 20
TEXT_STEPS = frozenset({"TfidfVectorizer", "CountVectorizer", "HashingVectorizer"})
REGRESSORS = frozenset(
    {
        "LinearRegression",
        "Ridge",
        "RidgeCV",
        "Lasso",
        "LassoCV",
        "ElasticNet",
        "ElasticNetCV",
        "BayesianRidge",
        "ARDRegression",
        "SVR",
        "NuSVR",
        "LinearSVR",
        "KernelRidge",
        "PLSRegression",
        "Lars",
        "LassoLars",
        "OrthogonalMatchingPursuit",
    }
)
"""scikit-learn's regressors whose names do not end in `Regressor`."""


def guess_task(path: Path) -> str | None:
    """A task's name, or None if the schema tells nothing; the importer may always say it."""
    try:
        with path.open("rb") as file, open_bounded_zip(file) as archive:
            if archive.getinfo("schema.json").file_size > MAX_SCHEMA_BYTES:
                return None
            schema = json.loads(archive.read("schema.json"))
    except (OSError, KeyError, ValueError, RecursionError, zipfile.BadZipFile):
        return None  # the check of the file's format says what is wrong with it
    classes = _class_names(schema)
    if classes & TEXT_STEPS:
        return "text-classification"
    if any(name in REGRESSORS or name.endswith("Regressor") for name in classes):
        is_classifier = any(name.endswith("Classifier") for name in classes)
        return None if is_classifier else "tabular-regression"
    return None


def _class_names(schema: Any) -> set[str]:
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if isinstance(name := each.get("__class__"), str):
                found.add(name)
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
    return found
