"""The official OpenAI SDK, with strict checks of every answer, against `/v1/responses`."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel
from tests.conftest import LiveServer
from tests.wire.probe import wait_until_idle, worker_of

from wherry.accounts.keys import KeyRequest, Keys, Principal
from wherry.accounts.teams import Teams
from wherry.storage.database import Database

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
STORY = "Write a very long story about a river."
PATIENCE_SECONDS = 40.0


class Boat(BaseModel):
    """What the structured answers must be."""

    name: str
    seats: int


def ask(sdk: openai.OpenAI, given: Any = "Say hello.", **fields: Any) -> Any:
    """A greedy, short answer of `chat`, unless the fields say otherwise."""
    fields = {"model": "chat", "max_output_tokens": 12, "temperature": 0, **fields}
    return sdk.responses.create(input=given, **fields)


def wait_for_end(sdk: openai.OpenAI, response_id: str) -> Any:
    """A background response, once it has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        found = sdk.responses.retrieve(response_id)
        if found.status not in ("queued", "in_progress"):
            return found
        time.sleep(0.1)
    raise AssertionError("the response did not end")


def key_of(live: LiveServer, team_name: str, **fields: Any) -> str:
    """A new key of a team that may be new, too."""
    database = Database.for_folder(live.data)
    team = Teams(database).ensure_team(team_name)
    grantor = Principal("key_none", team.id, team.name, frozenset({"admin", "invoke"}))
    request = KeyRequest(name="other", scopes=["invoke"], **fields)
    key = Keys.for_folder(database, live.data).create_key(team.id, request, grantor)
    database.close()
    return key.secret


@pytest.fixture
def stored(sdk: openai.OpenAI) -> Any:
    """A response that is kept."""
    return ask(sdk)


# ------------------------------------------------------------------------------ answers


def test_an_answer_is_kept_and_read_again_as_it_was(sdk: openai.OpenAI, stored: Any):
    assert stored.output_text
    assert stored.usage.output_tokens <= 12
    assert sdk.responses.retrieve(stored.id) == stored


def test_an_answer_that_shall_not_be_kept_is_not(sdk: openai.OpenAI):
    answer = ask(sdk, store=False)
    assert answer.output_text
    assert answer.store is False
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(answer.id)
    follows = ask(sdk, store=False, previous_response_id=ask(sdk).id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(follows.id)


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_stream_says_the_same_as_the_answer_in_one_piece(sdk: openai.OpenAI, is_stored: bool):
    events = list(ask(sdk, stream=True, store=is_stored))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(each.delta for each in events if each.type == "response.output_text.delta")
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == text == ask(sdk, store=False).output_text
    if is_stored:
        assert sdk.responses.retrieve(last.response.id) == last.response


def test_the_sdks_own_stream_puts_the_answer_together(sdk: openai.OpenAI):
    with sdk.responses.stream(model="chat", input="Say hi.", temperature=0) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_response().output_text
    assert "response.output_text.delta" in kinds


def test_an_answer_that_is_cut_off_says_so(sdk: openai.OpenAI):
    answer = ask(sdk, STORY, max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 3


def test_log_probabilities_are_told(sdk: openai.OpenAI):
    part = ask(sdk, top_logprobs=2, max_output_tokens=2).output[0].content[0]
    assert part.logprobs
    assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in part.logprobs)


def test_a_schema_holds(sdk: openai.OpenAI):
    parsed = sdk.responses.parse(
        model="chat", input="Describe a boat.", text_format=Boat, max_output_tokens=100
    ).output_parsed
    assert isinstance(parsed, Boat)
    given = {"format": {"type": "json_object"}}
    text = ask(sdk, "A boat as JSON", text=given).output_text
    assert text.lstrip().startswith("{"), "so small a model does not come to an end by itself"


# ------------------------------------------------------------------------------ conversations


def test_a_conversation_goes_on_as_if_all_of_it_had_been_sent(sdk: openai.OpenAI):
    first = ask(sdk, "My name is Alice.", instructions="Answer in one sentence.")
    second = ask(sdk, "What is my name?", previous_response_id=first.id)
    third = ask(sdk, "And again?", previous_response_id=second.id)
    turns: list[Any] = [{"role": "user", "content": "My name is Alice."}, *first.output]
    turns += [{"role": "user", "content": "What is my name?"}, *second.output]
    turns += [{"role": "user", "content": "And again?"}]
    whole = ask(sdk, [each if isinstance(each, dict) else each.model_dump() for each in turns])
    assert third.previous_response_id == second.id
    assert whole.usage.input_tokens == third.usage.input_tokens > second.usage.input_tokens
    assert whole.output_text == third.output_text


def test_a_streamed_answer_can_be_gone_on_from_at_once(sdk: openai.OpenAI):
    last = list(ask(sdk, stream=True))[-1]
    assert ask(sdk, "Go on", previous_response_id=last.response.id).output_text


def test_tools_are_called_and_their_results_read(sdk: openai.OpenAI):
    asked = ask(
        sdk, "Weather in Paris?", tools=[WEATHER], tool_choice="required", max_output_tokens=80
    )
    (call,) = asked.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert set(json.loads(call.arguments)) == {"city"}
    told = {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
    answer = ask(sdk, [told], previous_response_id=asked.id, tools=[WEATHER], tool_choice="none")
    assert answer.output_text


def test_a_streamed_call_can_be_put_together(sdk: openai.OpenAI):
    events = list(
        ask(
            sdk,
            "Weather in Paris?",
            tools=[WEATHER],
            tool_choice={"type": "function", "name": "get_weather"},
            max_output_tokens=80,
            stream=True,
        )
    )
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    (done,) = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert "".join(pieces) == done.arguments == events[-1].response.output[-1].arguments


def test_what_was_asked_is_listed_by_pages(sdk: openai.OpenAI):
    given = [{"role": "user", "content": f"number {n}"} for n in range(5)]
    answer = ask(sdk, given)
    newest = sdk.responses.input_items.list(answer.id, limit=2)
    assert [item.content[0].text for item in newest.data] == ["number 4", "number 3"]
    assert newest.has_more
    texts = [
        item.content[0].text  # type: ignore[union-attr]
        for item in sdk.responses.input_items.list(answer.id, limit=2, order="asc")
    ]
    assert texts == [f"number {n}" for n in range(5)]
    for wrong in ({"limit": 0}, {"limit": 101}, {"after": "nobody"}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError):
            sdk.responses.input_items.list(answer.id, **wrong)  # type: ignore[arg-type]


def test_a_prompt_is_counted_as_its_answer_counts_it(sdk: openai.OpenAI):
    fields: Any = {"model": "chat", "input": "Say hello.", "instructions": "Be brief."}
    counted = sdk.responses.input_tokens.count(**fields)
    answered = sdk.responses.create(**fields, max_output_tokens=2)
    assert answered.usage is not None
    assert counted.input_tokens == answered.usage.input_tokens > 0
    with pytest.raises(openai.BadRequestError, match="earlier response"):
        sdk.responses.input_tokens.count(**fields, previous_response_id=answered.id)


def test_what_is_deleted_is_gone(sdk: openai.OpenAI, live: LiveServer):
    secret = f"secret {time.time_ns()}"
    answer = ask(sdk, secret)
    follows = ask(sdk, "Go on", previous_response_id=answer.id)
    assert _is_on_disk(live, secret)
    sdk.responses.delete(answer.id)
    assert not _is_on_disk(live, secret)
    for attempt in (
        lambda: sdk.responses.retrieve(answer.id),
        lambda: sdk.responses.delete(answer.id),
        lambda: sdk.responses.input_items.list(answer.id),
        lambda: ask(sdk, previous_response_id=answer.id),
        lambda: ask(sdk, previous_response_id=follows.id),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()


def _is_on_disk(live: LiveServer, secret: str) -> bool:
    folder = live.data / "responses"
    return any(secret.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------ background


def test_a_background_response_ends_though_nobody_waits(sdk: openai.OpenAI):
    begun = ask(sdk, background=True)
    assert begun.status == "in_progress"
    assert begun.output == []
    ended = wait_for_end(sdk, begun.id)
    assert ended.background
    assert ended.output_text == ask(sdk).output_text
    assert ask(sdk, "Go on", previous_response_id=begun.id).output_text


def test_a_background_response_outlives_its_reader_and_is_read_from_where_it_left(
    sdk: openai.OpenAI,
):
    stream = ask(sdk, STORY, background=True, stream=True, max_output_tokens=40)
    first = [event for event, _ in zip(stream, range(3), strict=False)]
    stream.close()
    response_id = first[0].response.id
    rest = list(sdk.responses.retrieve(response_id, stream=True, starting_after=2))
    assert [event.sequence_number for event in rest] == list(range(3, 3 + len(rest)))
    assert rest[-1].type in ("response.completed", "response.incomplete")
    ended = wait_for_end(sdk, response_id)
    assert ended == rest[-1].response
    again = list(sdk.responses.retrieve(response_id, stream=True))
    assert [event.sequence_number for event in again] == list(range(len(again)))
    assert again[3:] == rest


def test_a_background_response_can_be_cancelled(sdk: openai.OpenAI, live: LiveServer):
    begun = ask(sdk, STORY, background=True, max_output_tokens=4000)
    with pytest.raises(openai.BadRequestError, match="in progress"):
        ask(sdk, previous_response_id=begun.id)
    cancelled = sdk.responses.cancel(begun.id)
    assert cancelled.status == "cancelled"
    assert sdk.responses.retrieve(begun.id) == cancelled
    assert sdk.responses.cancel(begun.id) == cancelled
    wait_until_idle(worker_of(live, "chat").pid)


def test_a_background_response_that_is_deleted_stops(sdk: openai.OpenAI, live: LiveServer):
    begun = ask(sdk, STORY, background=True, max_output_tokens=4000)
    sdk.responses.delete(begun.id)
    wait_until_idle(worker_of(live, "chat").pid)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(begun.id)


def test_what_did_not_run_in_the_background_cannot_be_cancelled_or_streamed_again(
    sdk: openai.OpenAI, stored: Any
):
    with pytest.raises(openai.BadRequestError, match="background"):
        sdk.responses.cancel(stored.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        sdk.responses.retrieve(stored.id, stream=True)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(sdk, background=True, store=False)
    assert caught.value.param == "background"


def test_a_background_response_fails_with_its_worker(sdk: openai.OpenAI, live: LiveServer):
    begun = ask(sdk, STORY, background=True, max_output_tokens=4000, stream=True)
    response_id = next(iter(begun)).response.id
    os.kill(worker_of(live, "chat").pid, signal.SIGKILL)
    events = list(begun)
    assert events[-1].type == "response.failed"
    failed = sdk.responses.retrieve(response_id)
    assert failed.status == "failed"
    assert failed.error.code == "server_error"
    assert "worker died" in failed.error.message
    assert failed == events[-1].response


def test_a_stream_ends_with_an_error_when_its_worker_dies(sdk: openai.OpenAI, live: LiveServer):
    for is_stored in (True, False):
        events = iter(ask(sdk, STORY, max_output_tokens=4000, stream=True, store=is_stored))
        seen = [next(events) for _ in range(6)]
        os.kill(worker_of(live, "chat").pid, signal.SIGKILL)
        seen += list(events)
        assert seen[-1].type == "error"
        assert seen[-1].code == "worker_lost"
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        ask(sdk, max_output_tokens=1)


def test_a_stream_that_nobody_reads_stops_and_is_not_kept(sdk: openai.OpenAI, live: LiveServer):
    events = ask(sdk, STORY, max_output_tokens=4000, stream=True)
    response_id = next(iter(events)).response.id
    events.close()
    wait_until_idle(worker_of(live, "chat").pid)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(response_id)


# ------------------------------------------------------------------------------ whose it is


def test_what_another_team_keeps_is_not_there(sdk: openai.OpenAI, live: LiveServer, stored: Any):
    stranger = sdk.with_options(api_key=key_of(live, "strangers"))
    for attempt in (
        lambda: stranger.responses.retrieve(stored.id),
        lambda: stranger.responses.delete(stored.id),
        lambda: stranger.responses.cancel(stored.id),
        lambda: stranger.responses.input_items.list(stored.id),
    ):
        with pytest.raises(openai.NotFoundError, match=stored.id):
            attempt()
    assert sdk.responses.retrieve(stored.id) == stored


def test_a_key_reads_only_what_a_deployment_that_it_may_call_has_answered(
    sdk: openai.OpenAI, live: LiveServer, stored: Any
):
    other = sdk.with_options(api_key=key_of(live, "default", deployments=["embeddings"]))
    with pytest.raises(openai.NotFoundError):
        other.responses.retrieve(stored.id)
    chatty = sdk.with_options(api_key=key_of(live, "default", deployments=["chat"]))
    assert chatty.responses.retrieve(stored.id) == stored


# ------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"given": []}, "input"),
        ({"given": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"given": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"temperature": 9}, "temperature"),
        ({"max_output_tokens": -5}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "function", "name": "nobody"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"extra_body": {"conversation": "conv_1"}}, "conversation"),
        ({"extra_body": {"store": "yes"}}, "store"),
        ({"extra_body": {"model": None}}, "model"),
        ({"model": "iris"}, "model"),
    ],
)
@pytest.mark.parametrize(
    "way", [{}, {"store": False}, {"stream": True}, {"background": True}], ids=str
)
def test_a_wrong_field_is_named(
    sdk: openai.OpenAI, way: dict[str, Any], fields: dict[str, Any], param: str
):
    fields = dict(fields)
    given = fields.pop("given", "Hi")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(sdk, given, **{**way, **fields})
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.param == param


def test_an_unknown_model_and_an_unknown_response_are_not_found(sdk: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(sdk, model="nobody")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        ask(sdk, previous_response_id="resp_nobody")
    assert caught.value.param == "previous_response_id"


def test_too_long_a_conversation_says_how_long_it_may_be(sdk: openai.OpenAI):
    for way in ({}, {"store": False}, {"stream": True}):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(sdk, "word " * 60_000, **way)
        assert caught.value.code == "context_length_exceeded"
    begun = ask(sdk, "word " * 60_000, background=True)
    failed = wait_for_end(sdk, begun.id)
    assert (failed.status, failed.error.code) == ("failed", "invalid_prompt")
