"""One encoder, many questions: what is asked in plain JSON, and what is made of the outputs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from wherry.errors import InvalidInput
from wherry.frames import Call
from wherry.models.codecs.predict import PREDICT
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.task import TaskConfig
from wherry.models.tasks.text import Embedding, TextInput
from wherry.models.tasks.text_pair import PairScore, TextPair
from wherry.models.tasks.zero_shot_classification import THRESHOLD, Entailment

CALL = Call("predict", "req-1", "model", "1", 0)
EMBEDDER = "feature-extraction"


def ask(body: dict[str, Any], task: str, outputs: Any, config: TaskConfig | None = None) -> Any:
    """The answer, `outputs` being a function of the items."""
    config = config or TaskConfig()
    found = PREDICT.decode(memoryview(json.dumps(body).encode()), CALL, find_task(task), config)
    made = [outputs(item) for item in found.items]
    return json.loads(bytes(PREDICT.encode(found, made, CALL, find_task(task), config).body))


def vector(item: Any) -> Embedding:
    """The more letters `a`, the nearer to the first axis."""
    assert isinstance(item, TextInput)
    return Embedding(vector=np.array([(item.text or "").count("a"), 1.0], np.float32))


def test_an_embedder_ranks_documents():
    found = ask({"query": "aaa", "documents": ["x", "aaa", "a"]}, EMBEDDER, vector)
    assert [each["index"] for each in found["results"]] == [1, 2, 0]
    assert found["results"][0]["score"] == pytest.approx(1.0)


def test_an_embedder_compares_sentences_in_their_order():
    found = ask({"source_sentence": "a", "sentences": ["a", "x"]}, EMBEDDER, vector)
    assert found["similarities"] == pytest.approx([1.0, 0.5**0.5], abs=1e-6)


def test_an_embedder_chooses_among_labels():
    body = {"text": "aaa", "candidate_labels": ["b", "aa"], "hypothesis_template": "{}"}
    found = ask(body, EMBEDDER, vector)
    assert found["label"] == "aa"
    assert sum(found["scores"].values()) == pytest.approx(1.0)
    both = ask({**body, "multi_label": True}, EMBEDDER, vector)
    assert all(score > 0.5 for score in both["scores"].values())


def test_a_label_alone_is_judged_by_itself():
    near = TaskConfig(options={"zero_shot_threshold": 0.9999, "zero_shot_temperature": 0.01})
    body = {"text": "x", "candidate_labels": ["a"], "hypothesis_template": "{}"}
    assert ask(body, EMBEDDER, vector)["confidence"] > 0.9
    assert ask(body, EMBEDDER, vector, near)["confidence"] < 0.1
    assert 0 < THRESHOLD < 1


def test_the_same_question_goes_to_a_model_that_reads_pairs():
    found = ask(
        {"query": "q", "documents": ["a", "bb"]},
        "text-ranking",
        lambda item: PairScore(score=len(item.second) / 10, raw=0.0),
    )
    assert [each["score"] for each in found["results"]] == pytest.approx([0.2, 0.1])
    found = ask(
        {"source_sentence": "q", "sentences": ["a", "bb"]},
        "sentence-similarity",
        lambda item: PairScore(score=len(item.second) / 10, raw=0.0),
    )
    assert found["similarities"] == pytest.approx([0.1, 0.2])
    asked: list[TextPair] = []

    def entail(item: TextPair) -> Entailment:
        asked.append(item)
        return Entailment(entailment=float("space" in item.second) * 5, contradiction=0.0)

    body = {"text": "a rocket", "candidate_labels": "space, food"}
    found = ask(body, "zero-shot-classification", entail)
    assert asked[0] == TextPair("a rocket", "This example is space.")
    assert found["label"] == "space"


def test_a_single_text_is_still_a_single_text():
    assert ask({"text": "a"}, EMBEDDER, vector) == {"embedding": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "a", "documents": []}, "documents"),
        ({"query": "a", "documents": "abc"}, "documents"),
        ({"query": "a", "documents": ["a"] * 10_000}, "documents"),
        ({"query": "a", "documents": ["a", None]}, "documents[1]"),
        ({"sentences": ["a"]}, "source_sentence"),
        ({"source_sentence": "a", "sentences": {}}, "sentences"),
        ({"candidate_labels": ["a"]}, "text"),
        ({"text": "a", "candidate_labels": []}, "candidate_labels"),
        ({"text": "a", "candidate_labels": ""}, "candidate_labels[0]"),
        ({"text": "a", "candidate_labels": ["b", "b"]}, "candidate_labels"),
        ({"text": "a", "candidate_labels": [str(n) for n in range(257)]}, "candidate_labels"),
        ({"text": "a", "candidate_labels": ["b"], "multi_label": 1}, "multi_label"),
        (
            {"text": "a", "candidate_labels": ["b"], "hypothesis_template": "no place"},
            "hypothesis_template",
        ),
        (
            {"text": "a", "candidate_labels": ["b"], "hypothesis_template": "{} {}"},
            "hypothesis_template",
        ),
    ],
    ids=lambda each: str(each)[:60],
)
def test_a_wrong_question_is_refused_and_the_field_named(body: dict[str, Any], param: str):
    with pytest.raises(InvalidInput) as refused:
        ask(body, EMBEDDER, vector)
    assert refused.value.param == param


def test_braces_in_a_label_are_letters():
    body = {"text": "a", "candidate_labels": ["{0.__class__}", "%s"]}
    assert ask(body, EMBEDDER, vector)["label"] in body["candidate_labels"]
