"""A tokenizer one folder down is found; what is in order is left as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry.jobs.layout import lay_out


def fill(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    return folder


@pytest.mark.parametrize("home", ["tokenizer", "onnx"])
def test_a_tokenizer_in_a_folder_of_its_own_comes_to_the_top(tmp_path: Path, home: str):
    names = [
        f"{home}/{each}" for each in ("tokenizer.json", "tokenizer_config.json", "config.json")
    ]
    files = fill(tmp_path / "files", "config.json", "onnx/model.onnx", *names)
    found = lay_out(files, tmp_path / "target")
    assert found == tmp_path / "target"
    assert (found / "tokenizer.json").read_text() == f"{home}/tokenizer.json"
    assert (found / "tokenizer_config.json").exists()
    assert (found / "config.json").read_text() == "config.json", "what is at the top stays"
    assert (found / "onnx/model.onnx").exists()
    assert not (files / "tokenizer.json").exists(), "what was given is left as it is"


@pytest.mark.parametrize("more", ["tokenizer.json", "wherry.toml", ""])
def test_a_folder_in_order_is_left_as_it_is(tmp_path: Path, more: str):
    paths = ["tokenizer/tokenizer.json", more] if more else ["model.onnx"]
    files = fill(tmp_path / "files", *paths)
    assert lay_out(files, tmp_path / "target") == files
    assert not (tmp_path / "target").exists()
