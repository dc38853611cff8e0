"""Vectors out of a GGUF model: SmolLM2's, which was not made for it but pools like one that was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("xllamacpp")

from tests.gguf_files import copy_gguf
from tests.real_models import smollm2_path

from wherry.errors import ContextLengthExceeded, InvalidInput
from wherry.models.bundle import Bundle, Manifest
from wherry.models.tasks.text import Embedding, TextInput
from wherry.worker.runtimes.llama_embeddings import LlamaEmbeddingsRuntime
from wherry.worker.runtimes.runtime import BatchRuntime, ItemError

TEXTS = ["A boat on the river.", "Ein Boot.", "小船在河上。", "x", "The stock market fell. " * 8]
CONTEXT_TOKENS = 128


def load(file: Path, **options: Any) -> LlamaEmbeddingsRuntime:
    chosen = {"n_parallel": 4, "context_tokens": CONTEXT_TOKENS} | options
    manifest = Manifest(
        "feature-extraction", "llama_embeddings", files=(file.name,), options=chosen
    )
    runtime = LlamaEmbeddingsRuntime()
    runtime.load(Bundle(file.parent, manifest), "cpu")
    return runtime


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaEmbeddingsRuntime]:
    file = tmp_path_factory.mktemp("embeddings") / "model.gguf"
    file.symlink_to(smollm2_path())
    runtime = load(file)
    yield runtime
    runtime.close()


def embed(model: BatchRuntime, items: Sequence[TextInput]) -> list[Embedding]:
    outputs = model.run([model.prepare(item) for item in items])
    assert all(isinstance(each, Embedding) for each in outputs), outputs
    return [each for each in outputs if isinstance(each, Embedding)]


def vector(model: BatchRuntime, text: str) -> np.ndarray:
    return embed(model, [TextInput(text)])[0].vector


def test_a_batch_says_what_each_text_alone_says(model: LlamaEmbeddingsRuntime) -> None:
    together = embed(model, [TextInput(text) for text in TEXTS[:4]])
    for text, found in zip(TEXTS, together, strict=False):
        (alone,) = embed(model, [TextInput(text)])
        # other texts in the batch change the order of sums, not more
        assert found.vector @ alone.vector == pytest.approx(1, abs=1e-3)
        assert found.usage == alone.usage
        assert found.usage.input_tokens > 0


def test_vectors_have_length_one_and_differ(model: LlamaEmbeddingsRuntime) -> None:
    vectors = np.stack([vector(model, text) for text in TEXTS])
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 576)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)
    assert (vectors @ vectors.T - np.eye(len(TEXTS))).max() < 0.9999


def test_the_mean_is_that_of_the_vectors_of_all_tokens(model: LlamaEmbeddingsRuntime) -> None:
    """A token sees only what is before it: its vector is the last one of the text up to there."""
    tokens = (504, 1348, 18, 99, 2000, 31)
    last = load(smollm2_path(), pooling="last", normalise=False)
    try:
        ends = embed(last, [TextInput(token_ids=tokens[: end + 1]) for end in range(len(tokens))])
    finally:
        last.close()
    mean = np.mean([each.vector for each in ends], axis=0)
    (ours,) = embed(model, [TextInput(token_ids=tokens)])
    # as far as sums in another order go
    assert ours.vector @ (mean / np.linalg.norm(mean)) == pytest.approx(1, abs=1e-3)


def test_token_ids_are_texts_too(model: LlamaEmbeddingsRuntime) -> None:
    (found,) = embed(model, [TextInput(token_ids=(504, 1348))])
    assert found.usage.input_tokens == 2
    with pytest.raises(InvalidInput, match="not in the model's vocabulary"):
        model.prepare(TextInput(token_ids=(1 << 30,)))


def test_a_text_that_is_too_long_fails_alone(model: LlamaEmbeddingsRuntime) -> None:
    items = [TextInput("short"), TextInput("w " * (CONTEXT_TOKENS + 20))]
    short, long = model.run([model.prepare(item) for item in items])
    assert isinstance(short, Embedding)
    assert isinstance(long, ItemError)
    assert long.code == ContextLengthExceeded.code
    with pytest.raises(ContextLengthExceeded, match="at least"):
        model.prepare(TextInput("w" * 100_000))


def test_pooling_and_length_are_the_bundles(tmp_path: Path, model: LlamaEmbeddingsRuntime) -> None:
    file = copy_gguf(smollm2_path(), tmp_path / "model.gguf", add={"llama.pooling_type": 3})
    by_file, by_option = load(file, normalise=False), load(file, pooling="mean")
    try:
        last = vector(by_file, TEXTS[0])
        assert np.linalg.norm(last) > 1.5
        assert abs(last / np.linalg.norm(last) @ vector(model, TEXTS[0])) < 0.99
        assert vector(by_option, TEXTS[0]) @ vector(model, TEXTS[0]) == pytest.approx(1, abs=1e-3)
    finally:
        by_file.close()
        by_option.close()


def test_a_reranker_and_another_task_are_refused(tmp_path: Path) -> None:
    file = copy_gguf(smollm2_path(), tmp_path / "model.gguf", add={"llama.pooling_type": 4})
    with pytest.raises(InvalidInput, match="ranks texts"):
        load(file)
    manifest = Manifest("text-generation", "llama_embeddings", files=(file.name,))
    with pytest.raises(InvalidInput, match="does not do the task"):
        LlamaEmbeddingsRuntime().load(Bundle(tmp_path, manifest), "cpu")
