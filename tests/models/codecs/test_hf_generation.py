"""Hugging Face's shape of text generation, as its own server (TGI) has it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.models.codecs.hf_asking import answer, call_of, decode

from wherry.errors import InvalidInput
from wherry.models.codecs.hf import HF
from wherry.models.tasks.generation import CompletionInput, Generation, TextDelta, TokenLogprob
from wherry.models.tasks.task import TaskConfig, Usage

TASK = "text-generation"


def sampling(**parameters: Any) -> Any:
    return decode(TASK, {"inputs": "Once", "parameters": parameters}).items[0].sampling


def token(number: int, text: str, *, raw: bytes | None = None) -> TokenLogprob:
    data = text.encode() if raw is None else raw
    return TokenLogprob(text, -0.5, list(data), id=number)


def lines(deltas: list[TextDelta], usage: Usage, **parameters: Any) -> list[Any]:
    body = {"inputs": "Once", "stream": True, "parameters": parameters}
    decoded = decode(TASK, body, stream=True)
    encoder = HF.stream(decoded, call_of({"stream": True}))
    raw = b"".join([encoder.event(0, delta) for delta in deltas]) + encoder.end(usage)
    assert raw.endswith(b"\n\n")
    return [json.loads(each.removeprefix(b"data:")) for each in raw.strip().split(b"\n\n")]


# ------------------------------------------------------------------------------ parameters


def test_a_prompt_is_continued_by_the_likeliest_tokens():
    (item,) = decode(TASK, {"inputs": "Once"}).items
    assert isinstance(item, CompletionInput)
    assert (item.prompt, item.sampling.temperature, item.sampling.max_tokens) == ("Once", 0.0, 100)
    assert item.sampling.top_logprobs is None


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.5}, 0.5),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.5}, 1.0),
        ({"seed": 3}, 0.0),
        ({"do_sample": False}, 0.0),
    ],
)
def test_chance_comes_in_where_something_asks_for_it(parameters: Any, temperature: float):
    assert sampling(**parameters).temperature == temperature


def test_parameters_are_handed_on():
    found = sampling(
        max_new_tokens=7, top_k=5, top_p=0.5, seed=3, stop=["a"], stop_sequences=["b"],
        frequency_penalty=0.5, repetition_penalty=1.2, details=True, top_n_tokens=2,
    )  # fmt: skip
    assert (found.max_tokens, found.top_k, found.top_p, found.seed) == (7, 5, 0.5, 3)
    assert (found.stop, found.frequency_penalty, found.top_logprobs) == (["a", "b"], 0.5, 2)
    assert found.repetition_penalty == 1.2


def test_what_old_clients_send_by_default_is_taken():
    """0.29 sends these whatever its caller said."""
    sampling(best_of=None, decoder_input_details=False, do_sample=False, watermark=False, stop=[])


def test_a_bound_that_the_prompt_cannot_reach_changes_nothing():
    assert sampling(truncate=4) == sampling()


def test_a_deployment_may_allow_less():
    config = TaskConfig(options={"max_tokens": 5})
    (item,) = decode(TASK, {"inputs": "Once"}, config, max_tokens=4).items
    assert item.sampling.max_tokens == 4


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": -3}, "max_new_tokens"),
        ({"max_new_tokens": 2**40}, "max_new_tokens"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": 9}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"top_n_tokens": 99}, "top_n_tokens"),
        ({"seed": -1}, "seed"),
        ({"stop": "text"}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"best_of": 2}, "best_of"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"truncate": 3}, "truncate"),
        ({"truncate": 0}, "truncate"),
        ({"details": "yes"}, "details"),
        ({"grammar": {"type": "json", "value": {}}}, "grammar"),
        ({"watermark": True}, "watermark"),
        ({"typical_p": 0.9}, "typical_p"),
        ({"adapter_id": "a"}, "adapter_id"),
        ({"decoder_input_details": True}, "decoder_input_details"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(parameters: Any, name: str):
    with pytest.raises(InvalidInput) as refused:
        sampling(**parameters)
    assert refused.value.param == f"parameters.{name}"


@pytest.mark.parametrize("inputs", [3, "", ["a"], {"text": "a"}])
def test_a_prompt_is_one_text(inputs: Any):
    with pytest.raises(InvalidInput) as refused:
        decode(TASK, {"inputs": inputs})
    assert (refused.value.param or "").startswith("inputs")


# ------------------------------------------------------------------------------ answers


def test_the_text_alone_unless_details_are_wanted():
    decoded = decode(TASK, {"inputs": "Once"})
    assert answer(TASK, decoded, [Generation(text=" upon")]) == [{"generated_text": " upon"}]


def test_the_prompt_stands_in_front_if_asked():
    decoded = decode(TASK, {"inputs": "Once", "parameters": {"return_full_text": True}})
    assert answer(TASK, decoded, [Generation(text=" upon")]) == [{"generated_text": "Once upon"}]


@pytest.mark.parametrize(
    ("finish", "stop_text", "told"),
    [
        ("length", "", "length"),
        ("stop", "", "eos_token"),
        ("stop", "END", "stop_sequence"),
        ("cancelled", "", "length"),
    ],
)
def test_details_tell_tokens_and_why_it_ended(finish: Any, stop_text: str, told: str):
    decoded = decode(TASK, {"inputs": "Once", "parameters": {"details": True, "seed": 3}})
    output = Generation(
        text=" upon a",
        finish_reason=finish,
        stop_text=stop_text,
        logprobs=[token(5, " upon"), token(6, " a")],
        usage=Usage(1, 2, 1),
    )
    (found,) = answer(TASK, decoded, [output])
    assert found["details"] == {
        "finish_reason": told,
        "generated_tokens": 2,
        "seed": 3,
        "prefill": [],
        "tokens": [
            {"id": 5, "text": " upon", "logprob": -0.5, "special": False},
            {"id": 6, "text": " a", "logprob": -0.5, "special": False},
        ],
    }


def test_a_model_that_tells_no_tokens_tells_their_number():
    decoded = decode(TASK, {"inputs": "Once", "parameters": {"details": True}})
    (found,) = answer(TASK, decoded, [Generation(text=" upon a", usage=Usage(1, 2, 1))])
    assert (found["details"]["generated_tokens"], found["details"]["tokens"]) == (2, [])


# ------------------------------------------------------------------------------ streams


def test_each_token_is_a_line_and_the_last_has_the_whole():
    deltas = [
        TextDelta(text=" upon", logprobs=[token(5, " upon")]),
        TextDelta(text=" a time", logprobs=[token(6, " a"), token(7, " time")]),
        TextDelta(finish_reason="length"),
    ]
    found = lines(deltas, Usage(1, 3, 1))
    assert [each["index"] for each in found] == [1, 2, 3]
    assert [each["token"]["id"] for each in found] == [5, 6, 7]
    assert [each["generated_text"] for each in found] == [None, None, " upon a time"]
    assert [each["details"] for each in found[:2]] == [None, None]
    assert found[2]["details"] == {
        "finish_reason": "length", "generated_tokens": 3, "seed": None, "input_length": 1,
    }  # fmt: skip


def test_a_character_of_two_tokens_belongs_to_the_second():
    smile = "😀".encode()
    deltas = [
        TextDelta(logprobs=[token(5, "�", raw=smile[:2])]),
        TextDelta(text="😀", logprobs=[token(6, "�", raw=smile[2:])]),
        TextDelta(finish_reason="stop"),
    ]
    assert [each["token"]["text"] for each in lines(deltas, Usage(1, 2, 1))] == ["", "😀"]


def test_texts_that_were_held_back_come_with_the_token_that_sets_them_free():
    deltas = [
        TextDelta(text="", logprobs=[token(5, "EN")]),
        TextDelta(text="ENx", logprobs=[token(6, "x")]),
        TextDelta(finish_reason="stop", stop_text="END"),
    ]
    found = lines(deltas, Usage(1, 2, 1))
    assert "".join(each["token"]["text"] for each in found) == found[-1]["generated_text"] == "ENx"
    assert found[-1]["details"]["finish_reason"] == "stop_sequence"


def test_a_model_without_tokens_streams_its_pieces():
    deltas = [TextDelta(text="Hel"), TextDelta(text="lo"), TextDelta(finish_reason="stop")]
    found = lines(deltas, Usage(1, 2, 1), return_full_text=True)
    assert [each["token"]["text"] for each in found] == ["Hel", "lo"]
    assert [each["token"]["id"] for each in found] == [None, None]
    assert found[-1]["generated_text"] == "OnceHello"
    assert found[-1]["details"]["generated_tokens"] == 2


def test_the_token_that_ends_an_answer_is_special():
    deltas = [
        TextDelta(text="Yes", logprobs=[token(5, "Yes")]),
        TextDelta(logprobs=[token(2, "")]),
        TextDelta(finish_reason="stop"),
    ]
    found = lines(deltas, Usage(1, 2, 1))
    assert [each["token"]["special"] for each in found] == [False, True]
    assert (found[1]["token"]["id"], found[1]["generated_text"]) == (2, "Yes")


def test_an_empty_answer_has_a_line_all_the_same():
    (only,) = lines([TextDelta(finish_reason="stop")], Usage(1, 1, 1))
    assert (only["token"]["special"], only["generated_text"]) == (True, "")
