import json
from typing import Any

import pytest

from wherry.errors import InvalidInput
from wherry.models.codecs.anthropic_messages import ANTHROPIC_COUNT, ANTHROPIC_MESSAGES
from wherry.models.codecs.codec import Call
from wherry.models.tasks.generation import (
    TEXT_GENERATION,
    ChatInput,
    FinishReason,
    Generation,
    ImagePart,
    JsonFormat,
    Message,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from wherry.models.tasks.task import TaskConfig, Usage

CONFIG = TaskConfig()
CALL = Call("anthropic.messages", "r1", "smol", "3", created=1_700_000_000)
USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"name": "f", "input_schema": SCHEMA}
CALLED = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "t1"}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}


def decode(body: dict[str, Any], call: Call = CALL, config: TaskConfig = CONFIG) -> ChatInput:
    data = memoryview(json.dumps(body).encode())
    (item,) = ANTHROPIC_MESSAGES.decode(data, call, TEXT_GENERATION, config).items
    assert isinstance(item, ChatInput)
    return item


def chat(*messages: dict[str, Any], **fields: Any) -> ChatInput:
    return decode({"model": "smol", "max_tokens": 9, "messages": messages or [USER]} | fields)


def refuse(*messages: dict[str, Any], **fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as refused:
        chat(*messages, **fields)
    return refused.value


def says(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def answer(output: Generation) -> dict[str, Any]:
    body = memoryview(json.dumps({"max_tokens": 9, "messages": [USER]}).encode())
    decoded = ANTHROPIC_MESSAGES.decode(body, CALL, TEXT_GENERATION, CONFIG)
    reply = ANTHROPIC_MESSAGES.encode(decoded, [output], CALL, TEXT_GENERATION, CONFIG)
    return json.loads(bytes(reply.body))


def events(*deltas: TextDelta, usage: Usage | None = None) -> list[dict[str, Any]]:
    body = memoryview(json.dumps({"max_tokens": 9, "messages": [USER], "stream": True}).encode())
    decoded = ANTHROPIC_MESSAGES.decode(body, CALL, TEXT_GENERATION, CONFIG)
    stream = ANTHROPIC_MESSAGES.stream(decoded, CALL)
    raw = b"".join(stream.event(0, delta) for delta in deltas) + stream.end(usage or Usage())
    *blocks, rest = raw.decode().split("\n\n")
    assert rest == ""
    found: list[dict[str, Any]] = []
    for block in blocks:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


# ------------------------------------------------------------------------------ sampling


def test_every_field_of_sampling_arrives():
    sampling = chat(temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["x", "y"]).sampling
    assert (sampling.max_tokens, sampling.temperature) == (9, 0.5)
    assert (sampling.top_p, sampling.top_k, sampling.stop) == (0.9, 7, ["x", "y"])


def test_tokens_are_capped_by_bundle_and_deployment():
    body = {"max_tokens": 100, "messages": [USER]}
    capped = Call("anthropic.messages", "r1", "smol", "3", max_tokens=50)
    assert decode(body, capped).sampling.max_tokens == 50
    config = TaskConfig(options={"max_tokens": 20})
    assert decode(body, capped, config).sampling.max_tokens == 20


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"tools": [TOOL, TOOL]}, "tools[1]"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "f", "type": "bash_20250124"}]}, "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str):
    assert refuse(**fields).param == param


def test_a_missing_bound_is_refused_in_words():
    with pytest.raises(InvalidInput, match="max_tokens"):
        decode({"messages": [USER]})


def test_a_schema_that_is_nested_too_deep_is_refused():
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"properties": {"x": deep}}
    assert refuse(tools=[{"name": "f", "input_schema": deep}]).param == "tools[0].input_schema"
    wanted = {"format": {"type": "json_schema", "schema": deep}}
    assert refuse(output_config=wanted).param == "output_config.format.schema"


# ------------------------------------------------------------------------------ the prompt


def test_the_system_prompt_comes_first():
    blocks = [text("Be"), {**text("terse."), "cache_control": {"type": "ephemeral"}}]
    assert chat(system=blocks).messages == [Message("system", "Be\nterse."), Message("user", "Hi")]
    assert chat(system="").messages == [Message("user", "Hi")]
    later = chat(USER, says("system", text("Now shout."))).messages
    assert later == [Message("user", "Hi"), Message("system", "Now shout.")]


def test_neighbours_of_one_role_are_one_message():
    (message,) = chat(USER, says("user", text("there"), PICTURE)).messages
    assert message.content == [
        TextPart("Hi"),
        TextPart("there"),
        ImagePart("data:image/png;base64,AA=="),
    ]


def test_calls_and_results_become_messages_of_their_own():
    second = {"type": "tool_use", "id": "t2", "name": "f", "input": {}}
    failed = {**RESULT, "tool_use_id": "t2", "content": "no such city", "is_error": True}
    nested = {**RESULT, "content": [text("see"), PICTURE]}
    messages = chat(
        USER,
        says("assistant", text("Checking."), CALLED, second),
        says("user", nested, failed, text("And?")),
    ).messages
    assert messages[1:] == [
        Message(
            "assistant",
            "Checking.",
            tool_calls=[ToolCall("t1", "f", '{"a":1}'), ToolCall("t2", "f", "{}")],
        ),
        Message(
            "tool",
            [TextPart("see"), ImagePart("data:image/png;base64,AA==")],
            tool_call_id="t1",
        ),
        Message("tool", [TextPart("Error:"), TextPart("no such city")], tool_call_id="t2"),
        Message("user", "And?"),
    ]


def test_an_empty_result_is_a_result():
    messages = chat(USER, says("assistant", CALLED), says("user", RESULT)).messages
    assert messages[-1] == Message("tool", "", tool_call_id="t1")


def test_thoughts_are_dropped():
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    redacted = {"type": "redacted_thinking", "data": "x"}
    messages = chat(USER, says("assistant", thought, redacted, text("Yes")), USER).messages
    assert messages[1] == Message("assistant", "Yes")


def test_a_last_message_of_the_assistant_is_continued():
    item = chat(USER, {"role": "assistant", "content": "Hel"})
    assert item.continue_last
    assert item.messages[-1] == Message("assistant", "Hel")
    assert not chat().continue_last


@pytest.mark.parametrize(
    "blocks",
    [
        [text("")],
        [text("Hello ")],
        [text("Hello"), text("there\n")],
        [text("Hello"), CALLED],
        [{"type": "thinking", "thinking": "hm", "signature": "s"}],
    ],
    ids=["empty", "blank", "line", "call", "thought"],
)
def test_a_beginning_that_cannot_be_continued_is_refused(blocks: list[dict[str, Any]]):
    assert refuse(USER, says("assistant", *blocks)).param == "messages"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([says("user", RESULT)], "messages[0].content[0].tool_use_id"),
        ([says("user", CALLED)], "messages[0].content[0]"),
        ([USER, says("assistant", text("x"), PICTURE)], "messages[1].content[1]"),
        ([USER, says("assistant", CALLED, CALLED)], "messages[1].content[1].id"),
        ([says("user", {"type": "document", "source": {}})], "messages[0].content[0]"),
        ([says("user", {"type": "search_result"})], "messages[0].content[0]"),
        ([says("user", {"type": "video"})], "messages[0].content[0].type"),
        ([says("user")], "messages[0].content"),
        ([says("system", PICTURE)], "messages[0].content[0]"),
        (
            [says("user", {"type": "image", "source": {"type": "file", "file_id": "x"}})],
            "messages[0].content[0].source",
        ),
        (
            [USER, says("assistant", CALLED), says("user", {**RESULT, "content": [CALLED]})],
            "messages[2].content[0].content[0].type",
        ),
    ],
)
def test_a_block_that_cannot_stand_there_is_named(messages: list[dict[str, Any]], param: str):
    named = refuse(*messages).param or ""
    assert named.replace("[...]", "[0]") == param or named == param


# ------------------------------------------------------------------------------ tools and schemas


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, ToolChoice()),
        ({"type": "auto"}, ToolChoice()),
        ({"type": "none"}, ToolChoice("none")),
        ({"type": "any"}, ToolChoice("required")),
        ({"type": "tool", "name": "f"}, ToolChoice("named", "f")),
    ],
)
def test_the_choice_of_a_tool_arrives(given: dict[str, Any] | None, wanted: ToolChoice):
    item = chat(tools=[{**TOOL, "description": "does"}], tool_choice=given)
    assert item.tool_choice == wanted
    assert (item.tools[0].name, item.tools[0].description) == ("f", "does")
    assert item.tools[0].parameters == SCHEMA
    assert item.parallel_tool_calls


def test_calls_side_by_side_can_be_forbidden():
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert not chat(tools=[TOOL], tool_choice=choice).parallel_tool_calls


def test_a_schema_of_the_answer_arrives():
    wanted = {"type": "json_schema", "schema": SCHEMA}
    held = JsonFormat(SCHEMA, strict=True)
    assert chat(output_config={"format": wanted, "effort": "low"}).json_format == held
    assert chat(output_format=wanted).json_format == held
    assert chat(output_config={"effort": "low"}).json_format is None


# ------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("reason", "stop_text", "wanted"),
    [
        ("stop", "", ("end_turn", None)),
        ("stop", "x", ("stop_sequence", "x")),
        ("length", "", ("max_tokens", None)),
        ("cancelled", "", ("max_tokens", None)),
        ("content_filter", "", ("refusal", None)),
    ],
)
def test_the_reason_of_the_end_is_told(
    reason: FinishReason, stop_text: str, wanted: tuple[str, str | None]
):
    whole = answer(Generation(text="a", finish_reason=reason, stop_text=stop_text))
    assert (whole["stop_reason"], whole["stop_sequence"]) == wanted
    *_, end, _ = events(TextDelta(text="a", finish_reason=reason, stop_text=stop_text))
    assert (end["delta"]["stop_reason"], end["delta"]["stop_sequence"]) == wanted


def test_a_message_has_its_text_before_its_calls():
    usage = Usage(input_tokens=5, output_tokens=7, rows=1)
    calls = [ToolCall("t1", "f", '{"a": 1}'), ToolCall("t2", "f", '{"a": ')]
    found = answer(Generation(text="So:", tool_calls=calls, finish_reason="stop", usage=usage))
    assert (found["id"], found["model"], found["stop_reason"]) == ("msg_r1", "smol", "tool_use")
    assert found["content"] == [
        text("So:"),
        CALLED,
        {"type": "tool_use", "id": "t2", "name": "f", "input": {}},
    ]
    assert (found["usage"]["input_tokens"], found["usage"]["output_tokens"]) == (5, 7)


def test_an_answer_without_words_has_an_empty_text():
    assert answer(Generation())["content"] == [text("")]
    kinds = [each["type"] for each in events(TextDelta(finish_reason="stop"))]
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_the_prompt_is_counted_once_in_a_stream():
    found = events(
        TextDelta(text="a", input_tokens=5),
        TextDelta(text="b", finish_reason="stop", usage=Usage(5, 2, 1)),
        usage=Usage(5, 2, 1),
    )
    assert found[0]["message"]["usage"]["input_tokens"] == 5
    assert found[-2]["usage"]["input_tokens"] == 5
    assert found[-2]["usage"]["output_tokens"] == 2


def test_blocks_follow_one_another():
    found = events(
        TextDelta(text="So:"),
        TextDelta(tool_calls=[ToolCallDelta(0, "t1", "f"), ToolCallDelta(0, arguments='{"a"')]),
        TextDelta(tool_calls=[ToolCallDelta(0, arguments=": 1}"), ToolCallDelta(1, "t2", "f")]),
        TextDelta(text="Done."),
        TextDelta(finish_reason="tool_calls"),
    )
    assert [
        (each["type"].removeprefix("content_block_"), each["index"]) for each in found[1:-2]
    ] == [
        ("start", 0),
        ("delta", 0),
        ("stop", 0),
        ("start", 1),
        ("delta", 1),
        ("delta", 1),
        ("stop", 1),
        ("start", 2),
        ("stop", 2),
        ("start", 3),
        ("delta", 3),
        ("stop", 3),
    ]
    assert found[4]["content_block"] == {**CALLED, "input": {}}
    pieces = [
        each["delta"]["partial_json"]
        for each in found
        if each.get("index") == 1 and "delta" in each
    ]
    assert json.loads("".join(pieces)) == {"a": 1}
    assert found[-2]["delta"]["stop_reason"] == "tool_use"


# ------------------------------------------------------------------------------ counting


def test_what_is_counted_is_what_would_be_asked():
    body = {"model": "smol", "system": "Be terse.", "messages": [USER], "tools": [TOOL]}
    data = memoryview(json.dumps(body).encode())
    decoded = ANTHROPIC_COUNT.decode(data, CALL, TEXT_GENERATION, CONFIG)
    (counted,) = decoded.items
    asked = decode({**body, "max_tokens": 9})
    assert counted.count_only
    assert (counted.messages, counted.tools) == (asked.messages, asked.tools)
    output = Generation(input_tokens=12)
    reply = ANTHROPIC_COUNT.encode(decoded, [output], CALL, TEXT_GENERATION, CONFIG)
    assert json.loads(bytes(reply.body)) == {"input_tokens": 12}
