"""From labels of tokens to entities, by Hugging Face's rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wherry.errors import InvalidInput
from wherry.models.tasks.task import TaskConfig
from wherry.models.tasks.token_classification import (
    TOKEN_CLASSIFICATION,
    Entity,
    Tag,
    TokensInput,
    find_entities,
)

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXT = "Ada Lovelace 😀 Rome"


def tag(label: str, score: float, start: int, end: int, *, begins: bool = True) -> Tag:
    scores = np.full(len(LABELS), (1 - score) / (len(LABELS) - 1), dtype=np.float32)
    scores[LABELS.index(label)] = score
    return Tag(scores, start, end, begins)


TAGS = [
    tag("B-PER", 0.9, 0, 3),
    tag("I-PER", 0.8, 4, 8),
    tag("B-LOC", 0.6, 8, 12, begins=False),
    tag("O", 0.7, 13, 14),
    tag("B-LOC", 0.5, 15, 19),
]


def found(aggregation: Any, tags: list[Tag] | None = None, **wish: Any) -> list[tuple[str, str]]:
    entities = find_entities(TEXT, tags or TAGS, LABELS, TokensInput(TEXT, aggregation, **wish))
    assert all(TEXT[each.start : each.end] == each.text for each in entities)
    return [(each.label, each.text) for each in entities]


def test_tokens_by_themselves_keep_their_labels():
    assert found("none") == [
        ("B-PER", "Ada"),
        ("I-PER", "Love"),
        ("B-LOC", "lace"),
        ("B-LOC", "Rome"),
    ]


def test_simple_joins_neighbours_of_one_kind():
    assert found("simple") == [("PER", "Ada Love"), ("LOC", "lace"), ("LOC", "Rome")]


@pytest.mark.parametrize("aggregation", ["first", "max"])
def test_a_word_has_the_label_of_its_first_or_surest_token(aggregation: str):
    assert found(aggregation) == [("PER", "Ada Lovelace"), ("LOC", "Rome")]


def test_a_word_has_the_label_of_the_mean_of_its_tokens():
    tags = [tag("I-PER", 0.5, 0, 1), tag("B-LOC", 0.95, 1, 3, begins=False)]
    assert found("average", tags) == [("LOC", "Ada")]
    assert found("first", tags) == [("PER", "Ada")]


def test_a_begin_begins_anew():
    tags = [tag("B-PER", 0.9, 0, 3), tag("B-PER", 0.9, 4, 12)]
    assert found("simple", tags) == [("PER", "Ada"), ("PER", "Lovelace")]


def test_labels_are_left_out_as_wished():
    assert ("O", "😀") in found("simple", ignored=())
    assert found("simple", ignored=("O", "PER")) == [("LOC", "lace"), ("LOC", "Rome")]


def test_the_score_of_an_entity_is_the_mean_of_its_tokens():
    (entity, *_) = find_entities(TEXT, TAGS, LABELS, TokensInput(TEXT))
    assert entity == Entity("PER", pytest.approx(0.85), 0, 8, "Ada Love")  # type: ignore[arg-type]


def test_the_bundle_and_then_the_client_choose_the_aggregation():
    config = TaskConfig(options={"aggregation_strategy": "first"})
    plain = TOKEN_CLASSIFICATION.from_plain
    assert plain({"text": "a"}, TaskConfig()).aggregation == "simple"
    assert plain({"text": "a"}, config).aggregation == "first"
    assert plain({"text": "a", "aggregation_strategy": "max"}, config).aggregation == "max"
    for wrong in ("all", 5, ["max"]):
        with pytest.raises(InvalidInput):
            plain({"text": "a", "aggregation_strategy": wrong}, config)
