"""The official Anthropic SDK, with strict checks of every answer, against the `/v1/messages` door."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from tests.conftest import LiveServer
from tests.wire.probe import wait_until_idle, worker_of

from wherry import Client
from wherry.client.schema import KeyLimits

anthropic = pytest.importorskip("anthropic", reason="pip install 'anthropic>=0.40'")

HELLO: Any = [{"role": "user", "content": "Say hello in three words."}]
STORY: Any = [{"role": "user", "content": "Write a long story about a river."}]
ASK_WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "unit": {"type": "string", "enum": ["c", "f"]},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
GREEDY = {"temperature": 0}


def make_client(live: LiveServer, **more: Any) -> Any:
    """The SDK, which here refuses answers of a wrong shape."""
    fields = {"base_url": live.url, "api_key": live.key, "max_retries": 0, "timeout": 60} | more
    return anthropic.Anthropic(_strict_response_validation=True, **fields)


@pytest.fixture
def claude(live: LiveServer) -> Iterator[Any]:
    with make_client(live) as client:
        yield client


def ask(claude: Any, messages: Any = HELLO, **fields: Any) -> Any:
    """A greedy, short answer of `chat`, unless the fields say otherwise."""
    fields = {"model": "chat", "max_tokens": 12, "extra_body": GREEDY} | fields
    return claude.messages.create(messages=messages, **fields)


def count(claude: Any, messages: Any, **fields: Any) -> int:
    """Tokens of a prompt."""
    fields = {"model": "chat"} | fields
    return claude.messages.count_tokens(messages=messages, **fields).input_tokens


def text_of(events: list[Any]) -> str:
    """The streamed text."""
    deltas = [each.delta for each in events if each.type == "content_block_delta"]
    return "".join(each.text for each in deltas if each.type == "text_delta")


def check_error(error: Any, kind: str) -> str:
    """The message of an error, which always has the same shape."""
    assert set(error.body) == {"type", "error", "request_id"}
    assert error.body["type"] == "error"
    assert error.body["error"]["type"] == kind
    assert error.body["request_id"] == error.response.headers["request-id"]
    assert error.body["request_id"] == error.response.headers["x-request-id"]
    return error.body["error"]["message"]


# ------------------------------------------------------------------------------ messages


def test_a_message_has_the_shape_and_sums_that_it_should(claude: Any):
    message = ask(claude)
    assert (message.type, message.role, message.model) == ("message", "assistant", "chat")
    (block,) = message.content
    assert block.type == "text"
    assert block.text.strip()
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.input_tokens > 0
    assert 0 < message.usage.output_tokens <= 12
    assert message._request_id


def test_the_length_is_what_was_asked_for(claude: Any):
    message = ask(claude, STORY, max_tokens=3)
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 3


def test_a_stop_sequence_is_named_and_cut_out(claude: Any):
    whole = ask(claude, max_tokens=20).content[0].text
    stop = next(word for word in reversed(whole.split()) if len(word) > 2)[:4]
    message = ask(claude, max_tokens=20, stop_sequences=["never said", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert stop not in message.content[0].text
    events = list(ask(claude, max_tokens=20, stop_sequences=[stop, "never said"], stream=True))
    (end,) = [each.delta for each in events if each.type == "message_delta"]
    assert (end.stop_reason, end.stop_sequence) == ("stop_sequence", stop)
    assert text_of(events) == message.content[0].text


def test_an_answer_that_ends_by_itself_names_no_stop_sequence(claude: Any):
    message = ask(claude, max_tokens=200, stop_sequences=["never said"])
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)


def test_only_the_likeliest_token_is_taken_with_top_k_one(claude: Any):
    greedy = ask(claude).content[0].text
    hot = {"temperature": 1.0, "top_k": 1}
    assert ask(claude, extra_body=hot).content[0].text == greedy


def test_the_system_prompt_may_come_in_blocks(claude: Any):
    block = {"type": "text", "text": "Be terse.", "cache_control": {"type": "ephemeral"}}
    told = [ask(claude, max_tokens=8, system=each) for each in ("Be terse.", [block])]
    assert told[0].content[0].text == told[1].content[0].text
    assert told[0].usage == told[1].usage


def test_turns_of_one_role_are_one_turn(claude: Any):
    parts = [{"type": "text", "text": "Hi."}, {"type": "text", "text": "Who are you?"}]
    together = count(claude, [{"role": "user", "content": parts}])
    apart = [{"role": "user", "content": [part]} for part in parts]
    assert count(claude, apart) == together


def test_thoughts_of_the_past_are_dropped(claude: Any):
    thoughts = [
        {"type": "thinking", "thinking": "They greet me.", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "ZGF0YQ=="},
    ]
    said = {"type": "text", "text": "Hello there."}
    plain = [*HELLO, {"role": "assistant", "content": [said]}, *HELLO]
    thoughtful = [*HELLO, {"role": "assistant", "content": [*thoughts, said]}, *HELLO]
    assert count(claude, thoughtful) == count(claude, plain)


def test_an_answer_goes_on_where_the_last_message_ends(claude: Any):
    begun = [*HELLO, {"role": "assistant", "content": "Hello"}]
    alone = count(claude, HELLO)
    message = ask(claude, begun)
    assert not message.content[0].text.startswith("Hello,")
    assert message.usage.input_tokens == count(claude, begun)
    # one token for the word that was given; a turn of its own would cost its frame, too
    assert message.usage.input_tokens == alone + 1


@pytest.mark.parametrize("beginning", ["Hello ", "", [{"type": "text", "text": "Hello\n"}]])
def test_a_beginning_that_cannot_be_continued_is_refused(claude: Any, beginning: Any):
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(claude, [*HELLO, {"role": "assistant", "content": beginning}])
    assert "the last message" in check_error(refused.value, "invalid_request_error")


def test_an_answer_keeps_to_a_schema(claude: Any):
    schema = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    body = GREEDY | {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    message = ask(claude, max_tokens=40, extra_body=body)
    assert json.loads(message.content[0].text)["colour"] in ("red", "green")


def test_fields_that_change_nothing_here_are_accepted(claude: Any):
    body = GREEDY | {
        "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": []},
    }
    assert ask(claude, extra_body=body).content[0].text == ask(claude).content[0].text


# ------------------------------------------------------------------------------ streams


def test_events_come_in_the_order_of_the_protocol(claude: Any):
    events = list(ask(claude, stream=True))
    kinds = [each.type for each in events]
    assert [kind for kind in kinds if kind != "content_block_delta"] == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, end = events[0].message, events[-2]
    assert (start.content, start.stop_reason) == ([], None)
    whole = ask(claude)
    assert text_of(events) == whole.content[0].text
    assert start.usage.input_tokens == whole.usage.input_tokens == end.usage.input_tokens
    assert end.usage.output_tokens == whole.usage.output_tokens
    assert end.delta.stop_reason == whole.stop_reason
    assert len(events) > 8


def test_the_bytes_of_a_stream_name_each_event_by_its_type(live: LiveServer):
    body = {"model": "chat", "messages": HELLO, "max_tokens": 3, "stream": True}
    with live.http.stream("POST", "/v1/messages", json=body) as response:
        *events, rest = response.read().decode().split("\n\n")
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["request-id"] == response.headers["x-request-id"]
    assert rest == ""
    for event in events:
        name, data = event.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_the_helper_of_the_sdk_puts_a_message_together(claude: Any):
    with claude.messages.stream(model="chat", max_tokens=12, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert message.content[0].text == text
    assert message.stop_reason
    assert message.usage.input_tokens > 0


def test_async_streams_run_at_the_same_time(live: LiveServer):
    async def one(client: Any, number: int) -> str:
        asked: Any = [{"role": "user", "content": f"Name fruit number {number}."}]
        async with client.messages.stream(model="chat", max_tokens=8, messages=asked) as stream:
            return (await stream.get_final_message()).content[0].text

    async def all_of_them() -> list[str]:
        async with anthropic.AsyncAnthropic(
            base_url=live.url, api_key=live.key, max_retries=0, _strict_response_validation=True
        ) as client:
            return await asyncio.gather(*[one(client, number) for number in range(5)])

    assert sum(map(bool, asyncio.run(all_of_them()))) >= 4


def test_an_async_client_gets_a_message(live: LiveServer):
    async def one() -> Any:
        async with anthropic.AsyncAnthropic(base_url=live.url, api_key=live.key) as client:
            return await client.messages.create(model="chat", max_tokens=4, messages=HELLO)

    assert asyncio.run(one()).usage.output_tokens > 0


def test_a_stream_ends_with_an_error_event_when_its_worker_dies(claude: Any, live: LiveServer):
    worker = worker_of(live, "chat")
    stream = ask(claude, STORY, max_tokens=2000, stream=True)
    events = iter(stream)
    next(events)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(anthropic.APIStatusError, match="worker died") as caught:
        for _ in events:
            pass
    assert caught.value.body["error"]["type"] == "api_error"
    assert caught.value.body["request_id"] == stream.response.headers["request-id"]
    assert ask(claude, max_tokens=1).content, "the next request waits for the new worker"


def test_a_stream_that_nobody_reads_stops_the_model(claude: Any, live: LiveServer):
    worker = worker_of(live, "chat")
    with ask(claude, STORY, max_tokens=2000, stream=True) as stream:
        next(iter(stream))
    wait_until_idle(worker.pid)
    assert worker_of(live, "chat").pid == worker.pid


# ------------------------------------------------------------------------------ tools


def check_weather(arguments: Any) -> None:
    """What the schema of the tool promises."""
    assert set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("c", "f")


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_forced_tool_is_called_with_good_arguments(claude: Any, choice: Any):
    message = ask(claude, ASK_WEATHER, tools=[WEATHER], tool_choice=choice, max_tokens=100)
    (call,) = [each for each in message.content if each.type == "tool_use"]
    assert message.stop_reason == "tool_use"
    assert (call.name, bool(call.id)) == ("get_weather", True)
    check_weather(call.input)


def test_a_streamed_call_comes_in_pieces_of_json(claude: Any):
    with claude.messages.stream(
        model="chat",
        max_tokens=100,
        messages=ASK_WEATHER,
        tools=[WEATHER],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    ) as stream:
        events = list(stream)
        message = stream.get_final_message()
    pieces = [
        each.delta.partial_json
        for each in events
        if each.type == "content_block_delta" and each.delta.type == "input_json_delta"
    ]
    assert len(pieces) > 1
    (call,) = message.content
    assert call.input == json.loads("".join(pieces))
    check_weather(call.input)
    assert message.stop_reason == "tool_use"


def test_a_call_that_was_cut_off_says_so(claude: Any):
    message = ask(claude, ASK_WEATHER, tools=[WEATHER], tool_choice={"type": "any"}, max_tokens=14)
    assert message.stop_reason == "max_tokens"
    assert [each.input for each in message.content if each.type == "tool_use"] == [{}]


def calls_and_results(*results: dict[str, Any]) -> Any:
    """A conversation in which a tool was called once for each result."""
    calls = [
        {"type": "tool_use", "id": f"toolu_{at}", "name": "get_weather", "input": {"city": "Paris"}}
        for at, _ in enumerate(results)
    ]
    told = [
        {"type": "tool_result", "tool_use_id": f"toolu_{at}"} | result
        for at, result in enumerate(results)
    ]
    said = {"type": "text", "text": "Checking."}
    return [
        *ASK_WEATHER,
        {"role": "assistant", "content": [said, *calls]},
        {"role": "user", "content": [*told, {"type": "text", "text": "And?"}]},
    ]


def test_results_of_several_calls_are_read(claude: Any):
    one = calls_and_results({"content": "21 degrees"})
    two = calls_and_results(
        {"content": "21 degrees"},
        {"content": [{"type": "text", "text": "no such city"}], "is_error": True},
    )
    counts = [count(claude, each, tools=[WEATHER]) for each in (ASK_WEATHER, one, two)]
    assert counts == sorted(set(counts))
    assert ask(claude, two, tools=[WEATHER]).usage.input_tokens == counts[2]


def test_a_result_of_no_call_is_refused(claude: Any):
    messages = calls_and_results({"content": "21", "tool_use_id": "toolu_9"})
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(claude, messages, tools=[WEATHER])
    message = check_error(refused.value, "invalid_request_error")
    assert message.startswith("messages[2].content[0].tool_use_id:")


def test_tools_of_anthropics_own_are_refused(claude: Any):
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(claude, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    assert "web_search_20250305" in check_error(refused.value, "invalid_request_error")


# ------------------------------------------------------------------------------ counting


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "Be terse."},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": {"type": "any"}},
        {"tools": [WEATHER], "tool_choice": {"type": "none"}},
    ],
    ids=["plain", "system", "tools", "forced", "unused"],
)
def test_a_count_is_the_usage_of_the_same_message(claude: Any, fields: Any):
    usage = ask(claude, max_tokens=1, **fields).usage
    assert count(claude, HELLO, **fields) == usage.input_tokens


def test_counting_is_not_charged(live: LiveServer):
    body = {"model": "chat", "messages": HELLO}
    response = live.http.post("/v1/messages/count_tokens", json=body)
    assert response.json()["input_tokens"] > 0
    assert response.headers["x-wherry-units"] == "input_tokens=0, output_tokens=0, rows=0"


def test_a_model_that_does_not_chat_is_refused(claude: Any):
    with pytest.raises(anthropic.BadRequestError) as refused:
        count(claude, HELLO, model="embeddings")
    assert "feature-extraction" in check_error(refused.value, "invalid_request_error")


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": 1.1}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1]"),
        ({"tools": [{"name": "f"}]}, "input_schema"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"system": 5}, "system"),
    ],
)
def test_a_wrong_field_is_named(claude: Any, fields: Any, named: str):
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(claude, extra_body=fields)
    assert named in check_error(refused.value, "invalid_request_error")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"model": "chat"}', b'{"messages": []}'])
def test_a_body_that_is_no_request_is_refused(live: LiveServer, path: str, body: bytes):
    headers = {"content-type": "application/json"}
    response = live.http.post(path, content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "A text."},
        },
        {"type": "search_result", "source": "s", "title": "t", "content": []},
        {"type": "tool_use", "id": "t", "name": "f", "input": {}},
        {"type": "video"},
    ],
    ids=["picture", "address", "file", "document", "search", "call", "unknown"],
)
def test_what_a_text_model_cannot_read_is_refused(claude: Any, block: Any):
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(claude, [{"role": "user", "content": [{"type": "text", "text": "See"}, block]}])
    assert check_error(refused.value, "invalid_request_error")
    nested = calls_and_results({"content": [block]})
    with pytest.raises(anthropic.BadRequestError):
        ask(claude, nested)


def test_an_unknown_model_is_not_found(claude: Any):
    for is_streamed in (False, True):
        with pytest.raises(anthropic.NotFoundError) as caught:
            ask(claude, model="nobody", stream=is_streamed)
        check_error(caught.value, "not_found_error")


def test_a_wrong_key_is_an_authentication_error(claude: Any):
    with pytest.raises(anthropic.AuthenticationError) as caught:
        ask(claude.with_options(api_key="sk-wrong"))
    check_error(caught.value, "authentication_error")
    with pytest.raises(anthropic.AuthenticationError) as caught:
        list(claude.with_options(api_key="sk-wrong").models.list())
    check_error(caught.value, "authentication_error")


def test_a_key_may_come_as_a_bearer(live: LiveServer):
    with make_client(live, api_key=None, auth_token=live.key) as client:
        assert ask(client, max_tokens=1).content


def test_a_prompt_that_is_too_long_is_refused_before_the_stream(claude: Any):
    long: Any = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(claude, long, stream=True)
    assert "maximum context length" in check_error(refused.value, "invalid_request_error")


def test_a_prompt_that_is_too_long_can_be_counted(claude: Any):
    long: Any = [{"role": "user", "content": "word " * 3000}]
    assert count(claude, long) > 3000
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        ask(claude, long)


def test_a_body_that_is_too_large_is_refused(claude: Any):
    large: Any = [{"role": "user", "content": " " * (64 << 20)}]
    with pytest.raises(anthropic.APIStatusError) as refused:
        count(claude, large)
    assert refused.value.status_code == 413
    check_error(refused.value, "request_too_large")


def test_a_key_over_its_limit_is_told_when_to_come_back(live: LiveServer):
    with Client(live.url, live.key) as admin:
        key = admin.keys.create("one a minute", limits=KeyLimits(requests_per_minute=1))
    with make_client(live, api_key=key.secret) as client:
        ask(client, max_tokens=1)
        with pytest.raises(anthropic.RateLimitError) as caught:
            ask(client, max_tokens=1)
    check_error(caught.value, "rate_limit_error")
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_a_path_that_does_not_exist_answers_in_the_same_shape(claude: Any):
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.get("/v1/messages/elsewhere", cast_to=object)
    check_error(caught.value, "not_found_error")
    with pytest.raises(anthropic.APIStatusError) as caught:
        claude.get("/v1/messages", cast_to=object)
    check_error(caught.value, "invalid_request_error")


# ------------------------------------------------------------------------------ models


def test_one_path_lists_models_for_the_clients_of_both(claude: Any, sdk: Any):
    assert {each.id for each in claude.models.list()} == {each.id for each in sdk.models.list()}
    found = claude.models.retrieve("chat")
    assert (found.id, found.type) == ("chat", "model")
    assert found.created_at.timestamp() == sdk.models.retrieve("chat").created


def test_models_come_in_pages_forwards_and_backwards(claude: Any):
    whole = [each.id for each in claude.models.list(limit=1000)]
    assert len(whole) >= 6
    assert [each.id for each in claude.models.list(limit=2)] == whole
    first = claude.models.list(limit=2)
    assert (first.has_more, first.first_id, first.last_id) == (True, whole[0], whole[1])
    last = claude.models.list(after_id=whole[-2])
    assert ([each.id for each in last.data], last.has_more) == ([whole[-1]], False)
    before = claude.models.list(before_id=whole[3], limit=2)
    assert ([each.id for each in before.data], before.has_more) == (whole[1:3], True)
    back = claude.models.list(before_id=whole[1], limit=5)
    assert ([each.id for each in back.data], back.has_more) == (whole[:1], False)


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 1001},
        {"after_id": "nobody"},
        {"after_id": "chat", "before_id": "iris"},
    ],
)
def test_a_page_that_cannot_be_is_refused(claude: Any, query: Any):
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.models.list(**query)
    check_error(refused.value, "invalid_request_error")


def test_an_unknown_model_is_not_in_the_list(claude: Any):
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.models.retrieve("nobody")
    check_error(caught.value, "not_found_error")


def test_what_is_openais_is_refused_in_anthropics_shape_and_told_why(claude: Any):
    upload = partial(claude.post, "/v1/uploads/upload_x/parts", cast_to=object)
    for ask in (claude.beta.files.list, partial(claude.beta.files.delete, "file_x"), upload):
        with pytest.raises(anthropic.NotFoundError) as caught:
            ask()
        check_error(caught.value, "not_found_error")
        assert "/v1/batches" in str(caught.value)
