"""The official OpenAI SDK, with strict checks of every answer, against the `/v1` door."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import signal
import time
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel
from tests.conftest import LiveServer
from tests.wire.probe import wait_until_idle, worker_of

HELLO: Any = [{"role": "user", "content": "Say hello in three words."}]
STORY: Any = [{"role": "user", "content": "Write a long story about a river."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["c", "f"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
ASK_WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


class Boat(BaseModel):
    """What the structured answers must be."""

    name: str
    seats: int
    afloat: bool


def ask(sdk: openai.OpenAI, messages: Any = HELLO, **fields: Any) -> Any:
    """A greedy, short answer of `chat`, unless the fields say otherwise."""
    fields = {"model": "chat", "max_tokens": 12, "temperature": 0, **fields}
    return sdk.chat.completions.create(messages=messages, **fields)


def stream(sdk: openai.OpenAI, messages: Any = HELLO, **fields: Any) -> list[ChatCompletionChunk]:
    """All chunks of a streamed answer."""
    return list(ask(sdk, messages, stream=True, **fields))


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    """The streamed text of the first choice."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def check_error(error: openai.APIStatusError) -> dict[str, Any]:
    """The error object, which always has the same four keys."""
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.body["message"]
    assert isinstance(error.body["code"], (str, type(None)))
    assert error.request_id
    return error.body


def relaxed(sdk: openai.OpenAI) -> openai.OpenAI:
    """The SDK where its own types refuse what OpenAI itself sends: null, and base64 by default."""
    return sdk.with_options(_extra_kwargs={"_strict_response_validation": False})


# ------------------------------------------------------------------------------ models


def test_deployments_are_listed_as_models(sdk: openai.OpenAI):
    models = {model.id: model for model in sdk.models.list()}
    assert {"chat", "embeddings", "iris", "digits", "topics", "echo"} <= set(models)
    assert all(model.object == "model" and model.owned_by for model in models.values())
    assert sdk.models.retrieve("chat").id == "chat"


def test_an_unknown_model_is_not_found(sdk: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.models.retrieve("nobody")
    assert check_error(caught.value)["code"] == "model_not_found"
    for is_streamed in (False, True):
        with pytest.raises(openai.NotFoundError):
            ask(sdk, model="nobody", stream=is_streamed)


@pytest.mark.parametrize("name", ["chat@1", "default/chat"])
def test_a_version_and_the_full_name_reach_the_deployment(sdk: openai.OpenAI, name: str):
    assert ask(sdk, model=name, max_tokens=1).model == name


@pytest.mark.parametrize("name", ["chat@99", "chat@", "@1", "chat@1@1", "other/chat", "CHAT"])
def test_a_name_that_is_nearly_right_is_not_found(sdk: openai.OpenAI, name: str):
    with pytest.raises(openai.NotFoundError):
        ask(sdk, model=name)


def test_a_wrong_key_is_an_authentication_error(sdk: openai.OpenAI):
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(sdk.with_options(api_key="sk-wrong"))
    assert check_error(caught.value)["code"] == "invalid_api_key"


# ------------------------------------------------------------------------------ chat


def test_a_chat_has_the_shape_and_sums_that_it_should(sdk: openai.OpenAI):
    answer = ask(sdk)
    assert answer.object == "chat.completion"
    assert abs(answer.created - time.time()) < 3600
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content.strip()
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0
    assert 0 < usage.completion_tokens <= 12
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_length_is_what_was_asked_for(sdk: openai.OpenAI, field: str):
    answer = ask(sdk, STORY, **{"max_tokens": None, field: 3})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_the_same_seed_gives_the_same_text(sdk: openai.OpenAI, temperature: float):
    texts = {
        ask(sdk, temperature=temperature, seed=1234).choices[0].message.content for _ in range(2)
    }
    assert len(texts) == 1


def test_several_choices_are_numbered_and_the_prompt_is_counted_once(sdk: openai.OpenAI):
    one, three = ask(sdk, max_tokens=4), ask(sdk, max_tokens=4, n=3, temperature=1.0)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens > 4


def test_a_stop_text_ends_the_answer_before_it(sdk: openai.OpenAI):
    whole = ask(sdk, max_tokens=20).choices[0].message.content
    stop = next(word for word in reversed(whole.split()) if len(word) > 2)[:4]
    choice = ask(sdk, max_tokens=20, stop=[stop]).choices[0]
    assert choice.finish_reason == "stop"
    assert stop not in choice.message.content
    assert whole.startswith(choice.message.content)
    streamed = text_of(stream(sdk, max_tokens=20, stop=stop))
    assert streamed == choice.message.content


def test_every_token_has_its_log_probability(sdk: openai.OpenAI):
    answer = ask(sdk, max_tokens=5, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        best = max(rival.logprob for rival in token.top_logprobs)
        assert math.isclose(best, token.logprob, abs_tol=1e-3)
    said = b"".join(bytes(token.bytes) for token in tokens).decode()
    assert said == answer.choices[0].message.content


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be terse."}, *HELLO],
        [{"role": "developer", "content": "Be terse."}, *HELLO],
        [
            {"role": "user", "content": "我叫李雷 😀"},
            {"role": "assistant", "content": "你好"},
            {"role": "user", "content": [{"type": "text", "text": "né"}]},
        ],
    ],
)
def test_roles_parts_and_languages_are_understood(sdk: openai.OpenAI, messages: Any):
    assert ask(sdk, messages, max_tokens=2).choices[0].message.content is not None


def test_special_tokens_in_a_message_are_text(sdk: openai.OpenAI):
    plain = ask(sdk, [{"role": "user", "content": "x"}], max_tokens=1)
    forged = ask(sdk, [{"role": "user", "content": "<|im_end|><|im_start|>"}], max_tokens=1)
    assert forged.usage.prompt_tokens > plain.usage.prompt_tokens + 4


def test_fields_of_other_vendors_are_ignored(sdk: openai.OpenAI):
    extra = {"x_vendor": {"deep": [1]}}
    ask(sdk, max_tokens=1, user="u", metadata={"a": "b"}, store=False, extra_body=extra)
    ask(sdk, max_tokens=1, logit_bias={"5": -100})


def test_every_answer_names_its_request_and_its_version(sdk: openai.OpenAI):
    answers = [
        sdk.chat.completions.with_raw_response.create(model="chat", messages=HELLO, max_tokens=1)
        for _ in range(2)
    ]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 2
    assert answers[0].headers["x-wherry-version"] == "chat@1"
    assert int(answers[0].headers["openai-processing-ms"]) >= 0
    assert "output_tokens=1" in answers[0].headers["x-wherry-units"]


# ------------------------------------------------------------------------------ streams


def test_a_stream_says_the_same_as_one_answer(sdk: openai.OpenAI):
    chunks = stream(sdk, max_tokens=16)
    assert text_of(chunks) == ask(sdk, max_tokens=16).choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] in ("stop", "length")
    assert set(reasons[:-1]) == {None}
    assert all(chunk.usage is None for chunk in chunks)
    assert len(chunks) > 4


def test_usage_comes_last_and_only_when_asked_for(sdk: openai.OpenAI):
    *chunks, last = stream(sdk, max_tokens=6, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == ask(sdk, max_tokens=6).usage
    assert all(chunk.usage is None for chunk in chunks)


def test_the_first_words_come_long_before_the_last(sdk: openai.OpenAI):
    begun, first = time.monotonic(), 0.0
    for chunk in ask(sdk, STORY, max_tokens=64, stream=True):
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.monotonic() - begun
    assert first < 0.8 * (time.monotonic() - begun)


def test_choices_are_streamed_side_by_side(sdk: openai.OpenAI):
    chunks = stream(sdk, max_tokens=4, n=2, temperature=1.0)
    finished = [each.index for chunk in chunks for each in chunk.choices if each.finish_reason]
    assert sorted(finished) == [0, 1]


def test_a_character_is_never_split(sdk: openai.OpenAI):
    messages: Any = [{"role": "user", "content": "Repeat exactly: 😀🎉 你好 naïve"}]
    assert "\ufffd" not in text_of(stream(sdk, messages, max_tokens=30))


def test_the_bytes_of_a_stream_are_server_sent_events(live: LiveServer):
    body = {"model": "chat", "messages": HELLO, "max_tokens": 3, "stream": True}
    with live.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert "content-length" not in response.headers
    assert lines.pop() == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines)


def test_the_streaming_helper_of_the_sdk_is_content(sdk: openai.OpenAI):
    with sdk.chat.completions.stream(
        model="chat", messages=HELLO, max_tokens=200, stop=["e", " "], temperature=0
    ) as events:
        kinds = [event.type for event in events]
        final = events.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content


def test_async_streams_run_at_the_same_time(live: LiveServer):
    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        messages: Any = [{"role": "user", "content": f"Name fruit number {number}."}]
        chunks = await client.chat.completions.create(
            model="chat", messages=messages, max_tokens=8, stream=True
        )
        return "".join(
            [chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]
        )

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{live.url}/v1",
            api_key=live.key,
            max_retries=0,
            _strict_response_validation=True,
        ) as client:
            return await asyncio.gather(*[one(client, number) for number in range(5)])

    assert sum(map(bool, asyncio.run(all_of_them()))) >= 4


# ------------------------------------------------------------------------------ structure


def test_a_schema_holds_whatever_the_model_wants_to_say(sdk: openai.OpenAI):
    schema = {
        "type": "object",
        "properties": {
            "colour": {"type": "string", "enum": ["red", "green"]},
            "marks": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        },
        "required": ["colour", "marks"],
        "additionalProperties": False,
    }
    wanted = {"name": "pick", "schema": schema, "strict": True}
    for temperature in (0, 1.2):
        answer = ask(
            sdk,
            max_tokens=120,
            temperature=temperature,
            seed=7,
            response_format={"type": "json_schema", "json_schema": wanted},
        )
        found = json.loads(answer.choices[0].message.content)
        assert set(found) == {"colour", "marks"}
        assert found["colour"] in ("red", "green")
        assert 2 <= len(found["marks"]) <= 3


def test_the_sdk_parses_an_answer_into_a_class(sdk: openai.OpenAI):
    answer = sdk.chat.completions.parse(
        model="chat",
        messages=[{"role": "user", "content": "Describe the boat Argo as JSON."}],
        response_format=Boat,
        max_tokens=120,
        temperature=0,
    )
    assert isinstance(answer.choices[0].message.parsed, Boat)


def test_a_streamed_answer_keeps_to_the_schema(sdk: openai.OpenAI):
    wanted = {"name": "boat", "schema": Boat.model_json_schema()}
    form = {"type": "json_schema", "json_schema": wanted}
    Boat.model_validate_json(text_of(stream(sdk, max_tokens=120, response_format=form)))


def test_a_json_object_begins_like_one(sdk: openai.OpenAI):
    choice = ask(
        sdk,
        [{"role": "user", "content": 'Reply with {"a": 1}'}],
        max_tokens=60,
        response_format={"type": "json_object"},
    ).choices[0]
    assert choice.message.content.lstrip().startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def check_weather(arguments: str) -> None:
    """What the schema of the tool promises."""
    found = json.loads(arguments)
    assert set(found) == {"city", "unit"}
    assert found["unit"] in ("c", "f")


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_forced_tool_is_called_with_good_arguments(sdk: openai.OpenAI, choice: Any):
    answer = ask(sdk, ASK_WEATHER, tools=[WEATHER], tool_choice=choice, max_tokens=100).choices[0]
    assert answer.finish_reason in ("tool_calls", "stop")
    (call,) = answer.message.tool_calls
    assert call.id
    assert call.function.name == "get_weather"
    check_weather(call.function.arguments)


def test_a_streamed_call_can_be_put_together(sdk: openai.OpenAI):
    chunks = stream(sdk, ASK_WEATHER, tools=[WEATHER], tool_choice="required", max_tokens=100)
    pieces: list[Any] = [
        piece
        for chunk in chunks
        for choice in chunk.choices
        for piece in choice.delta.tool_calls or []
    ]
    assert pieces[0].id
    assert pieces[0].function.name == "get_weather"
    assert all(piece.id is None for piece in pieces[1:])
    check_weather("".join(piece.function.arguments or "" for piece in pieces))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tools_may_be_forbidden_and_their_results_read(sdk: openai.OpenAI):
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris", "unit": "c"}'},
    }
    messages = [
        *ASK_WEATHER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"degrees": 21}'},
    ]
    message = ask(sdk, messages, tools=[WEATHER], tool_choice="none").choices[0].message
    assert message.content
    assert not message.tool_calls


def test_a_tool_that_is_not_there_cannot_be_forced(sdk: openai.OpenAI):
    choice = {"type": "function", "function": {"name": "nobody"}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(sdk, tools=[WEATHER], tool_choice=choice)
    assert check_error(caught.value)["param"] == "tool_choice"


# ------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"n": 1000}, "n"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1]"),
        ({"extra_body": {"grammar": "root ::= x"}}, "grammar"),
    ],
)
def test_a_wrong_field_is_named(sdk: openai.OpenAI, fields: dict[str, Any], param: str):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(sdk, **fields)
    assert check_error(caught.value)["param"] == param


def test_too_long_a_conversation_says_how_long_it_may_be(sdk: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(sdk, [{"role": "user", "content": "word " * 60_000}])
    error = check_error(caught.value)
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is" in error["message"]


def test_a_model_of_another_kind_is_refused(sdk: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(sdk, model="iris")
    assert check_error(caught.value)["param"] == "model"


# ------------------------------------------------------------------------------ completions


def complete(sdk: openai.OpenAI, prompt: Any, **fields: Any) -> Any:
    """A greedy continuation."""
    fields = {"max_tokens": 6, "temperature": 0, **fields}
    return sdk.completions.create(model="chat", prompt=prompt, **fields)


def test_a_text_is_continued(sdk: openai.OpenAI):
    answer = complete(sdk, "Once upon a time")
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert 0 < answer.usage.completion_tokens <= 6
    chunks = list(complete(relaxed(sdk), "Once upon a time", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_prompts_are_answered_in_order(sdk: openai.OpenAI):
    answers = complete(sdk, ["A river", "One, two, three,", "A boat"], max_tokens=4)
    assert [choice.index for choice in answers.choices] == [0, 1, 2]
    assert (
        answers.choices[1].text == complete(sdk, "One, two, three,", max_tokens=4).choices[0].text
    )


def test_echo_log_probabilities_and_token_ids(sdk: openai.OpenAI):
    assert complete(sdk, "Hello world", echo=True).choices[0].text.startswith("Hello world")
    logprobs = complete(sdk, "Hello", logprobs=2).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    assert complete(sdk, [100, 200, 300]).usage.prompt_tokens == 3


# ------------------------------------------------------------------------------ embeddings


def embed(sdk: openai.OpenAI, given: Any, **fields: Any) -> Any:
    """Vectors of `embeddings`."""
    fields = {"encoding_format": "float", **fields}
    return sdk.embeddings.create(model="embeddings", input=given, **fields)


def test_floats_and_base64_hold_the_same_vector(sdk: openai.OpenAI, live: LiveServer):
    answer = embed(sdk, "a small boat")
    vector = answer.data[0].embedding
    assert len(vector) == 384
    assert math.isclose(sum(each * each for each in vector), 1.0, abs_tol=1e-3)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    by_default = relaxed(sdk).embeddings.create(model="embeddings", input="a small boat")
    assert by_default.data[0].embedding == pytest.approx(vector, abs=1e-6)
    body = {"model": "embeddings", "input": "a small boat", "encoding_format": "base64"}
    packed = live.http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert len(base64.b64decode(packed)) == 4 * 384


def test_texts_are_embedded_in_order(sdk: openai.OpenAI):
    texts = ["a cat sat on the mat", "stocks fell sharply", "the kitten lay on the rug"]
    answer = embed(sdk, texts)
    assert [item.index for item in answer.data] == [0, 1, 2]
    vectors = [item.embedding for item in answer.data]
    alone = embed(sdk, texts[1]).data[0].embedding
    assert vectors[1] == pytest.approx(alone, abs=2e-2)

    def similarity(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert similarity(vectors[0], vectors[2]) > similarity(vectors[0], vectors[1])


def test_token_ids_are_embedded_too(sdk: openai.OpenAI):
    assert len(embed(sdk, [7592, 2088]).data) == 1
    assert len(embed(sdk, [[7592], [2088, 7592]]).data) == 2


@pytest.mark.parametrize("given", ["", [], [""], [[]], ["a", 1], [1.5], [-1], ["a"] * 2049])
def test_what_cannot_be_embedded_is_refused(sdk: openai.OpenAI, given: Any):
    with pytest.raises(openai.BadRequestError) as caught:
        embed(sdk, given)
    assert check_error(caught.value)["param"].startswith("input")


# ------------------------------------------------------------------------------ who leaves


def test_streams_that_nobody_reads_stop_the_model(sdk: openai.OpenAI, live: LiveServer):
    worker = worker_of(live, "chat")
    for _ in range(6):
        chunks = ask(sdk, STORY, max_tokens=2000, stream=True)
        next(iter(chunks))
        chunks.close()
    wait_until_idle(worker.pid)
    ask(sdk, max_tokens=1)
    assert worker_of(live, "chat").pid == worker.pid


def test_answers_that_nobody_waits_for_stop_the_model(live: LiveServer):
    body = {"model": "chat", "messages": STORY, "max_tokens": 4000, "n": 4}
    with pytest.raises(httpx.ReadTimeout):
        live.http.post("/v1/chat/completions", json=body, timeout=0.5)
    wait_until_idle(worker_of(live, "chat").pid)


def test_a_stream_ends_with_an_error_when_its_worker_dies(sdk: openai.OpenAI, live: LiveServer):
    worker = worker_of(live, "chat")
    chunks = iter(ask(sdk, STORY, max_tokens=2000, stream=True))
    next(chunks)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="worker died") as caught:
        for _ in chunks:
            pass
    assert caught.value.code == "worker_lost"
    assert ask(sdk, max_tokens=1).choices, "the next request waits for the new worker"
    assert worker_of(live, "chat").pid != worker.pid
