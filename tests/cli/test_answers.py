"""Answers for people: whatever a model found is a table, what repeats itself is told once."""

from __future__ import annotations

from typing import Any

import pytest

from wherry.cli.answers import find_tables, name_documents, print_answer, show_seconds, sum_up

BOX = {"xmin": 20.0, "ymin": 30.0, "xmax": 80.0, "ymax": 70.0}
POSE = {"score": 0.9, "keypoints": {"nose": {"x": 10.2, "y": 20.7, "score": 0.99}}}
FORECAST = {
    "mean": [100.0, 120.0],
    "quantiles": {"0.1": [90.0, 100.0], "0.9": [110.0, 140.0]},
    "timestamps": ["2026-01", "2026-02"],
    "method": "smoothing of level",
}


def said(answer: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_answer(answer)
    return capsys.readouterr().out.splitlines()


def test_what_was_found_on_a_picture_is_a_row_each(capsys):
    objects = [{"label": "cup", "score": 0.91, "box": BOX}]
    assert said({"objects": objects, "width": 100}, capsys) == [
        "width:  100",
        "",
        "LABEL  SCORE   BOX (X, Y, X, Y)",
        "cup    0.9100  20, 30, 80, 70",
    ]


def test_joints_have_their_places(capsys):
    assert said({"poses": [POSE]}, capsys)[-1].split() == ["1", "nose", "10", "21", "0.99"]


def test_a_transcript_has_its_times(capsys):
    segments = [{"start": 63.04, "end": 65.5, "text": "Try again."}]
    lines = said({"prediction": "Try again.", "text": "Try again.", "segments": segments}, capsys)
    assert lines[0] == "text:  Try again."
    assert lines[-1].split(maxsplit=2) == ["1:03.0", "1:05.5", "Try again."]
    assert show_seconds(59.96) == "1:00.0"


def test_a_forecast_has_a_row_a_step(capsys):
    lines = said(FORECAST, capsys)
    assert lines[0] == "method:  smoothing of level"
    assert lines[-2:] == ["2026-01  100   90   110", "2026-02  120   100  140"]


def test_a_prediction_that_repeats_the_label_is_told_once(capsys):
    answer = {"prediction": "a", "label": "a", "confidence": 0.91, "scores": {"a": 0.91, "b": 0.09}}
    lines = said(answer, capsys)
    assert lines[:2] == ["label:       a", "confidence:  0.91"]
    assert said({"prediction": 21.34}, capsys) == ["prediction:  21.34"]


def test_rows_of_a_table_are_rows_with_their_best_scores(capsys):
    row = {
        "prediction": "a",
        "label": "a",
        "confidence": 0.9,
        "probabilities": {"a": 0.9, "b": 0.1},
    }
    lines = said({"predictions": [row, row], "usage": {"rows": 2}}, capsys)
    assert lines[0] == "usage:  rows 2"
    assert lines[2].split() == ["LABEL", "CONFIDENCE", "PROBABILITIES"]
    assert lines[3].split(maxsplit=2) == ["a", "0.9", "a 0.9000, b 0.1000"]


def test_long_vectors_are_told_by_their_beginning(capsys):
    (line,) = said({"embedding": [0.125] * 384}, capsys)
    assert line.startswith("embedding:  384 numbers: 0.125, 0.125")
    assert len(line) < 80


def test_scores_of_texts_stand_beside_the_texts():
    asked = {"query": "boats", "documents": ["bread", "a ship"]}
    ranked = {"results": [{"index": 1, "score": 0.7}, {"index": 0, "score": 0.2}]}
    table = find_tables(name_documents(ranked, asked))["results"]
    assert table.rows == [["0.7000", "a ship"], ["0.2000", "bread"]]
    likeness = name_documents({"similarities": [0.5]}, {"sentences": ["a ship"]})
    assert find_tables(likeness)["similarities"].rows == [["0.5000", "a ship"]]


@pytest.mark.parametrize(
    "answer",
    [
        {"mean": 3.0},
        {"poses": ["standing"]},
        {"objects": [{"score": "high", "box": "left"}]},
        {"items": [{}], "prediction": None},
        {"scores": {}},
        {},
    ],
    ids=str,
)
def test_answers_of_other_shapes_are_told_as_they_are(answer, capsys):
    assert isinstance(said(answer, capsys), list)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ({"label": "espresso", "confidence": 0.951}, "espresso (95%)"),
        ({"objects": [{"label": "cup", "score": 0.9, "box": BOX}]}, "1 object: cup 0.90"),
        ({"faces": []}, "no face"),
        ({"faces": [{"box": BOX}]}, "1 face: 60 × 40 at 20, 30"),
        ({"poses": [POSE]}, "1 body: 1 joints, nose at 10, 21"),
        ({"text": "one\ntwo ", "lines": []}, "“one two”"),
        ({"same": True, "similarity": 0.8, "faces": []}, "one person (likeness 0.80)"),
        (FORECAST, "▁█ 100, 120"),
        ({"prediction": 21.3}, "21.3"),
        ({"audio": "UklGRg==", "duration": 2.04}, "2.0 s of sound"),
        ({"X": [[1, 2]]}, '{"X":[[1,2]]}'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_in_a_line_says_what_matters(answer, line):
    assert sum_up(answer) == line
