"""Reads what gradient-boosted trees say of themselves: XGBoost in JSON or UBJSON, LightGBM in text."""

from __future__ import annotations

from pathlib import Path

import msgspec

from wherry.errors import FormatNotAllowed
from wherry.models.trust.files import open_regular
from wherry.models.trust.ubjson import read_ubjson

XGBOOST_JSON = b'{"learner":'
XGBOOST_UBJSON = b"{L\0\0\0\0\0\0\0\x07learner"
LIGHTGBM = b"tree\nversion=v"
CLASS_OBJECTIVES = ("binary", "multiclass", "multiclassova")
"""LightGBM's."""
MAX_BYTES = 1 << 30
FIRST_TREE, END_OF_TREES = b"\nTree=0", b"end of trees"
MAX_FEATURES = 1 << 16


class BoosterFacts(msgspec.Struct, frozen=True):
    """What is known before the framework opens the file."""

    runtime: str
    task: str
    features: tuple[str, ...]
    """Names of the columns; of a model that was trained without, those that XGBoost shows: f0, f1 …"""


class _Objective(msgspec.Struct):
    name: str


class _Learner(msgspec.Struct):
    objective: _Objective
    learner_model_param: dict[str, str]
    feature_names: list[str] = []


class _XgboostModel(msgspec.Struct):
    learner: _Learner


def is_booster(head: bytes) -> bool:
    """Whether a file begins as one of the three formats does."""
    return head.startswith((XGBOOST_JSON, XGBOOST_UBJSON, LIGHTGBM))


def read_booster(path: Path) -> BoosterFacts:
    """What the file says of itself.

    Raises:
        FormatNotAllowed: it is damaged, too large, or of a version that is not known.
    """
    with open_regular(path) as file:
        if file.seek(0, 2) > MAX_BYTES:
            raise FormatNotAllowed(f"{path.name!r} is over {MAX_BYTES >> 30} GiB")
        file.seek(0)
        head = file.read(32)
        file.seek(0)
        data = file.read(MAX_BYTES)
    try:
        return _read_lightgbm(data) if head.startswith(LIGHTGBM) else _read_xgboost(data)
    except (ValueError, KeyError, msgspec.DecodeError) as error:
        raise FormatNotAllowed(
            f"{path.name!r} is a damaged model of boosted trees: {error}",
            hint="save it again: Booster.save_model of XGBoost 2 or LightGBM 3, or later",
        ) from error


def _read_xgboost(data: bytes) -> BoosterFacts:
    if data.startswith(XGBOOST_JSON):
        model = msgspec.json.decode(data, type=_XgboostModel)
    else:
        model = msgspec.convert(read_ubjson(data), _XgboostModel)
    learner = model.learner
    count = int(learner.learner_model_param["num_feature"])
    if not 0 < count <= MAX_FEATURES:
        raise ValueError(f"it has {count} features")
    names = tuple(learner.feature_names) or tuple(f"f{number}" for number in range(count))
    return BoosterFacts("xgboost", _task_of(learner.objective.name), names)


def _read_lightgbm(data: bytes) -> BoosterFacts:
    lines = data[: data.index(FIRST_TREE)].decode().splitlines()
    facts = dict(line.split("=", 1) for line in lines if "=" in line)
    count = int(facts["max_feature_idx"]) + 1
    names = tuple(facts["feature_names"].split())
    objective = facts.get("objective", "").split(" ")[0]
    if len(names) != count:
        raise ValueError(f"it has {count} features and {len(names)} names of them")
    # LightGBM itself reads on behind the end of a file that is cut off
    sizes = sum(int(size) for size in facts["tree_sizes"].split())
    if data.find(END_OF_TREES) != data.index(FIRST_TREE) + 1 + sizes:
        raise ValueError("its trees are not as long as it says")
    return BoosterFacts("lightgbm", _task_of(objective), names)


def _task_of(objective: str) -> str:
    """What trees that were trained for it tell: a class, or a number."""
    tells_class = objective.startswith(("binary:", "multi:")) or objective in CLASS_OBJECTIVES
    return "tabular-classification" if tells_class else "tabular-regression"
