"""Another OpenAI-compatible server as a deployment like any other: here Wherry itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tests.conftest import LiveServer

from wherry import Client, errors
from wherry.client.schema import DeploymentSpec

QUESTION = [{"role": "user", "content": "Name three rivers."}]
BEGINNING = {"role": "assistant", "content": "The Rhine"}


@pytest.fixture(scope="module")
def relay(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A deployment that asks the deployment `chat` of the same server over HTTP."""
    folder = tmp_path_factory.mktemp("upstream")
    (folder / "wherry.toml").write_text(
        'task = "text-generation"\nruntime = "upstream"\n'
        f'[options]\nbase_url = "{live.url}/v1"\nmodel = "chat"\n'
    )
    with Client(live.url, live.key) as client:
        key = client.keys.create("for the relay", deployments=["chat"])
        client.models.import_model(Path(folder), name="relay")
        client.deployments.apply(
            [DeploymentSpec(name="relay", model="relay", secrets={"api_key": key.secret})]
        )
        client.deployments.wait("relay", timeout=60)
        yield "relay"
        assert key.secret not in str(client.deployments.get("relay"))
        client.deployments.remove("relay")


def ask(sdk: openai.OpenAI, model: str, **more):
    return sdk.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=12, **more
    )


def test_a_relayed_answer_is_the_upstreams_answer_and_is_metered(sdk: openai.OpenAI, relay: str):
    direct, relayed = ask(sdk, "chat"), ask(sdk, relay)
    assert relayed.choices[0].message.content == direct.choices[0].message.content
    assert relayed.model == relay
    assert relayed.usage is not None
    assert direct.usage is not None
    assert relayed.usage.completion_tokens == direct.usage.completion_tokens
    assert relayed.usage.prompt_tokens == direct.usage.prompt_tokens


def test_a_relayed_stream_is_a_stream(sdk: openai.OpenAI, relay: str):
    chunks = list(ask(sdk, relay, stream=True))
    text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert text == ask(sdk, "chat").choices[0].message.content
    assert len(chunks) > 4


def test_what_the_upstream_refuses_is_refused_in_words(sdk: openai.OpenAI, relay: str):
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(
            model=relay,
            messages=[{"role": "user", "content": "word " * 20_000}],
            max_tokens=5,
        )
    assert "maximum context length" in str(refused.value)


def test_an_upstream_that_is_gone_is_a_clear_error(live: LiveServer, tmp_path: Path):
    (tmp_path / "wherry.toml").write_text(
        'task = "text-generation"\nruntime = "upstream"\n'
        '[options]\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "chat"\n'
    )
    with Client(live.url, live.key, max_retries=0) as client:
        client.models.import_model(tmp_path, name="gone")
        client.deployments.deploy("gone")
        with pytest.raises(errors.UpstreamFailed):
            client.chat("gone", "hello", max_tokens=4)
        client.deployments.remove("gone")


def test_anthropics_clients_learn_the_length_of_a_relayed_prompt_at_the_end(
    live: LiveServer, relay: str
):
    body = {"model": relay, "messages": QUESTION, "max_tokens": 4, "temperature": 0}
    asked = live.http.post("/v1/messages", json=body).json()
    events = [
        json.loads(line.removeprefix("data: "))
        for line in live.http.post("/v1/messages", json={**body, "stream": True}).text.splitlines()
        if line.startswith("data: ")
    ]
    assert asked["usage"]["input_tokens"] > 0
    assert events[0]["message"]["usage"]["input_tokens"] == 0
    assert events[-2]["usage"] == asked["usage"]


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/messages"])
def test_what_a_relay_cannot_do_for_anthropics_clients_is_refused(
    live: LiveServer, relay: str, path: str
):
    messages = QUESTION if path.endswith("count_tokens") else [*QUESTION, BEGINNING]
    response = live.http.post(path, json={"model": relay, "messages": messages, "max_tokens": 4})
    assert response.status_code == 400
    assert "this model cannot" in response.json()["error"]["message"]
