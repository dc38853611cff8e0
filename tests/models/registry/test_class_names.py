"""Names of classes are taken from where publishers put them, and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wherry.models.registry.class_names import find_names_file, names_in_metadata, read_names

ANIMALS = ("cat", "dog", "eel")


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog\neel\n",
        "\ufeffcat\r\ndog\r\neel",
        "0 cat\n1 dog\n2 eel",
        "2: eel\n0: cat\n1: dog",
        json.dumps(ANIMALS),
        json.dumps({"0": "cat", "2": "eel", "1": "dog"}),
        json.dumps({"eel": 2, "cat": 0, "dog": 1}),
        "{0: 'cat', 1: 'dog', 2: 'eel'}",
    ],
)
def test_every_usual_form_is_read(text: str):
    assert read_names(text.encode()) == ANIMALS


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"only one",
        b"\xff\xfe\x00",
        b'{"a": {"b": 1}}',
        b'{"0": "cat", "2": "eel"}',
        b"[1, 2]",
        b"[" * 5000,
        b"{0: __import__('os')}",
        b"x" * 600 + b"\nshort",
        b"a\n" * (1 << 20),
    ],
)
def test_what_is_no_list_of_names_names_nothing(data: bytes):
    assert read_names(data) == ()


def test_a_name_that_comes_twice_is_told_apart():
    assert read_names(b"crane\nheron\ncrane") == ("crane", "heron", "crane (2)")


def test_numbers_may_be_names():
    assert read_names(b"0\n90\n180\n270") == ("0", "90", "180", "270")


@pytest.mark.parametrize(
    "name", ["labels.txt", "imagenet_classes.txt", "labelmap.txt", "class_names.json", "coco.names"]
)
def test_a_file_beside_the_model_has_them(tmp_path: Path, name: str):
    (tmp_path / name).write_text("cat\ndog\neel" if name[-1] != "n" else json.dumps(ANIMALS))
    paths = ["model.onnx", "notes.txt", "requirements.txt", name]
    (tmp_path / "notes.txt").write_text("not\nnames")
    assert find_names_file(tmp_path, paths, "model.onnx") == ANIMALS


def test_of_two_such_files_none_is_chosen(tmp_path: Path):
    for name in ("labels_en.txt", "labels_de.txt"):
        (tmp_path / name).write_text("cat\ndog")
    assert find_names_file(tmp_path, ["labels_en.txt", "labels_de.txt"], "model.onnx") == ()


def test_exporters_write_them_into_the_graph():
    assert names_in_metadata({"names": "{0: 'cat', 1: 'dog', 2: 'eel'}"}) == ANIMALS
    assert names_in_metadata({"character": "cat\ndog\neel", "producer": "x"}) == ANIMALS
    assert names_in_metadata({"description": "a\nb"}) == ()
