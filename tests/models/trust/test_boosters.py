"""Files of boosted trees say what they do before a framework opens them; broken ones say nothing."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.registry.detect import detect
from wherry.models.trust.boosters import read_booster
from wherry.models.trust.formats import check_format
from wherry.models.trust.ubjson import read_ubjson


def xgboost_model(objective: str = "multi:softprob", names: tuple[str, ...] = ("a", "b")) -> Any:
    return {
        "learner": {
            "attributes": {},
            "feature_names": list(names),
            "gradient_booster": {"model": {"trees": [[0.5, 1.5]]}, "name": "gbtree"},
            "learner_model_param": {"num_class": "3", "num_feature": "2"},
            "objective": {"name": objective},
        },
        "version": [3, 2, 0],
    }


LIGHTGBM = """tree
version=v4
num_class=1
max_feature_idx=1
objective=binary sigmoid:1
feature_names=age height
feature_infos=[0:1] [0:1]
tree_sizes=20

Tree=0
num_leaves=2
end of trees
"""


def ubjson(value: Any) -> bytes:
    """As XGBoost writes it: long lengths, lists of floats as one block."""
    if isinstance(value, str):
        return b"S" + ubjson_text(value)
    if isinstance(value, dict):
        return b"{" + b"".join(ubjson_text(k) + ubjson(v) for k, v in value.items()) + b"}"
    if isinstance(value, list):
        if value and all(isinstance(each, float) for each in value):
            block = struct.pack(f">{len(value)}f", *value)
            return b"[$d#L" + struct.pack(">q", len(value)) + block
        return b"[#L" + struct.pack(">q", len(value)) + b"".join(map(ubjson, value))
    return b"l" + struct.pack(">i", value)


def ubjson_text(text: str) -> bytes:
    return b"L" + struct.pack(">q", len(text)) + text.encode()


def write(folder: Path, name: str, data: str | bytes) -> Path:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder / name


def test_both_forms_of_xgboost_say_the_same(tmp_path: Path):
    model = xgboost_model()
    text = write(tmp_path, "m.json", json.dumps(model, separators=(",", ":")))
    binary = write(tmp_path, "m.ubj", ubjson(model))
    assert check_format(text) == check_format(binary) == "xgboost"
    assert read_booster(text) == read_booster(binary)
    assert read_booster(text).task == "tabular-classification"
    assert read_booster(text).features == ("a", "b")


@pytest.mark.parametrize(
    ("objective", "task"),
    [
        ("binary:logistic", "tabular-classification"),
        ("reg:squarederror", "tabular-regression"),
        ("rank:ndcg", "tabular-regression"),
    ],
)
def test_the_objective_says_the_task(tmp_path: Path, objective: str, task: str):
    write(tmp_path, "m.ubj", ubjson(xgboost_model(objective)))
    manifest = detect(tmp_path)
    assert (manifest.task, manifest.runtime, manifest.files) == (task, "xgboost", ("m.ubj",))


def test_columns_are_named_and_may_be_missing(tmp_path: Path):
    write(tmp_path, "model.txt", LIGHTGBM)
    manifest = detect(tmp_path)
    assert (manifest.runtime, manifest.task) == ("lightgbm", "tabular-classification")
    assert manifest.options["columns"] == [
        {"name": "age", "required": False},
        {"name": "height", "required": False},
    ]


def test_other_json_and_text_are_no_models(tmp_path: Path):
    write(tmp_path, "config.json", '{"learners": 1}')
    write(tmp_path, "readme.txt", "tree of life")
    with pytest.raises(InvalidInput, match="no model was found"):
        detect(tmp_path)


@pytest.mark.parametrize("name", ["m.json", "m.ubj", "m.txt"])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, name: str):
    model = xgboost_model()
    whole = {
        "m.json": json.dumps(model, separators=(",", ":")).encode(),
        "m.ubj": ubjson(model),
        "m.txt": LIGHTGBM.encode(),
    }[name]
    cut = whole[: -20 if name == "m.txt" else len(whole) // 2]
    with pytest.raises(FormatNotAllowed, match="damaged"):
        detect(write(tmp_path, name, cut).parent)


def test_damaged_binary_json_is_never_more_than_a_value_error():
    whole = ubjson(xgboost_model())
    generator = random.Random(0)
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            read_ubjson(bytes(data))
        except ValueError:
            continue
    with pytest.raises(ValueError, match="deep"):
        read_ubjson(b"[" * 5000)
