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


def test_what_old_sentence_transformers_wrote_comes_to_the_top(tmp_path: Path):
    names = [f"0_Transformer/{each}" for each in ("config.json", "model.safetensors")]
    files = fill(tmp_path / "files", "modules.json", "1_Pooling/config.json", *names)
    found = lay_out(files, tmp_path / "target")
    assert (found / "model.safetensors").read_text() == "0_Transformer/model.safetensors"
    assert (found / "1_Pooling/config.json").read_text() == "1_Pooling/config.json"


def test_a_folder_in_a_folder_is_gone_down_to(tmp_path: Path):
    files = fill(tmp_path / "files", "a/b/model.onnx", "a/b/tokenizer.json", "a/b/x/more.json")
    assert lay_out(files, tmp_path / "target") == files / "a" / "b"


def test_a_package_of_code_keeps_its_name(tmp_path: Path):
    files = fill(tmp_path / "files", "package/model.py", "package/weights.npz")
    assert lay_out(files, tmp_path / "target") == files


@pytest.mark.parametrize("more", ["tokenizer.json", "wherry.toml", ""])
def test_a_folder_in_order_is_left_as_it_is(tmp_path: Path, more: str):
    paths = ["tokenizer/tokenizer.json", more] if more else ["model.onnx"]
    files = fill(tmp_path / "files", *paths)
    assert lay_out(files, tmp_path / "target") == files
    assert not (tmp_path / "target").exists()
