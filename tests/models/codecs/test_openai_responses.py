"""Bodies of `/v1/responses` ↔ conversations and answers, by the shapes of the official SDK."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call
from wherry.models.codecs.openai_responses import OPENAI_RESPONSES, OPENAI_RESPONSES_TURN
from wherry.models.codecs.responses_turn import (
    TurnFailure,
    TurnPiece,
    TurnRequest,
    read_turn,
    with_outcome,
)
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
from wherry.models.tasks.packing import FrameReader, pack, unpack
from wherry.models.tasks.task import TaskConfig, Usage

CONFIG = TaskConfig()
CALL = Call("openai.responses", "req-1", "smol", "3", created=1_700_000_000)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
WEATHER = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}
TIME = {"type": "function", "name": "get_time"}
CALLED = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"}
TOLD = {"type": "function_call_output", "call_id": "c1", "output": "21"}
USAGE = Usage(7, 3, 1)
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
stream_event: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def decode(fields: Any, call: Call = CALL, config: TaskConfig = CONFIG) -> Any:
    body = fields if isinstance(fields, bytes) else json.dumps({"model": "smol"} | fields).encode()
    return OPENAI_RESPONSES.decode(memoryview(body), call, TEXT_GENERATION, config)


def chat(given: Any = "Hi", call: Call = CALL, config: TaskConfig = CONFIG, **more: Any) -> Any:
    (item,) = decode({"input": given} | more, call, config).items
    assert isinstance(item, ChatInput)
    return item


def answer(output: Generation, **fields: Any) -> dict[str, Any]:
    reply = OPENAI_RESPONSES.encode(
        decode({"input": "Hi"} | fields), [output], CALL, TEXT_GENERATION, CONFIG
    )
    found = json.loads(bytes(reply.body))
    Response.model_validate(found, strict=True)
    return found


def stream(*deltas: TextDelta, **fields: Any) -> list[dict[str, Any]]:
    encoder = OPENAI_RESPONSES.stream(decode({"input": "Hi"} | fields), CALL)
    sent = b"".join(encoder.event(0, each) for each in deltas) + encoder.end(USAGE)
    return events_of(sent)


def events_of(sent: bytes) -> list[dict[str, Any]]:
    """The events, each of which says its name twice and has the next number."""
    events: list[dict[str, Any]] = []
    for each in sent.decode().removesuffix("\n\n").split("\n\n"):
        head, data = each.split("\n")
        event = json.loads(data.removeprefix("data: "))
        stream_event.validate_python(event)
        assert head == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        events.append(event)
    return events


# ------------------------------------------------------------------------------ input


def test_a_text_is_what_the_user_says():
    assert chat("Hi").messages == [Message("user", "Hi")]


def test_instructions_come_first_and_a_developer_is_the_system():
    found = chat([{"role": "developer", "content": "Rhyme."}], instructions="Be terse.")
    assert found.messages == [Message("system", "Be terse."), Message("system", "Rhyme.")]


def test_parts_of_all_kinds_are_read():
    said = [
        {"role": "user", "content": [{"type": "input_text", "text": "Look"}, IMAGE]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "A boat", "annotations": []},
                {"type": "refusal", "refusal": "No"},
            ],
        },
    ]
    assert chat(said).messages == [
        Message("user", [TextPart("Look"), ImagePart(IMAGE["image_url"])]),
        Message("assistant", [TextPart("A boat"), TextPart("No")]),
    ]


def test_what_an_assistant_says_and_calls_is_one_message():
    second = CALLED | {"call_id": "c2"}
    given = [
        {"role": "user", "content": "?"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "assistant", "content": "Let me see"},
        CALLED,
        second,
        TOLD,
        TOLD | {"call_id": "c2", "output": [{"type": "input_text", "text": "22"}]},
    ]
    calls = [ToolCall("c1", "get_weather", "{}"), ToolCall("c2", "get_weather", "{}")]
    assert chat(given).messages == [
        Message("user", "?"),
        Message("assistant", "Let me see", tool_calls=calls),
        Message("tool", "21", tool_call_id="c1"),
        Message("tool", [TextPart("22")], tool_call_id="c2"),
    ]


def test_options_become_the_tasks_own():
    found = chat(
        max_output_tokens=20,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=2,
        parallel_tool_calls=False,
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "get_weather"},
        text={"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}},
    )
    sampling = found.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (20, 0.5, 0.9)
    assert sampling.top_logprobs == 2
    assert found.tool_choice == ToolChoice("named", "get_weather")
    assert not found.parallel_tool_calls
    assert found.tools[0].parameters == SCHEMA
    assert found.json_format == JsonFormat(SCHEMA, strict=True, name="n")
    assert chat(text={"format": {"type": "json_object"}}).json_format == JsonFormat(
        {"type": "object"}
    )
    assert chat(text={"format": {"type": "text"}}).json_format is None
    assert chat(include=["message.output_text.logprobs"]).sampling.top_logprobs == 0


def test_tokens_are_capped_by_the_bundle_and_the_deployment():
    capped = Call("openai.responses", "req-1", "smol", "3", max_tokens=5)
    assert chat(call=capped).sampling.max_tokens == 5
    assert chat(config=TaskConfig(options={"max_tokens": 3})).sampling.max_tokens == 3


def test_only_allowed_tools_are_offered():
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"name": "get_time"}]}
    found = chat(tools=[WEATHER, TIME], tool_choice=allowed)
    assert [tool.name for tool in found.tools] == ["get_time"]
    assert found.tool_choice == ToolChoice("required")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"role": "system", "content": [IMAGE]}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].image_url",
        ),
        ({"input": [TOLD]}, "input[0].call_id"),
        ({"input": [CALLED, TOLD | {"output": [IMAGE]}]}, "input[1].output[0]"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": "x", "temperature": 3}, "temperature"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "top_logprobs": 21}, "top_logprobs"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "x", "tools": [WEATHER, WEATHER]}, "tools[1]"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"input": "x", "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        (
            {"input": "x", "tool_choice": {"type": "allowed_tools", "tools": [{"name": "x"}]}},
            "tool_choice",
        ),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "x", "metadata": {"a": 1}}, "metadata[...]"),
        ({"input": "x", "metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"input": "x", "truncation": "some"}, "truncation"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "x", "grammar": "root ::= x"}, "grammar"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
def test_a_wrong_field_is_named(fields: Any, param: str | None):
    with pytest.raises(InvalidInput) as refused:
        decode(fields)
    assert refused.value.param == param


def test_a_schema_that_is_too_deep_is_refused():
    schema: Any = {}
    for _ in range(100):
        schema = {"properties": {"a": schema}}
    with pytest.raises(InvalidInput, match="deep"):
        chat(text={"format": {"type": "json_schema", "name": "n", "schema": schema}})
    with pytest.raises(InvalidInput, match="deep"):
        chat(tools=[WEATHER | {"parameters": schema}])


def test_a_nested_item_is_refused_in_words():
    body = b'{"model": "m", "input": [{"role": "user", "content": ' + b"[" * 5000 + b"}]}"
    with pytest.raises(InvalidInput):
        decode(body)


# ------------------------------------------------------------------------------ answers


def test_an_answer_is_a_message_and_tells_again_what_was_asked():
    found = answer(
        Generation(text="Hello", usage=USAGE),
        instructions="Be terse.",
        temperature=0.3,
        metadata={"k": "v"},
        tools=[WEATHER],
        reasoning={"effort": "low"},
        text={"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}, "verbosity": "low"},
    )
    assert found["id"] == "resp_1"
    assert (found["status"], found["incomplete_details"], found["error"]) == (
        "completed",
        None,
        None,
    )
    assert found["output"][0]["content"][0]["text"] == "Hello"
    assert found["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10,
    }
    assert (found["instructions"], found["temperature"]) == ("Be terse.", 0.3)
    assert (found["metadata"], found["tools"][0]["name"]) == ({"k": "v"}, "get_weather")
    assert found["text"]["format"]["schema"] == SCHEMA
    assert found["reasoning"]["effort"] == "low"


def test_an_answer_that_was_cut_off_is_incomplete():
    found = answer(Generation(text="Hel", finish_reason="length", usage=USAGE))
    assert found["status"] == "incomplete"
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert found["output"][0]["status"] == "incomplete"


def test_calls_are_items_and_words_come_before_them():
    calls = [ToolCall("c1", "get_weather", "{}"), ToolCall("c2", "get_time", "{}")]
    found = answer(
        Generation(text="So", tool_calls=calls, finish_reason="tool_calls"), tools=[WEATHER, TIME]
    )
    assert [each["type"] for each in found["output"]] == [
        "message",
        "function_call",
        "function_call",
    ]
    assert [each["call_id"] for each in found["output"][1:]] == ["c1", "c2"]
    assert len({each["id"] for each in found["output"]}) == 3
    alone = answer(Generation(tool_calls=calls[:1], finish_reason="tool_calls"))
    assert [each["type"] for each in alone["output"]] == ["function_call"]


def test_log_probabilities_are_told_with_their_bytes():
    chosen = TokenLogprob("é", -0.5, None, [TopLogprob("e", -1e9, [101])])
    part = answer(Generation(text="é", logprobs=[chosen]), top_logprobs=1)["output"][0]["content"][
        0
    ]
    assert part["logprobs"] == [
        {
            "token": "é",
            "bytes": [195, 169],
            "logprob": -0.5,
            "top_logprobs": [{"token": "e", "bytes": [101], "logprob": -9999.0}],
        }
    ]


# ------------------------------------------------------------------------------ events


def test_words_come_as_events_in_order():
    events = stream(
        TextDelta(text="Hel"), TextDelta(text="lo"), TextDelta(finish_reason="stop", usage=USAGE)
    )
    assert [each["type"].removeprefix("response.") for each in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    whole = answer(Generation(text="Hello", usage=USAGE))
    assert events[-1]["response"] == whole
    assert events[0]["response"]["status"] == "in_progress"
    assert events[-2]["item"] == whole["output"][0]


def test_calls_come_as_events_each_with_its_own_item():
    events = stream(
        TextDelta(text="So"),
        TextDelta(tool_calls=[ToolCallDelta(0, "c1", "get_weather")]),
        TextDelta(
            tool_calls=[ToolCallDelta(0, arguments='{"a"'), ToolCallDelta(0, arguments=":1}")]
        ),
        TextDelta(tool_calls=[ToolCallDelta(1, "c2", "get_time", "{}")]),
        TextDelta(finish_reason="tool_calls"),
    )
    kinds = [(each["type"].removeprefix("response."), each.get("output_index")) for each in events]
    assert kinds[5:] == [
        ("output_text.done", 0),
        ("content_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("function_call_arguments.delta", 1),
        ("function_call_arguments.delta", 1),
        ("function_call_arguments.done", 1),
        ("output_item.done", 1),
        ("output_item.added", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.done", 2),
        ("output_item.done", 2),
        ("completed", None),
    ]
    output = events[-1]["response"]["output"]
    assert [each.get("arguments") for each in output] == [None, '{"a":1}', "{}"]


def test_an_empty_and_a_cut_answer_end_well():
    empty = stream(TextDelta(finish_reason="stop"))
    assert empty[-1]["response"]["output"][0]["content"][0]["text"] == ""
    cut = stream(TextDelta(text="Hel"), TextDelta(finish_reason="length"))
    assert cut[-1]["type"] == "response.incomplete"
    assert cut[-2]["item"]["status"] == "incomplete"


# ------------------------------------------------------------------------------ turns that are kept


def decode_turn(history: Sequence[bytes] = (), *, is_announced: bool = False, **fields: Any) -> Any:
    body = json.dumps({"model": "smol", "input": "Hi"} | fields).encode()
    packed = pack(TurnRequest("resp_9", body, list(history), is_announced))
    return OPENAI_RESPONSES_TURN.decode(memoryview(packed), CALL, TEXT_GENERATION, CONFIG)


def turn_of(decoded: Any, *outputs: Generation) -> Any:
    reply = OPENAI_RESPONSES_TURN.encode(decoded, outputs, CALL, TEXT_GENERATION, CONFIG)
    return read_turn(bytes(reply.body))


def test_a_turn_adds_to_its_conversation_but_not_its_instructions():
    first = turn_of(
        decode_turn(instructions="Rhyme."),
        Generation(tool_calls=[ToolCall("c1", "get_weather", "{}")], finish_reason="tool_calls"),
    )
    assert json.loads(first.response)["id"] == "resp_9"
    follows = decode_turn([first.messages], input=[TOLD], previous_response_id="resp_9")
    (item,) = follows.items
    assert item.messages == [
        Message("user", "Hi"),
        Message("assistant", "", tool_calls=[ToolCall("c1", "get_weather", "{}")]),
        Message("tool", "21", tool_call_id="c1"),
    ]
    second = turn_of(follows, Generation(text="Warm"))
    assert [each.role for each in unpack(second.messages, list[Message])] == ["tool", "assistant"]
    assert json.loads(second.response)["previous_response_id"] == "resp_9"


def test_the_input_is_kept_as_items_with_ids():
    given = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes", "id": "msg_x"},
        {"role": "user", "content": [IMAGE]},
        CALLED,
        TOLD,
    ]
    items = turn_of(decode_turn(input=given), Generation(text="x")).input_items
    found = [json.loads(item.json) for item in items]
    assert [each["id"] for each in found] == [item.id for item in items]
    assert [each["id"] for each in found] == [
        "msg_9_in0", "msg_x", "msg_9_in2", "fc_9_in3", "fco_9_in4",
    ]  # fmt: skip
    assert found[0]["content"] == [{"type": "input_text", "text": "Hi"}]
    assert found[1]["content"][0]["type"] == "output_text"
    assert found[2]["content"][0]["image_url"] == IMAGE["image_url"]


def test_a_turn_that_is_announced_generates_nothing_and_says_how_it_begins():
    decoded = decode_turn(is_announced=True)
    assert decoded.items == []
    turn = turn_of(decoded)
    assert turn.status == "in_progress"
    assert unpack(turn.messages, list[Message]) == [Message("user", "Hi")]
    begun = json.loads(turn.response)
    Response.model_validate(begun, strict=True)
    assert (begun["status"], begun["output"], begun["usage"]) == ("in_progress", [], None)


def test_a_streamed_turn_is_told_with_its_last_events():
    encoder = OPENAI_RESPONSES_TURN.stream(decode_turn(), CALL)
    sent = encoder.event(0, TextDelta(text="Hello")) + encoder.end(USAGE)
    pieces = [unpack(each, TurnPiece) for each in FrameReader().feed(sent)]
    events = events_of(b"".join(each.events for each in pieces))
    assert [each.turn is None for each in pieces] == [True, False]
    assert json.loads(pieces[-1].turn.response) == events[-1]["response"]


def test_a_response_may_end_otherwise_than_its_worker_could_say():
    begun = turn_of(decode_turn(is_announced=True, metadata={"k": "v"})).response
    failed = json.loads(with_outcome(begun, "failed", TurnFailure("server_error", "it died")))
    Response.model_validate(failed, strict=True)
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": "server_error", "message": "it died"}
    assert failed["metadata"] == {"k": "v"}
    assert json.loads(with_outcome(begun, "cancelled"))["error"] is None


def test_a_conversation_has_a_largest_number_of_messages():
    many = pack([Message("user", "x")] * 2048)
    with pytest.raises(InvalidInput, match="more than 2048 messages"):
        decode_turn([many])


@pytest.mark.parametrize("history", [b"", b"junk", pack([{"role": "user"}, 5])])
def test_a_history_that_is_none_is_refused(history: bytes):
    with pytest.raises(InvalidInput):
        decode_turn([history])
