"""Message batches by the official Anthropic SDK: a real model answers, and OpenAI's clients see them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import openai
import pytest
from tests.conftest import LiveServer
from tests.wire.test_anthropic import check_error, make_client

from wherry import Client
from wherry.accounts.keys import Keys, Principal
from wherry.accounts.teams import Teams
from wherry.client.schema import KeyRequest
from wherry.storage.database import Database

anthropic = pytest.importorskip("anthropic", reason="pip install 'anthropic>=0.40'")

WAIT_SECONDS = 90.0
PATH = "/v1/messages/batches"
HELLO: Any = [{"role": "user", "content": "Say hello in three words."}]


@pytest.fixture
def claude(live: LiveServer) -> Iterator[Any]:
    with make_client(live) as client:
        yield client


@pytest.fixture
def stranger(live: LiveServer) -> Iterator[Any]:
    """A client of another team."""
    database = Database.for_folder(live.data)
    team = Teams(database).ensure_team("other-messengers")
    grantor = Principal("key_none", team.id, team.name, frozenset({"admin", "invoke"}))
    request = KeyRequest(name="stranger", scopes=["invoke"])
    key = Keys.for_folder(database, live.data).create_key(team.id, request, grantor)
    database.close()
    with make_client(live, api_key=key.secret) as client:
        yield client


def item(name: str, **params: Any) -> Any:
    return {
        "custom_id": name,
        "params": {"model": "chat", "max_tokens": 6, "messages": HELLO} | params,
    }


def wait(claude: Any, batch_id: str) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        batch = claude.messages.batches.retrieve(batch_id)
        if batch.processing_status == "ended":
            return batch
        time.sleep(0.1)
    raise AssertionError(f"the batch did not end: {batch}")


def results_of(claude: Any, batch_id: str) -> dict[str, Any]:
    return {each.custom_id: each.result for each in claude.messages.batches.results(batch_id)}


def counts_of(batch: Any) -> tuple[int, ...]:
    counts = batch.request_counts
    return (
        *(counts.processing, counts.succeeded, counts.errored),
        *(counts.canceled, counts.expired),
    )


def test_messages_are_answered_and_what_is_refused_says_why(claude: Any):
    made = claude.messages.batches.create(
        requests=[item("good"), item("unknown", model="nobody"), item("streamed", stream=True)]
    )
    assert (made.type, made.processing_status, counts_of(made)) == (
        *("message_batch", "in_progress"),
        (3, 0, 0, 0, 0),
    )
    assert made.ended_at is made.cancel_initiated_at is made.results_url is None
    assert (made.expires_at - made.created_at).total_seconds() == 86_400
    ended = wait(claude, made.id)
    assert counts_of(ended) == (0, 1, 2, 0, 0)
    assert ended.ended_at >= ended.created_at
    results = results_of(claude, made.id)
    message = results["good"].message
    assert (results["good"].type, message.type, message.model) == ("succeeded", "message", "chat")
    alone = claude.messages.create(**item("good")["params"])
    assert message.usage.input_tokens == alone.usage.input_tokens
    for name, kind in (("unknown", "not_found_error"), ("streamed", "invalid_request_error")):
        assert (results[name].type, results[name].error.type) == ("errored", "error")
        assert results[name].error.error.type == kind
        assert results[name].error.error.message


def test_a_batch_is_one_of_openais_clients_too(claude: Any, sdk: openai.OpenAI):
    made = claude.messages.batches.create(requests=[item("one")])
    theirs = sdk.batches.retrieve(made.id)
    assert (theirs.endpoint, theirs.completion_window) == ("/v1/messages", "24h")
    assert made.id in [each.id for each in sdk.batches.list(limit=100)]
    wait(claude, made.id)
    line = b'{"custom_id":"a","method":"POST","url":"/predict/iris","body":{"row":[1,2,3,4]}}'
    file = sdk.files.create(file=("in.jsonl", line), purpose="batch")
    other = sdk.batches.create(
        input_file_id=file.id,
        endpoint="/predict/iris",  # type: ignore[arg-type]
        completion_window="24h",
    )
    assert other.id not in [each.id for each in claude.messages.batches.list(limit=1000)]
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.batches.retrieve(other.id)
    assert "none of messages" in check_error(caught.value, "not_found_error")


def test_the_file_that_carried_the_requests_is_not_left_over(claude: Any, sdk: openai.OpenAI):
    before = {each.id for each in sdk.files.list(purpose="batch")}
    made = claude.messages.batches.create(requests=[item("one")])
    assert {each.id for each in sdk.files.list(purpose="batch")} == before
    assert counts_of(wait(claude, made.id)) == (0, 1, 0, 0, 0)


def test_a_canceled_batch_keeps_what_was_answered(claude: Any):
    long = item("x", max_tokens=400, messages=[{"role": "user", "content": "Tell a long story."}])
    items = [{**long, "custom_id": f"r{number}"} for number in range(40)]
    made = claude.messages.batches.create(requests=items)
    stopped = claude.messages.batches.cancel(made.id)
    assert stopped.processing_status in ("canceling", "ended")
    assert stopped.cancel_initiated_at is not None
    ended = wait(claude, made.id)
    processing, succeeded, errored, canceled, expired = counts_of(ended)
    assert (processing, errored, expired, succeeded + canceled) == (0, 0, 0, 40)
    kinds = [each.type for each in results_of(claude, made.id).values()]
    assert (kinds.count("canceled"), kinds.count("succeeded")) == (canceled, succeeded)
    assert canceled
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.batches.cancel(made.id)
    check_error(caught.value, "invalid_request_error")


def test_batches_come_in_pages_forwards_and_backwards(claude: Any):
    made = [claude.messages.batches.create(requests=[item("one")]).id for _ in range(4)]
    newest = made[::-1]
    page = claude.messages.batches.list(limit=2)
    assert [each.id for each in page.data] == newest[:2]
    assert (page.has_more, page.first_id, page.last_id) == (True, newest[0], newest[1])
    assert [each.id for each in claude.messages.batches.list(limit=2)][:4] == newest
    after = claude.messages.batches.list(after_id=newest[0], limit=1)
    assert ([each.id for each in after.data], after.has_more) == ([newest[1]], True)
    before = claude.messages.batches.list(before_id=newest[3], limit=2)
    assert ([each.id for each in before.data], before.has_more) == (newest[1:3], True)
    first = claude.messages.batches.list(before_id=newest[1], limit=2)
    assert ([each.id for each in first.data], first.has_more) == (newest[:1], False)
    for each in made:
        wait(claude, each)


def test_a_deleted_batch_is_gone_with_its_results(claude: Any, sdk: openai.OpenAI):
    made = claude.messages.batches.create(requests=[item("one")])
    wait(claude, made.id)
    output = sdk.batches.retrieve(made.id).output_file_id
    assert output is not None
    deleted = claude.messages.batches.delete(made.id)
    assert (deleted.id, deleted.type) == (made.id, "message_batch_deleted")
    for gone in (claude.messages.batches.retrieve, claude.messages.batches.delete):
        with pytest.raises(anthropic.NotFoundError):
            gone(made.id)
    with pytest.raises(openai.NotFoundError):
        sdk.files.content(output)


def test_a_batch_that_runs_has_no_results_and_is_not_deleted(claude: Any, live: LiveServer):
    slow = item("x", max_tokens=400, messages=[{"role": "user", "content": "Tell a long story."}])
    items = [{**slow, "custom_id": f"r{number}"} for number in range(40)]
    made = claude.messages.batches.create(requests=items)
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.batches.delete(made.id)
    assert "cancel it first" in check_error(caught.value, "invalid_request_error")
    early = live.http.get(f"{PATH}/{made.id}/results")
    assert (early.status_code, early.json()["error"]["type"]) == (404, "not_found_error")
    claude.messages.batches.cancel(made.id)
    wait(claude, made.id)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"requests": []}, "requests"),
        ({"requests": [item("a"), item("a")]}, "requests[1].custom_id"),
        ({"requests": [item("a b")]}, "requests[0].custom_id"),
        ({"requests": [item("a" * 65)]}, "requests[0].custom_id"),
        ({"requests": [{"custom_id": "a", "params": 5}]}, "requests[0].params"),
        ({"requests": [{"custom_id": "a"}]}, "params"),
        ({"requests": 1}, "requests"),
        ({}, "requests"),
    ],
)
def test_a_wrong_batch_is_refused_and_its_field_is_named(live: LiveServer, body: Any, named: str):
    before = live.http.get(PATH).json()["data"]
    answer = live.http.post(PATH, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert named in answer.json()["error"]["message"]
    assert live.http.get(PATH).json()["data"] == before


def test_too_many_requests_and_too_large_a_body_are_refused(live: LiveServer):
    many = [{"custom_id": str(number), "params": {}} for number in range(50_001)]
    answer = live.http.post(PATH, json={"requests": many})
    assert (answer.status_code, "50000 are taken" in answer.text) == (400, True)
    large = live.http.post(
        PATH, content=b" " * (33 << 20), headers={"content-type": "application/json"}
    )
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "query",
    [{"limit": 0}, {"limit": 1001}, {"after_id": "x"}, {"before_id": "%"}],
)
def test_a_page_that_cannot_be_is_refused(claude: Any, query: Any):
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.batches.list(**query)
    check_error(refused.value, "invalid_request_error")


def test_another_teams_batch_is_not_there(claude: Any, stranger: Any):
    made = claude.messages.batches.create(requests=[item("mine")])
    batches = stranger.messages.batches
    assert batches.list().data == []
    for ask in (batches.retrieve, batches.cancel, batches.delete):
        with pytest.raises(anthropic.NotFoundError) as caught:
            ask(made.id)
        check_error(caught.value, "not_found_error")
    wait(claude, made.id)


def test_a_key_that_may_not_call_models_makes_no_batch(live: LiveServer):
    with Client(live.url, live.key) as admin:
        key = admin.keys.create("publisher", scopes=["publish"])
    with make_client(live, api_key=key.secret) as client:
        create = partial(client.messages.batches.create, requests=[item("one")])
        for ask in (create, client.messages.batches.list):
            with pytest.raises(anthropic.PermissionDeniedError) as caught:
                ask()
            check_error(caught.value, "permission_error")
