"""Reranking, in the shapes of Jina, Cohere and TEI, over vectors and over pairs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from wherry.errors import InvalidInput
from wherry.frames import Call, Usage
from wherry.models.codecs.codec import Decoded
from wherry.models.codecs.rerank import RERANK_TEI, RERANK_V1, RERANK_V2
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.task import TaskConfig
from wherry.models.tasks.text import Embedding, TextInput
from wherry.models.tasks.text_pair import PairScore, TextPair

CALL = Call("rerank.v1", "req-1", "ranker", "1", 0)
CONFIG = TaskConfig()
VECTORS = {"boats": [1.0, 0.0], "a ship": [3.0, 1.0], "bread": [0.0, 2.0], "river": [1.0, 1.0]}


def decode(codec: Any, body: dict[str, Any], task: str = "feature-extraction") -> Decoded:
    return codec.decode(memoryview(json.dumps(body).encode()), CALL, find_task(task), CONFIG)


def answer(codec: Any, body: dict[str, Any], task: str = "feature-extraction") -> Any:
    decoded = decode(codec, body, task)
    outputs = [
        Embedding(vector=np.array(VECTORS[item.text], np.float32), usage=Usage(2, 0, 1))
        if isinstance(item, TextInput)
        else PairScore(
            score=len(item.second) / 10, raw=float(len(item.second)), usage=Usage(5, 0, 1)
        )
        for item in decoded.items
    ]
    reply = codec.encode(decoded, outputs, CALL, find_task(task), CONFIG)
    return json.loads(bytes(reply.body))


BODY = {"query": "boats", "documents": ["bread", "a ship", {"text": "river"}]}


def test_an_embedder_ranks_by_cosine():
    found = answer(RERANK_V1, BODY)
    assert [each["index"] for each in found["results"]] == [1, 2, 0]
    cosines = [each["relevance_score"] for each in found["results"]]
    assert cosines == pytest.approx([3 / 10**0.5, 1 / 2**0.5, 0], abs=1e-6)
    assert all("document" not in each for each in found["results"])
    assert (found["model"], found["id"], found["object"]) == ("ranker", "req-1", "list")
    assert found["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    assert found["meta"]["tokens"] == {"input_tokens": 8}


def test_a_cross_encoder_reads_each_document_with_the_query():
    decoded = decode(RERANK_V1, BODY, "text-ranking")
    assert decoded.items[2] == TextPair("boats", "river")
    found = answer(RERANK_V1, BODY, "text-ranking")
    assert [each["index"] for each in found["results"]] == [1, 0, 2]
    assert found["results"][0]["relevance_score"] == pytest.approx(0.6)


def test_top_n_and_documents_are_given_as_asked():
    found = answer(RERANK_V2, {**BODY, "top_n": 2, "return_documents": True})
    assert [each["document"] for each in found["results"]] == [
        {"text": "a ship"},
        {"text": "river"},
    ]
    assert found["meta"]["api_version"] == {"version": "2"}
    assert len(answer(RERANK_V1, {**BODY, "top_n": 99})["results"]) == 3


def test_tei_gives_a_list_of_scores_and_raw_ones_if_asked():
    body = {"query": "boats", "texts": ["bread", "a ship"]}
    assert [each["index"] for each in answer(RERANK_TEI, body)] == [1, 0]
    raw = answer(RERANK_TEI, {**body, "raw_scores": True, "return_text": True}, "text-ranking")
    assert raw == [
        {"index": 1, "score": 6.0, "text": "a ship"},
        {"index": 0, "score": 5.0, "text": "bread"},
    ]


def test_equal_scores_keep_the_order_of_the_documents():
    found = answer(RERANK_V1, {"query": "boats", "documents": ["river", "river", "river"]})
    assert [each["index"] for each in found["results"]] == [0, 1, 2]


@pytest.mark.parametrize("task", ["feature-extraction", "text-ranking"])
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": ["a"] * 2049}, "documents"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"documents": [{"title": "a"}]}, "documents[0]"),
        ({"documents": ["a", {"text": 5}]}, "documents[1]"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a\ud800"]}, None),
        ({"query": ""}, "query"),
        ({"query": ["a"]}, "query"),
        ({"query": None}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": -1}, "top_n"),
        ({"return_documents": "yes"}, "return_documents"),
        ({"rank_fields": ["title", "text"]}, "rank_fields"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_and_named(task: str, change: dict[str, Any], param: str | None):
    with pytest.raises(InvalidInput) as refused:
        decode(RERANK_V1, {**BODY, **change}, task)
    assert refused.value.param == param


def test_writing_that_runs_right_to_left_or_combines_is_text_like_any_other():
    documents = ["שלום עולם", "e\u0301te\u0301", "\u202eright to left\u202c", "👩‍👩‍👧", "中文"]
    decoded = decode(RERANK_V1, {"query": "مرحبا", "documents": documents})
    assert [item.text for item in decoded.items[1:]] == documents
