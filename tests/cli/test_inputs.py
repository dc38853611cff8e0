"""Whatever people give on the command line becomes an input that the model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wherry.cli.inputs import read_input, read_inputs
from wherry.errors import InvalidInput


def test_a_prompt_may_be_text_json_or_a_file(tmp_path: Path):
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "row.json").write_text('{"row": [1]}')
    (tmp_path / "story.txt").write_text("once")
    assert read_input("lovely", {}) == {"text": "lovely"}
    assert read_input('{"row": [1, 2]}', {}) == {"row": [1, 2]}
    assert read_input(str(tmp_path / "photo.png"), {"image": ""}) == {
        "image": tmp_path / "photo.png"
    }
    assert read_input(str(tmp_path / "row.json"), {}) == {"row": [1]}
    assert read_input(str(tmp_path / "story.txt"), {}) == {"text": "once"}


def test_a_sound_goes_where_sound_is_taken(tmp_path: Path):
    (tmp_path / "talk.MP3").write_bytes(b"ID3")
    assert read_input(str(tmp_path / "talk.MP3"), {}) == {"audio": tmp_path / "talk.MP3"}


def test_a_text_goes_to_the_one_field_that_takes_a_text():
    assert read_input("42", {"user": "7"}) == {"user": "42"}
    assert read_input("seven", {"prompt": "a nine", "seed": 1}) == {"prompt": "seven"}
    with pytest.raises(InvalidInput) as refused:
        read_input("seven", {"row": [1.0]})
    assert '{"row":[1.0]}' in refused.value.hint
    with pytest.raises(InvalidInput, match=r"no file 'cat\.png'"):
        read_input("cat.png", {"image": "iVBOR"})


def test_a_table_in_a_file_is_sent_by_its_columns(tmp_path: Path):
    path = tmp_path / "birds.csv"
    path.write_text("island,mass\nBiscoe,4000\nDream,\n")
    table = {"island": ["Biscoe", "Dream"], "mass": ["4000", ""]}
    assert read_input(str(path), {"row": {"island": "Biscoe"}}) == {"table": table}


def test_a_series_in_a_file_is_its_last_column_of_numbers(tmp_path: Path):
    path = tmp_path / "sales.csv"
    path.write_text("month,sales,note\n2026-01,3.5,a\n2026-02,,b\n2026-03,4,c\n")
    assert read_input(str(path), {"target": [1.0]}) == {"target": [3.5, None, 4.0]}


@pytest.mark.parametrize("text", ["", "a,b\n", "a,b\n1\n", "a\nx\n"])
def test_a_file_that_is_no_series_is_refused_in_words(text: str, tmp_path: Path):
    path = tmp_path / "sales.csv"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"sales\.csv"):
        read_input(str(path), {"target": [1.0]})


def test_an_array_in_a_file_is_the_models_one_tensor(tmp_path: Path):
    path = tmp_path / "batch.npy"
    np.save(path, np.ones((2, 3), np.float32))
    found = read_input(str(path), {"pixels": [[0.0]]})
    assert found["pixels"].shape == (2, 3)
    path.write_bytes(b"\x80\x04no array")
    with pytest.raises(InvalidInput, match="not an array"):
        read_input(str(path), {})


def test_a_file_in_another_encoding_is_refused_in_words(tmp_path: Path):
    path = tmp_path / "story.txt"
    path.write_bytes("né".encode("latin-1"))
    with pytest.raises(InvalidInput, match="not a text in UTF-8"):
        read_input(str(path), {})


def test_a_second_picture_is_compared_and_labels_are_to_choose_from(tmp_path: Path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    for path in (one, two):
        path.write_bytes(b"\x89PNG")
    compared = read_inputs([str(one), str(two)], {}, "face-recognition")
    assert compared == {"image": one, "other": two}
    labels = read_inputs([str(one), "a", "cat,", "a boat"], {}, "zero-shot-image-classification")
    assert labels == {"image": one, "candidate_labels": "a cat, a boat"}
    assert read_inputs(["two", "words"], {}, "text-classification") == {"text": "two words"}
