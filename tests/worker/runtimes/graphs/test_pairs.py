"""Models that read two texts together, against onnxruntime and tokenizers called by hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wherry.errors import ContextLengthExceeded, FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle, Manifest
from wherry.models.tasks.text_pair import TextPair
from wherry.models.tasks.text_ranking import Ranking
from wherry.models.tasks.zero_shot_classification import Choice

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.tiny_encoders import make_tokenizer, reference_logits, write_encoder

from wherry.worker.runtimes.graphs.text_encoder import TextEncoder, cut_longest_first
from wherry.worker.runtimes.onnx import OnnxRuntime

FLOAT_NOISE = 1e-5
"""A sum of floats in a batch is added in another order than alone."""
NLI = ("contradiction", "neutral", "entailment")
PAIRS = [
    ("where is the boat", "the boat is in the river"),
    ("who works", "Ada Lovelace works at the city of Rome, and lives there; so does the king."),
    ("rain", "sun " * 40),
    ("a " * 300, "b " * 200),
    ("שלום é", "e\u0301 中文 😀"),
    ("x", "y"),
]


def load(folder: Path, task: str, **manifest: Any) -> OnnxRuntime:
    runtime = OnnxRuntime()
    files = ("model.onnx", "tokenizer.json")
    runtime.load(
        Bundle(folder, Manifest(task=task, runtime="onnx", files=files, **manifest)), "cpu"
    )
    return runtime


def answer(runtime: OnnxRuntime, items: list[Any]) -> list[Any]:
    return list(runtime.run([runtime.prepare(item) for item in items]))


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("ranker"), columns=1)


@pytest.mark.parametrize("task", ["text-ranking", "sentence-similarity"])
def test_a_pair_is_scored_as_the_libraries_score_it(ranker: Path, task: str):
    runtime = load(ranker, task)
    outputs = answer(runtime, [TextPair(*pair) for pair in PAIRS])
    expected = [float(each[0]) for each in reference_logits(ranker, PAIRS)]
    assert [each.raw for each in outputs] == pytest.approx(expected, abs=FLOAT_NOISE)
    sigmoids = 1 / (1 + np.exp(-np.array(expected)))
    assert [each.score for each in outputs] == pytest.approx(sigmoids, abs=FLOAT_NOISE)
    assert len({round(each.raw, 3) for each in outputs}) == len(PAIRS)


def test_the_order_of_a_pair_matters(ranker: Path):
    one, other = answer(
        load(ranker, "text-ranking"), [TextPair("boat", "river"), TextPair("river", "boat")]
    )
    assert abs(one.raw - other.raw) > 0.01


def test_pairs_of_mixed_lengths_in_a_batch_score_as_alone(ranker: Path):
    runtime = load(ranker, "text-ranking")
    assert runtime.max_batch_rows > 1
    items = [TextPair(*pair) for pair in PAIRS]
    together = [each.raw for each in answer(runtime, items)]
    alone = [answer(runtime, [item])[0].raw for item in items]
    assert together == pytest.approx(alone, abs=FLOAT_NOISE)


def test_threads_may_prepare_pairs_at_the_same_time(ranker: Path):
    runtime = load(ranker, "text-ranking")
    items = [TextPair(*pair) for pair in PAIRS]
    expected = [runtime.prepare(item).payload.ids.tolist() for item in items]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(runtime.prepare, items * 40))
    assert [each.payload.ids.tolist() for each in found] == expected * 40


def test_the_score_can_be_the_models_own_number(ranker: Path):
    runtime = load(ranker, "text-ranking", options={"function": "none"})
    (output,) = answer(runtime, [TextPair("boat", "river")])
    assert output.score == output.raw


def test_of_two_logits_the_seconds_share_is_the_score(tmp_path: Path):
    folder = write_encoder(tmp_path, columns=2)
    (output,) = answer(load(folder, "text-ranking"), [TextPair("boat", "river")])
    (logits,) = reference_logits(folder, [("boat", "river")])
    assert output.score == pytest.approx(np.exp(logits[1]) / np.exp(logits).sum(), abs=FLOAT_NOISE)


def test_an_embedder_is_no_ranker_but_is_told_what_to_be(tmp_path: Path):
    folder = write_encoder(tmp_path, columns=8)
    with pytest.raises(FormatNotAllowed) as refused:
        load(folder, "text-ranking")
    assert "feature-extraction" in refused.value.hint


def test_a_query_with_documents_is_as_many_pairs(ranker: Path):
    documents = ["the boat is in the river", "bread", "a ship"]
    ranking = Ranking("boat", documents, "text-ranking")
    scores = ranking.scores(answer(load(ranker, "text-ranking"), ranking.items), raw=True)
    expected = reference_logits(ranker, [("boat", document) for document in documents])
    assert scores == pytest.approx([float(each[0]) for each in expected], abs=FLOAT_NOISE)


def test_too_long_pairs_are_cut_or_refused_as_the_bundle_says(ranker: Path):
    long = TextPair("boat " * 30, "river " * 30)
    cut = load(ranker, "text-ranking", options={"max_tokens": 16})
    (logits,) = reference_logits(ranker, [(long.first, long.second)], max_tokens=16)
    assert answer(cut, [long])[0].raw == pytest.approx(float(logits[0]), abs=FLOAT_NOISE)
    strict = load(ranker, "text-ranking", options={"max_tokens": 16, "truncate": False})
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 16 tokens"):
        strict.prepare(long)
    with pytest.raises(InvalidInput, match="no room for two texts"):
        load(ranker, "text-ranking", options={"max_tokens": 4})


def test_the_longer_text_is_cut_first_as_tokenizers_does_it():
    tokenizer = make_tokenizer()
    for room in (2, 5, 8):
        tokenizer.enable_truncation(room + 3)
        for first in range(12):
            for second in range(12):
                encoding = tokenizer.encode("a " * first, "b " * second)
                expected = [
                    sum(
                        1
                        for at in range(len(encoding.ids))
                        if encoding.type_ids[at] == kind and not encoding.special_tokens_mask[at]
                    )
                    for kind in (0, 1)
                ]
                assert list(cut_longest_first(first, second, room)) == expected


def test_a_pair_with_an_empty_side_is_still_a_pair(tmp_path: Path):
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    encoder = TextEncoder(tmp_path / "tokenizer.json")
    tokens = encoder.encode_pair("   ", "boat", truncate=True)
    assert tokens.types.tolist() == [0, 0, 1, 1]


# ------------------------------------------------------------------------------ zero-shot


@pytest.fixture(scope="module")
def inference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("nli"), columns=3)


@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_are_chosen_as_hugging_faces_pipeline_chooses(inference: Path, multi_label: bool):
    runtime = load(inference, "zero-shot-classification", labels=NLI)
    text, labels = "the ship sails in space", ["space", "food", "tennis"]
    config = Manifest(task="zero-shot-classification", runtime="onnx").task_config()
    choice = Choice(text, labels, "zero-shot-classification", config, multi_label=multi_label)
    found = choice.answer(answer(runtime, choice.items))
    logits = np.array(
        reference_logits(inference, [(text, f"This example is {label}.") for label in labels])
    )
    if multi_label:
        powers = np.exp(logits[:, [0, 2]])
        expected = powers[:, 1] / powers.sum(axis=1)
    else:
        expected = np.exp(logits[:, 2]) / np.exp(logits[:, 2]).sum()
    assert found.labels == tuple(labels)
    assert found.scores == pytest.approx(expected, abs=FLOAT_NOISE)
    assert found.usage.rows == 3


def test_a_model_without_entailment_is_refused(inference: Path):
    for labels in (("a", "b", "c"), ()):
        with pytest.raises(InvalidInput):
            load(inference, "zero-shot-classification", labels=labels)
