"""A Hugging Face folder with a head for sequences, imported and served as the libraries compute it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wherry.models.bundle import Bundle
from wherry.models.registry.detect import detect
from wherry.models.tasks.text import TextInput

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.tiny_encoders import reference_logits, write_encoder

from wherry.worker.runtimes.onnx import OnnxRuntime

FLOAT_NOISE = 1e-5
LABELS = ("negative", "neutral", "positive")
TEXTS = ["the boat sails", "Ada works in Paris. " * 20, "x", "e\u0301 שלום 😀", "bread"]


def folder_of(path: Path, **config: Any) -> Path:
    labels = {str(number): label for number, label in enumerate(LABELS)}
    config = {"architectures": ["BertForSequenceClassification"], "id2label": labels, **config}
    return write_encoder(path, columns=len(LABELS), config=config)


def scores_of(folder: Path, *texts: str) -> np.ndarray:
    runtime = OnnxRuntime()
    manifest = detect(folder)
    assert (manifest.task, manifest.labels) == ("text-classification", LABELS)
    runtime.load(Bundle(folder, manifest), "cpu")
    outputs: Any = runtime.run([runtime.prepare(TextInput(text)) for text in texts])
    return np.stack([output.scores for output in outputs])


def test_one_label_holds_by_the_softmax_of_the_logits(tmp_path: Path):
    folder = folder_of(tmp_path)
    powers = np.exp(np.stack(reference_logits(folder, TEXTS)))
    expected = powers / powers.sum(axis=1, keepdims=True)
    assert scores_of(folder, *TEXTS) == pytest.approx(expected, abs=FLOAT_NOISE)


def test_several_labels_hold_by_the_sigmoid_of_each(tmp_path: Path):
    folder = folder_of(tmp_path, problem_type="multi_label_classification")
    expected = 1 / (1 + np.exp(-np.stack(reference_logits(folder, TEXTS))))
    assert scores_of(folder, *TEXTS) == pytest.approx(expected, abs=FLOAT_NOISE)


def test_a_batch_of_mixed_lengths_scores_as_each_text_alone(tmp_path: Path):
    folder = folder_of(tmp_path)
    alone = np.concatenate([scores_of(folder, text) for text in TEXTS])
    assert scores_of(folder, *TEXTS) == pytest.approx(alone, abs=FLOAT_NOISE)
