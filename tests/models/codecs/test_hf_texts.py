"""Hugging Face's shapes of tasks that read texts, as clients of each version send and read them."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from tests.models.codecs.hf_asking import answer, decode

from wherry.errors import InvalidInput
from wherry.models.tasks.classification import Classification
from wherry.models.tasks.recommendation import Recommendation, Recommended
from wherry.models.tasks.task import TaskConfig
from wherry.models.tasks.text import Embedding, TextInput
from wherry.models.tasks.text_pair import PairScore, TextPair
from wherry.models.tasks.token_classification import Entities, Entity, TokensInput
from wherry.models.tasks.zero_shot_classification import Entailment

LABELS = Classification(labels=("a", "b", "c"), scores=np.array([0.2, 0.7, 0.1], np.float32))
OLD = {"headers": {"user-agent": "unknown/None; hf_hub/0.29.3; python/3.12.3"}}
NEW = {"headers": {"user-agent": "unknown/None; hf_hub/1.3.4; python/3.12.3"}}


def vectors(*rows: list[float]) -> list[Embedding]:
    return [Embedding(vector=np.array(row, np.float32)) for row in rows]


# ------------------------------------------------------------------------------ classification


def test_one_text_gets_a_list_of_lists_of_labels():
    decoded = decode("text-classification", {"inputs": "fine"})
    assert decoded.items == [TextInput("fine")]
    assert answer("text-classification", decoded, [LABELS]) == [
        [
            {"label": "b", "score": 0.7},
            {"label": "a", "score": 0.2},
            {"label": "c", "score": 0.1},
        ]
    ]


def test_many_texts_get_a_list_each_and_top_k_cuts_it():
    body = {"inputs": ["x", "y"], "parameters": {"top_k": 1, "function_to_apply": None}}
    decoded = decode("text-classification", body)
    assert (
        answer("text-classification", decoded, [LABELS, LABELS])
        == [[{"label": "b", "score": 0.7}]] * 2
    )


def test_scores_are_not_said_to_be_made_by_another_function():
    config = TaskConfig(options={"function": "softmax"})
    body = {"inputs": "x", "parameters": {"function_to_apply": "softmax"}}
    assert decode("text-classification", body, config).items
    with pytest.raises(InvalidInput, match="not made by 'softmax'") as refused:
        decode("text-classification", body)
    assert refused.value.param == "parameters.function_to_apply"


# ------------------------------------------------------------------------------ tokens


@pytest.mark.parametrize(("strategy", "key"), [("simple", "entity_group"), ("none", "entity")])
def test_entities_have_the_key_of_their_strategy(strategy: str, key: str):
    body = {
        "inputs": "Ann sings",
        "parameters": {"aggregation_strategy": strategy, "ignore_labels": ["O", "X"]},
    }
    decoded = decode("token-classification", body)
    assert decoded.items == [TokensInput("Ann sings", strategy, ("O", "X"))]  # type: ignore[arg-type]
    output = Entities(entities=[Entity("PER", 0.5, 0, 3, "Ann")])
    assert answer("token-classification", decoded, [output]) == [
        {"score": 0.5, "word": "Ann", "start": 0, "end": 3, key: "PER"}
    ]


def test_many_texts_get_a_list_of_entities_each():
    decoded = decode("token-classification", {"inputs": ["a", "b"]})
    assert answer("token-classification", decoded, [Entities(entities=[])] * 2) == [[], []]


# ------------------------------------------------------------------------------ vectors


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ["x", "y"], "normalize": True},
        {"inputs": ["x", "y"], "parameters": {"normalize": True}},
    ],
    ids=["at the root", "under parameters, as 0.x does"],
)
def test_vectors_are_given_and_scaled_if_asked(body: dict[str, Any]):
    decoded = decode("feature-extraction", body)
    found = answer("feature-extraction", decoded, vectors([3, 4], [0, 2]))
    assert found == [[0.6, 0.8], [0.0, 1.0]]


def test_one_text_gets_a_list_with_one_vector():
    decoded = decode("feature-extraction", {"inputs": "x"})
    assert answer("feature-extraction", decoded, vectors([3, 4])) == [[3.0, 4.0]]


def test_vectors_may_be_cut_and_packed():
    config = TaskConfig(options={"dimensions": 3, "shortenable": True})
    body = {"inputs": "x", "dimensions": 2, "encoding_format": "base64"}
    decoded = decode("feature-extraction", body, config)
    (text,) = answer("feature-extraction", decoded, vectors([3, 4, 12]))
    assert np.frombuffer(base64.b64decode(text), "<f4") == pytest.approx([0.6, 0.8])


# ------------------------------------------------------------------------------ questions

PAIR = {"source_sentence": "boats", "sentences": ["a ship", "bread"]}


@pytest.mark.parametrize(
    "body",
    [{"inputs": PAIR}, {"inputs": None, **PAIR}, PAIR],
    ids=["under inputs", "at the root, as 0.x does", "without inputs"],
)
def test_an_embedder_compares_sentences(body: dict[str, Any]):
    decoded = decode("feature-extraction", body)
    assert [item.text for item in decoded.items] == ["boats", "a ship", "bread"]
    found = answer("feature-extraction", decoded, vectors([1, 0], [1, 1], [0, 1]))
    assert found == pytest.approx([0.5**0.5, 0.0])


def test_a_model_of_pairs_compares_them_itself():
    decoded = decode("sentence-similarity", {"inputs": PAIR})
    assert decoded.items == [TextPair("boats", "a ship"), TextPair("boats", "bread")]
    outputs = [PairScore(score=0.9, raw=2.0), PairScore(score=0.25, raw=-1.0)]
    assert answer("sentence-similarity", decoded, outputs) == [0.9, 0.25]


@pytest.mark.parametrize("key", ["texts", "documents"])
def test_documents_are_ranked(key: str):
    body = {"inputs": {"query": "boats", key: ["bread", "a ship"]}, "parameters": {"top_k": 1}}
    decoded = decode("text-ranking", body)
    outputs = [PairScore(score=0.25, raw=-1.0), PairScore(score=0.5, raw=2.0)]
    assert answer("text-ranking", decoded, outputs) == [{"index": 1, "score": 0.5}]


def test_labels_of_the_client_are_chosen_in_the_shape_of_its_version():
    body = {"inputs": "a text", "parameters": {"candidate_labels": ["x", "y"]}}
    outputs = [
        Entailment(entailment=0.0, contradiction=0.0),
        Entailment(entailment=np.log(3.0), contradiction=0.0),
    ]
    decoded = decode("zero-shot-classification", body, **NEW)
    assert decoded.items[0] == TextPair("a text", "This example is x.")
    found = answer("zero-shot-classification", decoded, outputs)
    assert found == [{"label": "y", "score": 0.75}, {"label": "x", "score": 0.25}]

    found = answer(
        "zero-shot-classification", decode("zero-shot-classification", body, **OLD), outputs
    )
    assert found == {"sequence": "a text", "labels": ["y", "x"], "scores": [0.75, 0.25]}


def test_an_embedder_chooses_labels_too():
    parameters = {
        "candidate_labels": ["x", "y"],
        "multi_label": True,
        "hypothesis_template": "A {}",
    }
    decoded = decode("feature-extraction", {"inputs": "t", "parameters": parameters}, **NEW)
    assert [item.text for item in decoded.items] == ["t", "A x", "A y"]


# ------------------------------------------------------------------------------ other tasks


def test_a_task_without_a_shape_takes_its_plain_form():
    body = {"inputs": {"user": "7"}, "parameters": {"top_k": 3}}
    decoded = decode("recommendation", body)
    assert (decoded.items[0].user, decoded.items[0].top_k) == ("7", 3)
    output = Recommendation(items=[Recommended("1", 0.5, "Up")], basis="user")
    assert answer("recommendation", decoded, [output])["items"] == [
        {"id": "1", "title": "Up", "score": 0.5}
    ]


def test_an_answer_that_json_cannot_carry_is_refused():
    decoded = decode("recommendation", {"inputs": {"user": "7"}})
    output = Recommendation(items=[Recommended("1", float("nan"))], basis="user")
    with pytest.raises(InvalidInput, match="NaN"):
        answer("recommendation", decoded, [output])


# ------------------------------------------------------------------------------ bad input

MANY = ["x"] * 2049


@pytest.mark.parametrize(
    ("task", "body", "param"),
    [
        ("text-classification", {}, "inputs"),
        ("text-classification", {"inputs": None}, "inputs"),
        ("text-classification", {"parameters": {"top_k": 1}}, "inputs"),
        ("text-classification", {"inputs": 3}, "inputs"),
        ("text-classification", {"inputs": ""}, "inputs"),
        ("text-classification", {"inputs": []}, "inputs"),
        ("text-classification", {"inputs": ["x", None]}, "inputs[1]"),
        ("text-classification", {"inputs": MANY}, "inputs"),
        ("text-classification", {"inputs": "\ud800"}, None),
        ("text-classification", {"inputs": {"text": "a", "text_pair": "b"}}, "inputs"),
        ("text-classification", {"inputs": "x", "parameters": []}, "parameters"),
        ("text-classification", {"inputs": "x", "parameters": {"top_k": 0}}, "parameters.top_k"),
        ("text-classification", {"inputs": "x", "parameters": {"top_k": 1.5}}, "parameters.top_k"),
        ("token-classification", {"inputs": "x", "aggregation_strategy": "?"}, "aggregation_strategy"),
        ("token-classification", {"inputs": "x", "ignore_labels": [1]}, "parameters.ignore_labels[0]"),
        ("feature-extraction", {"inputs": "x", "dimensions": 0}, "parameters.dimensions"),
        ("feature-extraction", {"inputs": "x", "prompt_name": "query"}, "prompt_name"),
        ("feature-extraction", {"inputs": "x", "truncate": False}, "truncate"),
        ("feature-extraction", {"inputs": "x", "truncation_direction": "left"}, "truncation_direction"),
        ("feature-extraction", {"inputs": {"sentences": ["a"]}}, "source_sentence"),
        ("feature-extraction", {"inputs": {"source_sentence": "a"}}, "sentences"),
        ("feature-extraction", {"inputs": {"query": "a"}}, "documents"),
        ("sentence-similarity", {"inputs": "x"}, "inputs"),
        ("text-ranking", {"inputs": {"texts": ["a"]}}, "query"),
        ("zero-shot-classification", {"inputs": "x"}, "candidate_labels"),
        ("zero-shot-classification", {"inputs": ["x"], "candidate_labels": ["a"]}, "inputs"),
        ("zero-shot-classification", {"inputs": "x", "candidate_labels": ["a", "a"]}, "candidate_labels"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(task: str, body: dict[str, Any], param: str | None):
    with pytest.raises(InvalidInput) as refused:
        decode(task, body)
    assert refused.value.param == param


def test_a_file_is_refused_where_none_is_taken():
    with pytest.raises(InvalidInput, match="takes no files"):
        decode("text-classification", b"\x89PNG", headers={"content-type": "image/png"})
    with pytest.raises(InvalidInput, match="not valid JSON"):
        decode("text-classification", b"\x89PNG")


def test_options_and_unknown_parameters_change_nothing():
    body = {"inputs": "x", "options": {"wait_for_model": True}, "parameters": {"batch_size": 4}}
    decoded = decode("text-classification", body)
    assert json.dumps(answer("text-classification", decoded, [LABELS]))
