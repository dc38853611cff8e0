"""What classifiers of texts and pictures answer: one score a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, TensorSpec


class Classification(TaskOutput, kw_only=True):
    """A score for every label of the model, in the model's order."""

    labels: tuple[str, ...]
    scores: np.ndarray
    """float32 [labels], 0 to 1; they sum to 1 unless labels may hold together (sigmoid)."""

    @property
    def best(self) -> int:
        """Index of the label with the highest score, the first of equals."""
        return int(np.argmax(self.scores))


def classification_signature(inputs: tuple[TensorSpec, ...], config: TaskConfig) -> Signature:
    """`inputs`, then the label and the scores of every row."""
    outputs = (
        TensorSpec("label", "BYTES", (-1,)),
        TensorSpec("scores", "FP32", (-1, len(config.labels) or -1)),
    )
    return Signature(inputs, outputs)


def classifications_to_tensors(
    outputs: Sequence[Classification], config: TaskConfig
) -> dict[str, np.ndarray]:
    """Labels (BYTES [rows]) and scores (FP32 [rows, labels])."""
    label = np.empty(len(outputs), dtype=object)
    scores = np.empty((len(outputs), _label_count(outputs, config)), dtype=np.float32)
    for row, output in enumerate(outputs):
        label[row] = output.labels[output.best].encode()
        scores[row] = output.scores
    return {"label": label, "scores": scores}


def _label_count(outputs: Sequence[Classification], config: TaskConfig) -> int:
    return len(outputs[0].labels) if outputs else len(config.labels)


def classification_to_plain(output: Classification, most: int = 0) -> dict[str, Any]:
    """The best label, how sure the model is of it, and every score, or the `most` highest."""
    best = output.best
    labels, scores = output.labels, output.scores
    if 0 < most < len(labels):
        order = np.argsort(-scores, kind="stable")[:most]
        labels, scores, best = tuple(labels[index] for index in order), scores[order], 0
    shown = shortest_floats(scores)
    return {
        "prediction": labels[best],
        "label": labels[best],
        "confidence": shown[best],
        "scores": dict(zip(labels, shown, strict=True)),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares that sum to 1, along the last dimension."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Each by itself, 0 to 1."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits))  # never overflows


def shortest_floats(values: np.ndarray) -> list[float]:
    """Float32 values as Python floats whose JSON has seven digits, or nine where it takes them.

    Nine significant digits restore every float32 exactly. `tolist()` alone would print seventeen
    (0.1 as 0.10000000149011612): an embedding of 1.6 times the bytes that `json.loads` of a
    client needs three times as long for.
    """
    narrow = np.asarray(values, dtype=np.float32)
    wide = narrow.astype(np.float64)
    magnitude = np.abs(wide)
    # powers of ten are exact up to 22: outside this range `wide` stays as it is, with more digits
    exact = (magnitude > 1e-13) & (magnitude < 1e9)
    scale = np.power(10.0, 6.0 - np.floor(np.log10(np.where(exact, magnitude, 1.0))))
    seven = np.rint(wide * scale) / scale
    scale *= 100.0
    nine = np.rint(wide * scale) / scale
    short = np.where(seven.astype(np.float32) == narrow, seven, nine)
    return np.where(exact, short, wide).tolist()
