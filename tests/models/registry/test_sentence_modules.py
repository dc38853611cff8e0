"""Folders of sentence-transformers, as its old and its new versions write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import InvalidInput
from wherry.models.registry.sentence_modules import describe_modules

USUAL = {"pooling": "mean", "normalise": True}
NEW = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
OLD = "sentence_transformers.models.Pooling"
DENSE = {"path": "2_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}
NORMALISE = {"path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}
TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}


def write(folder: Path, modules: list[Any], pooling: dict[str, Any]) -> Path:
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize(
    ("pooling", "name"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, "mean_sqrt_len"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({}, "mean"),
    ],
)
@pytest.mark.parametrize("kind", [OLD, NEW])
def test_every_version_says_how_tokens_become_one_vector(
    tmp_path: Path, kind: str, pooling: dict[str, Any], name: str
):
    modules = [TRANSFORMER, {"path": "1_Pooling", "type": kind}]
    options, files = describe_modules(write(tmp_path, modules, pooling), [], USUAL)
    assert options == {"pooling": name, "normalise": False}
    assert files == ()


def test_dense_layers_and_unit_length_come_after(tmp_path: Path):
    modules = [TRANSFORMER, {"path": "1_Pooling", "type": NEW}, DENSE, NORMALISE]
    paths = ["2_Dense/config.json", "2_Dense/model.safetensors"]
    options, files = describe_modules(write(tmp_path, modules, {}), paths, USUAL)
    assert options == {"pooling": "mean", "normalise": True, "dense": ["2_Dense"]}
    assert files == tuple(paths)
    with pytest.raises(InvalidInput, match=r"2_Dense/model\.safetensors"):
        describe_modules(tmp_path, paths[:1], USUAL)


@pytest.mark.parametrize(
    ("modules", "pooling"),
    [
        ([TRANSFORMER, {"path": "1_CNN", "type": "sentence_transformers.models.CNN"}], {}),
        ([TRANSFORMER, NORMALISE, DENSE], {}),
        ([TRANSFORMER], {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}),
    ],
)
def test_what_would_be_answered_otherwise_is_refused(
    tmp_path: Path, modules: list[Any], pooling: dict[str, Any]
):
    with pytest.raises(InvalidInput):
        describe_modules(write(tmp_path, modules, pooling), [], USUAL)


def test_the_default_prompt_is_the_bundles(tmp_path: Path):
    config = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}
    path = tmp_path / "config_sentence_transformers.json"
    path.write_text(json.dumps(config))
    write(tmp_path, [TRANSFORMER, {"path": "1_Pooling", "type": NEW}], {})
    assert describe_modules(tmp_path, [], USUAL)[0]["prompt"] == "query: "
    path.write_text(json.dumps(config | {"default_prompt_name": None}))
    assert "prompt" not in describe_modules(tmp_path, [], USUAL)[0]
    path.write_text(json.dumps(config))
    (tmp_path / "1_Pooling" / "config.json").write_text('{"include_prompt": false}')
    with pytest.raises(InvalidInput, match="prompt"):
        describe_modules(tmp_path, [], USUAL)


def test_a_folder_of_others_gets_the_usual(tmp_path: Path):
    assert describe_modules(tmp_path, [], USUAL) == (USUAL, ())
