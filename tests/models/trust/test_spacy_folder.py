"""Pipelines of spaCy: what their folders may hold and name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.registry.detect import detect
from wherry.models.trust.formats import check_bundle
from wherry.models.trust.spacy_folder import pipeline_files

CONFIG = """
[nlp]
lang = "en"
pipeline = ["ner"]
tokenizer = {"@tokenizers":"spacy.Tokenizer.v1"}

[components.ner]
factory = "ner"

[components.ner.model]
@architectures = "spacy.TransitionBasedParser.v2"

[training.optimizer]
@optimizers = "Adam.v1"
"""


def write_pipeline(folder: Path, config: str = CONFIG) -> Path:
    """A folder with a file of every kind."""
    (folder / "ner").mkdir(parents=True)
    (folder / "vocab").mkdir()
    (folder / "config.cfg").write_text(config)
    (folder / "meta.json").write_text(json.dumps({"lang": "en"}))
    (folder / "ner" / "model").write_bytes(msgspec.msgpack.encode({"nodes": []}))
    (folder / "ner" / "cfg").write_text("{}")
    (folder / "vocab" / "key2row").write_bytes(b"\x80")
    np.save(folder / "vectors.npy", np.zeros((2, 3), np.float32))
    (folder / "vectors.npy").rename(folder / "vocab" / "vectors")
    (folder / "LICENSE").write_text("MIT")
    return folder


def check(folder: Path) -> dict[str, str]:
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return check_bundle(folder, sorted(paths))


def test_a_pipeline_is_found_with_the_files_that_belong_to_it(tmp_path: Path):
    manifest = detect(write_pipeline(tmp_path))
    assert (manifest.task, manifest.runtime) == ("token-classification", "spacy")
    assert manifest.files[0] == "config.cfg"
    assert set(manifest.files) == {
        "config.cfg",
        "meta.json",
        "ner/model",
        "ner/cfg",
        "vocab/key2row",
        "vocab/vectors",
    }


def test_every_file_is_checked_for_what_its_name_says(tmp_path: Path):
    formats = check(write_pipeline(tmp_path))
    assert formats["config.cfg"] == "spacy"
    assert formats["ner/model"] == formats["vocab/key2row"] == "msgpack"
    assert formats["vocab/vectors"] == "npy"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("ner/model", b"\x80\x04\x95\x0f\x00"),  # a pickle
        ("ner/model", b"not msgpack, but long enough to be read on"),
        ("ner/model", msgspec.msgpack.encode({"a": 1}) + b"tail"),
        ("ner/cfg", b"{"),
        ("vocab/vectors", b"nothing"),
        ("vocab/evil.bin", b"\x7fELF"),
        ("ner/code.py", b"import os"),
    ],
    ids=str,
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, name: str, data: bytes):
    folder = write_pipeline(tmp_path)
    (folder / name).write_bytes(data)
    with pytest.raises((FormatNotAllowed, InvalidInput, Exception)) as refused:
        check(folder)
    assert refused.value.__class__.__module__ == "wherry.errors"


@pytest.mark.parametrize(
    "change",
    [
        ('"spacy.Tokenizer.v1"', '"my_code.Tokenizer.v1"'),
        ('{"@tokenizers"', '{"\\u0040tokenizers":"evil.v1","other"'),
        ('"spacy.TransitionBasedParser.v2"', '"spacy.TorchBiLSTMEncoder.v1"'),
        ('"spacy.TransitionBasedParser.v2"', '"PyTorchWrapper.v3"'),
        ('"spacy.TransitionBasedParser.v2"', '"${training.name}"'),
        ('"spacy.TransitionBasedParser.v2"', '["spacy.Tok2Vec.v2"]'),
        ('factory = "ner"', 'factory = "my_component"'),
        ('factory = "ner"', 'factory = "transformer"'),
        ('factory = "ner"', 'source = "en_core_web_sm"'),
        ('factory = "ner"', 'source : "en_core_web_sm"'),
        ("[components.ner]", '[nlp.before_creation]\n@callbacks = "spacy.x.v1"\n[components.ner]'),
        ('"Adam.v1"', '"evil_from_another_section.v1"'),
        ("[nlp]", "[nlp]\n[nlp]"),
        ("[nlp]", "no section"),
        ("[nlp]", "[DEFAULT]\n@layers = evil\n[nlp]"),
    ],
    ids=str,
)
def test_a_configuration_names_nothing_but_spacys_own(tmp_path: Path, change: tuple[str, str]):
    folder = write_pipeline(tmp_path, CONFIG.replace(*change))
    assert change[0] in CONFIG
    with pytest.raises(FormatNotAllowed):
        check(folder)


def test_a_huge_configuration_is_refused(tmp_path: Path):
    folder = write_pipeline(tmp_path, CONFIG + "#" * (1 << 20))
    with pytest.raises(FormatNotAllowed, match="over 1 MiB"):
        check(folder)


def test_names_count_only_in_a_pipelines_folder(tmp_path: Path):
    assert pipeline_files(["ner/model", "config.cfg"]) == {}
    found: Any = pipeline_files(["a/config.cfg", "a/meta.json", "a/ner/model", "b/ner/model"])
    assert set(found) == {"a/config.cfg", "a/meta.json", "a/ner/model"}
