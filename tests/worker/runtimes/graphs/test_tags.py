"""Models that label tokens, against onnxruntime and tokenizers called by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wherry.models.bundle import Bundle, Manifest
from wherry.models.tasks.token_classification import TokensInput

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.tiny_encoders import make_tokenizer, reference_logits, write_encoder

from wherry.worker.runtimes.graphs.tags import join_windows, window_starts
from wherry.worker.runtimes.onnx import OnnxRuntime

FLOAT_NOISE = 1e-5
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXTS = [
    "Ada Lovelace works in Paris.",
    "the king",
    "My name is Ada and I live at the city of Rome, where the queen cooks.",
    "😀 Ada e\u0301 שלום Rome",
    "x",
]


def load(folder: Path, **manifest: Any) -> OnnxRuntime:
    runtime = OnnxRuntime()
    manifest = {"labels": LABELS, **manifest}
    files = ("model.onnx", "tokenizer.json")
    found = Manifest(task="token-classification", runtime="onnx", files=files, **manifest)
    runtime.load(Bundle(folder, found), "cpu")
    return runtime


def answer(runtime: OnnxRuntime, *items: TokensInput) -> list[Any]:
    return list(runtime.run([runtime.prepare(item) for item in items]))


def everything(text: str, aggregation: Any = "none") -> TokensInput:
    return TokensInput(text, aggregation, ignored=())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("tagger"), columns=len(LABELS), per_token=True)


def test_every_token_is_labelled_and_placed_as_the_libraries_do_it(folder: Path):
    outputs = answer(load(folder), *map(everything, TEXTS))
    tokenizer = make_tokenizer()
    for text, logits, output in zip(TEXTS, reference_logits(folder, TEXTS), outputs, strict=True):
        powers = np.exp(logits)
        scores = (powers / powers.sum(axis=1, keepdims=True))[1:-1]
        encoding = tokenizer.encode(text)
        found = output.entities
        assert [each.label for each in found] == [LABELS[at] for at in scores.argmax(axis=1)]
        assert [each.score for each in found] == pytest.approx(
            scores.max(axis=1).tolist(), abs=FLOAT_NOISE
        )
        assert [(each.start, each.end) for each in found] == encoding.offsets[1:-1]
        assert all(each.text == text[each.start : each.end] for each in found)


def test_texts_of_mixed_lengths_in_a_batch_answer_as_alone(folder: Path):
    runtime = load(folder)
    assert runtime.max_batch_rows > 1
    together = answer(runtime, *map(everything, TEXTS))
    for text, joined in zip(TEXTS, together, strict=True):
        (alone,) = answer(runtime, everything(text))
        assert [each.label for each in alone.entities] == [each.label for each in joined.entities]
        assert [each.score for each in alone.entities] == pytest.approx(
            [each.score for each in joined.entities], abs=FLOAT_NOISE
        )
        assert alone.usage == joined.usage


def test_blank_text_has_no_entities(folder: Path):
    blank, real = answer(load(folder), everything("   "), everything("Ada"))
    assert blank.entities == []
    assert real.entities
    assert blank.usage.rows == 1


def test_a_text_over_the_limit_is_read_in_windows_to_its_end(folder: Path):
    runtime = load(folder, options={"max_tokens": 18})
    text = "Ada " * 100 + "Rome"
    (output,) = answer(runtime, everything(text))
    assert len(output.entities) == 101
    assert [each.start for each in output.entities] == [4 * at for at in range(101)]
    assert output.entities[-1].text == "Rome"


def test_windows_cover_every_token_once():
    for count in range(1, 200):
        for room in (4, 7, 16, 50):
            starts = window_starts(count, room)
            windows = [
                np.arange(start, min(start + room, count))[:, np.newaxis] for start in starts
            ]
            joined = join_windows(windows, starts)
            assert joined[:, 0].tolist() == list(range(count))
    assert window_starts(0, 8) == []
