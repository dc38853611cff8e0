"""OpenAI's moderations over a classifier that says which labels are harmful."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from openai.types import ModerationCreateResponse

from wherry.errors import InvalidInput
from wherry.frames import Call
from wherry.models.codecs.openai_moderations import CATEGORIES, OPENAI_MODERATIONS
from wherry.models.tasks.classification import Classification
from wherry.models.tasks.task import TaskConfig
from wherry.models.tasks.text import TEXT_CLASSIFICATION

CALL = Call("openai.moderations", "req-1", "guard", "1", 0)
LABELS = ("harmless", "hate", "prompt-attack")
CONFIG = TaskConfig(labels=LABELS, options={"flagged_labels": ["hate", "prompt-attack"]})


def decode(given: Any, config: TaskConfig = CONFIG) -> Any:
    body = memoryview(json.dumps({"input": given}).encode())
    return OPENAI_MODERATIONS.decode(body, CALL, TEXT_CLASSIFICATION, config)


def answer(given: Any, *scores: tuple[float, float, float], config: TaskConfig = CONFIG) -> Any:
    decoded = decode(given, config)
    outputs = [Classification(labels=LABELS, scores=np.array(each, np.float32)) for each in scores]
    assert len(decoded.items) == len(outputs)
    reply = OPENAI_MODERATIONS.encode(decoded, outputs, CALL, TEXT_CLASSIFICATION, config)
    found = json.loads(bytes(reply.body))
    ModerationCreateResponse.model_validate(found)  # the SDK's own type, every field required
    return found


def test_each_text_has_its_verdict():
    found = answer(["a", "b"], (0.9, 0.05, 0.05), (0.1, 0.1, 0.8))
    assert (found["id"], found["model"]) == ("modr-req-1", "guard")
    calm, attack = found["results"]
    assert not calm["flagged"]
    assert attack["flagged"]
    assert attack["categories"]["prompt-attack"]
    assert not attack["categories"]["hate"]
    assert attack["category_scores"]["prompt-attack"] == pytest.approx(0.8)
    assert "harmless" not in attack["categories"]


def test_what_the_model_does_not_judge_is_said_to_be_unjudged():
    (result,) = answer("a", (0.0, 1.0, 0.0))["results"]
    assert set(result["categories"]) == {*CATEGORIES, "prompt-attack"}
    judged = {name for name, kinds in result["category_applied_input_types"].items() if kinds}
    assert judged == {"hate", "prompt-attack"}
    assert not result["categories"]["violence"]
    assert result["category_scores"]["violence"] == 0


def test_parts_are_one_input_and_the_worst_counts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (result,) = answer(parts, (0.9, 0.1, 0.0), (0.2, 0.1, 0.7))["results"]
    assert result["flagged"]
    assert result["category_scores"]["prompt-attack"] == pytest.approx(0.7)


def test_the_bundle_says_from_which_score_a_text_is_flagged():
    config = TaskConfig(labels=LABELS, options={**CONFIG.options, "flag_threshold": 0.9})
    (result,) = answer("a", (0.2, 0.0, 0.8), config=config)["results"]
    assert not result["flagged"]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("", "input"),
        ([], "input"),
        (["a", ""], "input[1]"),
        (["a"] * 2049, "input"),
        (["a", {"type": "text", "text": "b"}], "input"),
        ([{"type": "image_url", "image_url": {"url": "data:,"}}], "input[0]"),
        ([{"type": "text"}], "input[0]"),
        (5, "input"),
        ([5], "input[0]"),
        (None, "input"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_and_named(given: Any, param: str):
    with pytest.raises(InvalidInput) as refused:
        decode(given)
    assert refused.value.param == param


def test_a_classifier_that_does_not_say_what_is_harmful_judges_nothing():
    with pytest.raises(InvalidInput, match="which of its labels are harmful") as refused:
        decode("a", TaskConfig(labels=("negative", "positive")))
    assert "negative, positive" in refused.value.hint
