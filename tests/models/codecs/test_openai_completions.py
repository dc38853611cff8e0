import json
from typing import Any

import pytest
from openai.types import Completion

from wherry.errors import InvalidInput
from wherry.models.codecs.catalog import find_codec
from wherry.models.codecs.codec import Call
from wherry.models.codecs.openai_completions import OPENAI_COMPLETIONS
from wherry.models.tasks.generation import (
    TEXT_GENERATION,
    CompletionInput,
    Generation,
    TextDelta,
    TokenLogprob,
    TopLogprob,
)
from wherry.models.tasks.task import TaskConfig, Usage

CONFIG = TaskConfig()
CALL = Call("openai.completions", "r1", "smol", "3", created=1_700_000_000)


def decode(**body: Any) -> Any:
    data = json.dumps({"model": "smol"} | body).encode()
    return OPENAI_COMPLETIONS.decode(memoryview(data), CALL, TEXT_GENERATION, CONFIG)


def answer(outputs: list[Generation], **body: Any) -> dict[str, Any]:
    decoded = decode(**body)
    reply = OPENAI_COMPLETIONS.encode(decoded, outputs, CALL, TEXT_GENERATION, CONFIG)
    found = json.loads(bytes(reply.body))
    Completion.model_validate(found, strict=True)
    return found


def test_the_catalogue_knows_the_codec() -> None:
    assert find_codec("openai.completions") is OPENAI_COMPLETIONS


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_prompts_are_texts_or_token_ids(given: Any, prompts: list[Any]) -> None:
    items = decode(prompt=given).items
    assert all(isinstance(item, CompletionInput) for item in items)
    assert [item.prompt for item in items] == prompts


def test_sixteen_tokens_unless_asked() -> None:
    assert decode(prompt="a").items[0].sampling.max_tokens == 16
    assert decode(prompt="a", max_tokens=3).items[0].sampling.max_tokens == 3


def test_each_prompt_is_answered_n_times_and_charged_once() -> None:
    items = decode(prompt=["a", "b"], n=2, best_of=2, seed=1, echo=True).items
    assert [item.prompt for item in items] == ["a", "a", "b", "b"]
    assert [item.charge_prompt for item in items] == [True, False, True, False]
    assert [item.sampling.seed for item in items] == [1, 2, 1, 2]
    assert all(item.echo for item in items)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": ["a", 1]},
        {"prompt": ["a", [1]]},
        {"prompt": [-1]},
        {"prompt": [1.5]},
        {"prompt": [2**31]},
        {"prompt": ["a"] * 129},
        {"prompt": ["a"] * 65, "n": 2},
        {"prompt": "a", "max_tokens": 0},
        {"prompt": "a", "suffix": "b"},
        {"prompt": "a", "best_of": 2},
        {"prompt": "a", "logprobs": 21},
        {"prompt": "a", "logprobs": True},
        {"prompt": "a", "echo": True, "logprobs": 1},
        {"prompt": "a", "grammar": "root ::= x"},
    ],
)
def test_what_cannot_be_done_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        decode(**body)


def test_an_answer_has_a_choice_an_item() -> None:
    outputs = [
        Generation(text=" x", finish_reason="stop", usage=Usage(3, 1, 1)),
        Generation(text=" y", finish_reason="length", usage=Usage(2, 4, 1)),
    ]
    found = answer(outputs, prompt=["a", "b"])
    assert found["object"] == "text_completion"
    assert [choice["index"] for choice in found["choices"]] == [0, 1]
    assert [choice["text"] for choice in found["choices"]] == [" x", " y"]
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}


def test_log_probabilities_have_the_older_shape() -> None:
    tokens = [
        TokenLogprob(" x", -0.5, top=[TopLogprob(" x", -0.5), TopLogprob(" y", -1.0)]),
        TokenLogprob("!", float("-inf"), top=[TopLogprob("!", float("-inf"))]),
    ]
    found = answer([Generation(text=" x!", logprobs=tokens)], prompt="a", logprobs=2)
    assert found["choices"][0]["logprobs"] == {
        "tokens": [" x", "!"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{" x": -0.5, " y": -1.0}, {"!": -9999.0}],
        "text_offset": [0, 2],
    }


def test_a_stream_ends_each_choice_once() -> None:
    encoder = OPENAI_COMPLETIONS.stream(
        decode(prompt=["a", "b"], logprobs=0, stream_options={"include_usage": True}), CALL
    )
    sent = b"".join(
        [
            encoder.event(0, TextDelta(text="x", logprobs=[TokenLogprob("x", -1.0)])),
            encoder.event(1, TextDelta(text="y")),
            encoder.event(0, TextDelta(text="z", logprobs=[TokenLogprob("z", -1.0)])),
            encoder.event(0, TextDelta()),
            encoder.event(0, TextDelta(finish_reason="stop")),
            encoder.event(1, TextDelta(finish_reason="length")),
            encoder.end(Usage(2, 3, 2)),
        ]
    ).decode()
    *lines, done, rest = sent.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 5
    choices = [choice for event in events for choice in event["choices"]]
    assert [(choice["index"], choice["text"]) for choice in choices] == [
        (0, "x"), (1, "y"), (0, "z"), (0, ""), (1, ""),
    ]  # fmt: skip
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop", "length"]
    assert choices[2]["logprobs"]["text_offset"] == [1]


def test_without_the_wish_a_stream_tells_no_usage() -> None:
    encoder = OPENAI_COMPLETIONS.stream(decode(prompt="a"), CALL)
    assert b"usage" not in encoder.event(0, TextDelta(text="x"))
    assert encoder.end(Usage(1, 1)) == b"data: [DONE]\n\n"
