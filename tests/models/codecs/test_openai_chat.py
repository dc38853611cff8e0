import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from wherry.errors import InvalidInput
from wherry.models.codecs.catalog import find_codec
from wherry.models.codecs.codec import Call
from wherry.models.codecs.openai_chat import OPENAI_CHAT
from wherry.models.tasks.generation import (
    TEXT_GENERATION,
    ChatInput,
    Generation,
    ImagePart,
    JsonFormat,
    Message,
    TextDelta,
    TextPart,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    TopLogprob,
)
from wherry.models.tasks.task import TaskConfig, Usage

CONFIG = TaskConfig()
CALL = Call("openai.chat", "r1", "smol", "3", created=1_700_000_000)
USER = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}


def decode(body: Any, call: Call = CALL, config: TaskConfig = CONFIG) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return OPENAI_CHAT.decode(memoryview(data), call, TEXT_GENERATION, config)


def first(**fields: Any) -> ChatInput:
    item = decode({"model": "smol", "messages": USER} | fields).items[0]
    assert isinstance(item, ChatInput)
    return item


def answer(*outputs: Generation, **fields: Any) -> dict[str, Any]:
    decoded = decode({"messages": USER} | fields)
    reply = OPENAI_CHAT.encode(decoded, outputs, CALL, TEXT_GENERATION, CONFIG)
    assert reply.content_type == "application/json"
    return json.loads(bytes(reply.body))


def events_of(stream: bytes) -> list[dict[str, Any]]:
    lines = stream.decode().split("\n\n")
    assert lines.pop() == ""
    assert lines.pop() == "data: [DONE]"
    assert all(line.startswith("data: {") and "\n" not in line for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def stream(deltas: list[tuple[int, TextDelta]], **fields: Any) -> list[dict[str, Any]]:
    decoded = decode({"messages": USER, "stream": True} | fields)
    encoder = OPENAI_CHAT.stream(decoded, CALL)
    usage = sum((delta.usage for _, delta in deltas), Usage())
    sent = b"".join(encoder.event(index, delta) for index, delta in deltas) + encoder.end(usage)
    events = events_of(sent)
    for event in events:
        ChatCompletionChunk.model_validate(event, strict=True)
    return events


def test_the_catalogue_knows_the_codec() -> None:
    assert find_codec("openai.chat") is OPENAI_CHAT


# ------------------------------------------------------------------------------ reading


def test_a_conversation_is_read() -> None:
    messages = [
        {"role": "developer", "content": "Be terse."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "21"},
    ]
    assert first(messages=messages).messages == [
        Message("system", "Be terse."),
        Message("user", [TextPart("a"), TextPart("b")]),
        Message("assistant", "", tool_calls=[ToolCall("c1", "f", "{}")]),
        Message("tool", "21", tool_call_id="c1"),
    ]


def test_a_picture_is_read_from_a_user_only() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}}
    [message] = first(messages=[{"role": "user", "content": [part]}]).messages
    assert message.content == [ImagePart("data:image/png;base64,AA", "low")]
    with pytest.raises(InvalidInput, match="picture"):
        first(messages=[{"role": "system", "content": [part]}])


def test_sampling_is_read() -> None:
    item = first(
        max_completion_tokens=7,
        max_tokens=9,
        temperature=0,
        top_p=0.5,
        seed=-1,
        stop="x",
        frequency_penalty=-2,
        presence_penalty=2,
        logit_bias={"5": -100},
        logprobs=True,
        top_logprobs=3,
    )
    sampling = item.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.0, 0.5)
    assert (sampling.seed, sampling.stop, sampling.logit_bias) == (-1, ["x"], {5: -100.0})
    assert sampling.top_logprobs == 3


def test_null_is_the_same_as_leaving_out() -> None:
    nothing = dict.fromkeys(
        ("max_tokens", "temperature", "stop", "tools", "response_format", "n", "logit_bias")
    )
    assert first(**nothing) == first()


def test_tokens_are_capped_by_deployment_and_bundle() -> None:
    call = Call("openai.chat", "r", "m", "1", 0, max_tokens=5)
    assert decode({"messages": USER, "max_tokens": 9}, call).items[0].sampling.max_tokens == 5
    assert decode({"messages": USER}, call).items[0].sampling.max_tokens == 5
    config = TaskConfig(options={"max_tokens": 3})
    assert decode({"messages": USER}, call, config).items[0].sampling.max_tokens == 3


def test_fields_of_vendors_are_tolerated() -> None:
    assert first(user="u", metadata={"a": "b"}, store=False, x_vendor={"a": [1]}) == first()


def test_n_answers_are_n_items_and_the_prompt_is_charged_once() -> None:
    items = decode({"messages": USER, "n": 3, "seed": 5}).items
    assert [item.charge_prompt for item in items] == [True, False, False]
    assert [item.sampling.seed for item in items] == [5, 6, 7]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, JsonFormat({"type": "object"})),
        ({"type": "json_object", "value": SCHEMA}, JsonFormat(SCHEMA)),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
            JsonFormat(SCHEMA, strict=True, name="n"),
        ),
    ],
)
def test_response_formats_constrain(given: dict[str, Any], wanted: JsonFormat | None) -> None:
    assert first(response_format=given).json_format == wanted


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (None, ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        (
            {"type": "function", "function": {"name": "get_weather"}},
            ToolChoice("named", "get_weather"),
        ),
    ],
)
def test_tool_choices_are_read(choice: Any, wanted: ToolChoice) -> None:
    item = first(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
    assert item.tool_choice == wanted
    assert item.tools[0].parameters == SCHEMA
    assert item.parallel_tool_calls is False


DEEP: Any = {}
for _ in range(100):
    DEEP = {"items": DEEP}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": USER * 2049},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": [{"type": "video", "url": "x"}]}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "tool_calls": [
            {"id": "1", "function": {"name": "f", "arguments": ""}}]}]},
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"max_tokens": 2**31},
        {"max_tokens": True},
        {"temperature": 9},
        {"temperature": -0.1},
        {"temperature": "1"},
        {"top_p": -1},
        {"n": 0},
        {"n": 9},
        {"stop": [""]},
        {"stop": ["x"] * 5},
        {"stop": "x" * 257},
        {"stop": 5},
        {"logit_bias": {"5": 101}},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {str(token): 1 for token in range(1025)}},
        {"logprobs": True, "top_logprobs": 21},
        {"top_logprobs": 2},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": DEEP}}},
        {"response_format": {"type": "json_object", "value": DEEP}},
        {"tools": [TOOL] * 2},
        {"tools": [TOOL] * 129},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": DEEP}}]},
        {"tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": "maybe"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "nope"}}},
        {"chat_template": "{{ x }}"},
        {"chat_template_kwargs": {"chat_template": "x"}},
        {"functions": [{}]},
        {"guided_regex": "(a+)+$"},
        {"modalities": ["audio"]},
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        first(**fields)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": ',
        b"[]",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"messages":[{"role":"user","content":"x"}],"temperature":1e400}',
        b'{"messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 4400 + b"}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"\xff",
    ],
)
def test_a_body_that_is_no_sound_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode(body)


def test_an_error_names_the_field() -> None:
    with pytest.raises(InvalidInput) as caught:
        first(temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(InvalidInput) as caught:
        first(messages=[*USER, {"role": "tool", "content": "x"}])
    assert caught.value.param == "messages[1].tool_call_id"


# ------------------------------------------------------------------------------ answering


def test_an_answer_has_the_shape_the_strict_sdk_wants() -> None:
    found = answer(
        Generation(text="a", finish_reason="stop", usage=Usage(5, 2, 1)),
        Generation(text="b", finish_reason="length", usage=Usage(0, 3, 1)),
        n=2,
    )
    ChatCompletion.model_validate(found, strict=True)
    assert found["id"] == "chatcmpl-r1"
    assert (found["model"], found["created"]) == ("smol", 1_700_000_000)
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    assert found["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "a", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert [choice["finish_reason"] for choice in found["choices"]] == ["stop", "length"]


def test_a_tool_call_is_answered_without_content() -> None:
    call = ToolCall("call_1", "get_weather", '{"a": 1}')
    found = answer(Generation(tool_calls=[call], finish_reason="tool_calls"), tools=[TOOL])
    ChatCompletion.model_validate(found, strict=True)
    message = found["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"a": 1}'},
        }
    ]


def test_log_probabilities_are_finite() -> None:
    token = TokenLogprob("你", -0.5, [228, 189, 160], [TopLogprob("x", float("-inf"), [120])])
    found = answer(Generation(text="你", logprobs=[token]))
    ChatCompletion.model_validate(found, strict=True)
    [content] = found["choices"][0]["logprobs"]["content"]
    assert content["logprob"] == -0.5
    assert content["top_logprobs"] == [{"token": "x", "logprob": -9999.0, "bytes": [120]}]


def test_a_stream_has_role_first_and_one_finish_reason_last() -> None:
    events = stream(
        [
            (0, TextDelta(text="a")),
            (1, TextDelta(text="x")),
            (0, TextDelta(text="b")),
            (0, TextDelta(finish_reason="stop", usage=Usage(4, 2, 1))),
            (1, TextDelta(text="y", finish_reason="length", usage=Usage(0, 1, 1))),
        ],
        n=2,
    )
    assert {event["id"] for event in events} == {"chatcmpl-r1"}
    assert not any("usage" in event for event in events)
    for index, text, reason in ((0, "ab", "stop"), (1, "xy", "length")):
        choices = [each for event in events for each in event["choices"] if each["index"] == index]
        assert choices[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content") or "" for choice in choices) == text
        reasons = [choice["finish_reason"] for choice in choices]
        assert reasons == [None] * (len(choices) - 1) + [reason]


def test_usage_comes_last_and_only_if_asked() -> None:
    events = stream(
        [(0, TextDelta(text="a", finish_reason="stop", usage=Usage(4, 2, 1)))],
        stream_options={"include_usage": True},
    )
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    assert all(event["usage"] is None for event in events[:-1])


def test_tool_deltas_have_id_and_name_once() -> None:
    events = stream(
        [
            (0, TextDelta(tool_calls=[ToolCallDelta(0, "call_1", "f")])),
            (0, TextDelta(tool_calls=[ToolCallDelta(0, arguments='{"a":')])),
            (0, TextDelta(tool_calls=[ToolCallDelta(0, arguments="1}")])),
            (0, TextDelta(finish_reason="tool_calls")),
        ],
        tools=[TOOL],
    )
    pieces = [
        piece for event in events for piece in event["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert pieces == [
        {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": "f", "arguments": ""},
        },
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 0, "function": {"arguments": "1}"}},
    ]
    assert all(event["choices"][0]["delta"].get("tool_calls") != [] for event in events)
