"""The real ollama client, sync and async, against the `/api` door."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from tests.conftest import LiveServer
from tests.wire.probe import wait_until_idle, worker_of

from wherry import Client

ollama = pytest.importorskip("ollama", reason="pip install ollama")

HELLO: Any = [{"role": "user", "content": "Say hello in three words."}]
GREEDY: Any = {"temperature": 0, "num_predict": 12}
ENDLESS: Any = {"temperature": 0, "num_predict": 400}


class Boat(BaseModel):
    """What the structured answers must be."""

    name: str
    seats: int


def get_weather(city: str) -> str:
    """Weather of a city.

    Args:
        city: Its name.
    """
    return f"It rains in {city}."


@pytest.fixture
def client(live: LiveServer) -> Iterator[Any]:
    made = ollama.Client(host=live.url, headers={"authorization": f"Bearer {live.key}"})
    yield made
    made._client.close()


def check_end(answer: Any, *, is_stream: bool) -> None:
    """A finished answer says why it ended, what it cost, and how long it took."""
    assert answer.done is True
    assert answer.done_reason in ("stop", "length")
    assert answer.prompt_eval_count > 0
    assert answer.eval_count > 0
    assert 0 < answer.eval_duration <= answer.total_duration
    assert 0 <= answer.load_duration < answer.total_duration
    assert (answer.prompt_eval_duration is not None) == is_stream


# ------------------------------------------------------------------------------ chat


def test_a_chat_gets_the_answer_that_openais_door_gives(client: Any, live: LiveServer):
    answer = client.chat("chat", HELLO, options=GREEDY)
    body = {"model": "chat", "messages": HELLO, "temperature": 0, "max_tokens": 12}
    theirs = live.http.post("/v1/chat/completions", json=body).json()
    assert answer.model == "chat"
    assert answer.message.role == "assistant"
    assert answer.message.content == theirs["choices"][0]["message"]["content"]
    assert answer.prompt_eval_count == theirs["usage"]["prompt_tokens"]
    assert answer.eval_count == theirs["usage"]["completion_tokens"]
    check_end(answer, is_stream=False)


def test_a_stream_is_the_answer_in_pieces(client: Any):
    whole = client.chat("chat", HELLO, options=GREEDY)
    parts = list(client.chat("chat", HELLO, options=GREEDY, stream=True))
    assert len(parts) > 3
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    check_end(parts[-1], is_stream=True)
    assert parts[-1].eval_count == whole.eval_count
    assert parts[-1].done_reason == whole.done_reason


def test_streams_are_on_by_default_and_lines_of_json(live: LiveServer):
    body = {"model": "chat:latest", "messages": HELLO, "options": GREEDY}
    answer = live.http.post("/api/chat", json=body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[-1]["done"] is True
    assert {line["model"] for line in lines} == {"chat:latest"}
    assert all(line["created_at"].endswith("Z") for line in lines)


def test_what_curl_sends_is_understood(live: LiveServer):
    """Ollama's own examples send JSON under the media type of forms."""
    answer = live.http.post(
        "/api/generate",
        content=json.dumps({"model": "chat", "prompt": "Hi", "stream": False, "options": GREEDY}),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 200
    assert answer.json()["done"] is True


def test_the_async_client_streams_several_at_once(live: LiveServer):
    async def ask(client: Any) -> str:
        stream = await client.chat("chat", HELLO, options=GREEDY, stream=True)
        return "".join([part.message.content async for part in stream])

    async def ask_all() -> list[str]:
        headers = {"authorization": f"Bearer {live.key}"}
        client = ollama.AsyncClient(host=live.url, headers=headers)
        try:
            return await asyncio.gather(*[ask(client) for _ in range(4)])
        finally:
            await client._client.aclose()

    answers = asyncio.run(ask_all())
    assert len(set(answers)) == 1
    assert answers[0]


def test_options_are_honoured(client: Any):
    story = [{"role": "user", "content": "Write a story about a river."}]
    short = client.chat("chat", story, options={"num_predict": 3, "temperature": 0})
    assert (short.eval_count, short.done_reason) == (3, "length")
    stopped = client.chat("chat", story, options={**GREEDY, "num_predict": 60, "stop": ["the"]})
    assert "the" not in stopped.message.content.split()
    seeded = {"seed": 7, "temperature": 1.5, "top_p": 0.95, "num_predict": 12}
    once, again = (client.chat("chat", story, options=seeded).message.content for _ in range(2))
    other = client.chat("chat", story, options={**seeded, "seed": 8}).message.content
    assert once == again != other
    one_choice = {"temperature": 1.5, "top_k": 1, "num_predict": 12, "seed": 3}
    greedy = client.chat("chat", story, options={"temperature": 0, "num_predict": 12})
    assert client.chat("chat", story, options=one_choice).message.content == greedy.message.content


def test_options_that_mean_nothing_here_are_left_alone(client: Any):
    options = {**GREEDY, "num_ctx": 2048, "num_gpu": 99, "mirostat": 0, "repeat_penalty": 1.1}
    answer = client.chat("chat", HELLO, options=options, keep_alive="5m", think=False)
    assert answer.done


def test_a_schema_is_held(client: Any):
    ask = [{"role": "user", "content": "Describe a small boat as JSON."}]
    answer = client.chat(
        "chat", ask, format=Boat.model_json_schema(), options={**GREEDY, "num_predict": 80}
    )
    Boat.model_validate_json(answer.message.content)
    free = client.generate(
        "chat",
        "Describe a small boat as JSON.",
        format="json",
        options={**GREEDY, "num_predict": 200},
    )
    assert free.response.lstrip().startswith("{")  # so small a model may not come to the end


class CallingModel(BaseHTTPRequestHandler):
    """An OpenAI-compatible server whose model calls a tool; one of our size does not by itself."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        (tool,) = asked["tools"]
        called = {"name": tool["function"]["name"], "arguments": ""}
        first = {"index": 0, "id": "call_9", "type": "function", "function": called}
        pieces = [
            {"index": 0, "function": {"arguments": each}} for each in ('{"city": "Pa', 'ris"}')
        ]
        deltas = [{"role": "assistant", "content": "Let me see."}]
        deltas += [{"tool_calls": [each]} for each in (first, *pieces)]
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
        chunks: list[Any] = [{"id": "1", "choices": [choice]} for choice in choices]
        usage = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
        chunks.append({"id": "1", "choices": [], "usage": usage})
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        body = "".join([*lines, "data: [DONE]\n\n"]).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def calling(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A deployment of that model."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), CallingModel)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    folder = tmp_path_factory.mktemp("calling")
    (folder / "wherry.toml").write_text(
        'task = "text-generation"\nruntime = "upstream"\n[options]\nmodel = "any"\n'
        f'base_url = "http://127.0.0.1:{server.server_port}/v1"\n'
    )
    with Client(live.url, live.key) as wherry:
        wherry.models.import_model(folder, name="calling")
        wherry.deployments.deploy("calling")
        wherry.deployments.wait("calling", timeout=60)
        yield "calling"
        wherry.deployments.remove("calling")
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_tool_is_called_whole_with_arguments_as_an_object(client: Any, calling: str):
    ask = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = client.chat(calling, ask, tools=[get_weather])
    parts = list(client.chat(calling, ask, tools=[get_weather], stream=True))
    streamed = [call for part in parts for call in part.message.tool_calls or []]
    for (call,) in (streamed, answer.message.tool_calls):
        assert call.function.name == "get_weather"
        assert call.function.arguments == {"city": "Paris"}
    assert "".join(part.message.content for part in parts) == answer.message.content
    for end in (answer, parts[-1]):
        assert (end.done_reason, end.prompt_eval_count, end.eval_count) == ("stop", 7, 9)


def test_a_tools_answer_belongs_to_its_call(client: Any):
    messages: list[Any] = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}],
        },
        {"role": "tool", "tool_name": "get_weather", "content": "It rains in Paris."},
    ]
    answer = client.chat("chat", messages, tools=[get_weather], options=GREEDY)
    assert answer.done
    with pytest.raises(ollama.ResponseError, match="answers no call"):
        client.chat("chat", [messages[0], messages[2]], options=GREEDY)


def test_log_probabilities_are_told(client: Any):
    answer = client.chat("chat", HELLO, options=GREEDY, logprobs=True, top_logprobs=2)
    assert len(answer.logprobs) == answer.eval_count or answer.done_reason == "stop"
    for each in answer.logprobs:
        assert each.logprob <= 0
        assert len(each.top_logprobs) == 2


# ------------------------------------------------------------------------------ generate


def test_a_prompt_is_answered_and_streamed(client: Any):
    whole = client.generate("chat", "Say hello.", system="You are brief.", options=GREEDY)
    assert whole.response
    check_end(whole, is_stream=False)
    parts = list(
        client.generate(
            "chat:latest", "Say hello.", system="You are brief.", options=GREEDY, stream=True
        )
    )
    assert "".join(part.response for part in parts) == whole.response
    check_end(parts[-1], is_stream=True)


def test_a_raw_prompt_is_continued_as_it_stands(client: Any):
    answer = client.generate("chat", "The capital of France is", raw=True, options=GREEDY)
    assert "Paris" in answer.response


def test_no_prompt_loads_the_model(client: Any, live: LiveServer):
    assert client.generate("chat", "").done_reason == "load"
    assert client.chat("chat", []).done_reason == "load"
    raw = live.http.post("/api/generate", json={"model": "chat", "keep_alive": -1})
    assert (raw.status_code, raw.json()["done"], raw.json()["response"]) == (200, True, "")


@pytest.mark.parametrize(
    "fields",
    [{"suffix": "end"}, {"template": "{{ .Prompt }}"}, {"context": [1, 2]}, {"format": "xml"}],
)
def test_what_would_change_the_answer_is_not_ignored(client: Any, fields: Any):
    (name,) = fields
    with pytest.raises(ollama.ResponseError, match=name) as refused:
        client.generate("chat", "Hi", **fields) if name != "format" else client._request(
            ollama.GenerateResponse,
            "POST",
            "/api/generate",
            json={"model": "chat", "prompt": "Hi", "format": "xml", "stream": False},
        )
    assert refused.value.status_code == 400


# ------------------------------------------------------------------------------ embeddings


def test_texts_become_the_vectors_that_openais_door_gives(client: Any, live: LiveServer):
    texts = ["A cat sits.", "A dog barks."]
    answer = client.embed("embeddings", texts)
    body = {"model": "embeddings", "input": texts}
    theirs = live.http.post("/v1/embeddings", json=body).json()
    assert answer.embeddings == [each["embedding"] for each in theirs["data"]]
    assert answer.prompt_eval_count == theirs["usage"]["prompt_tokens"]
    assert client.embed("embeddings:latest", texts[0]).embeddings == answer.embeddings[:1]
    assert client.embeddings("embeddings", texts[0]).embedding == answer.embeddings[0]
    assert client.embed("embeddings", []).embeddings == []


def test_vectors_of_another_length_are_refused(client: Any):
    with pytest.raises(ollama.ResponseError, match="384 dimensions"):
        client.embed("embeddings", "x", dimensions=64)
    with pytest.raises(ollama.ResponseError, match="truncate"):
        client.embed("embeddings", "x", truncate=False)


# ------------------------------------------------------------------------------ what is there


def test_deployments_are_listed_shown_and_running(client: Any):
    listed = {each.model: each for each in client.list().models}
    assert {"chat:latest", "embeddings:latest"} <= set(listed)
    assert "iris:latest" not in listed  # no question of Ollama's is one for it
    chat = listed["chat:latest"]
    assert chat.size > 50_000_000
    assert len(chat.digest) == 64
    assert chat.details.format == "gguf"
    shown = client.show("chat:latest")
    assert shown.capabilities == ["completion", "tools"]
    assert shown.license == "Apache-2.0"
    assert shown.modelinfo["general.task"] == "text-generation"
    assert client.show("embeddings").capabilities == ["embedding"]
    running = {each.model: each for each in client.ps().models}
    assert running["chat:latest"].size > chat.size


def test_a_key_for_one_deployment_sees_no_other(live: LiveServer):
    fields = {"name": "ollama", "deployments": ["embeddings"]}
    secret = live.http.post("/platform/v1/keys", json=fields).json()["secret"]
    client = ollama.Client(host=live.url, headers={"authorization": f"Bearer {secret}"})
    assert [each.model for each in client.list().models] == ["embeddings:latest"]
    with pytest.raises(ollama.ResponseError) as refused:
        client.chat("chat", HELLO)
    assert refused.value.status_code == 403
    client._client.close()


def test_the_version_and_the_root_answer(live: LiveServer):
    assert live.http.get("/api/version").json()["version"].count(".") == 2
    for method in ("GET", "HEAD"):
        assert httpx.request(method, live.url + "/").status_code == 200
    assert httpx.get(live.url + "/").json() == {"name": "wherry", "status": "alive"}
    page = httpx.get(live.url + "/", headers={"accept": "text/html,*/*"})
    assert (page.status_code, page.headers["location"]) == (303, "/docs")


def test_a_pull_of_what_is_there_succeeds_and_others_say_what_to_do(client: Any):
    assert client.pull("chat").status == "success"
    assert [each.status for each in client.pull("chat:latest", stream=True)] == ["success"]
    with pytest.raises(ollama.ResponseError, match="not found") as absent:
        client.pull("llama3")
    assert absent.value.status_code == 404
    for ask in (
        lambda: client.create("mine", from_="chat"),
        lambda: client.copy("chat", "other"),
        lambda: client.push("chat"),
        lambda: client.delete("chat"),
    ):
        with pytest.raises(ollama.ResponseError, match="wherry import") as refused:
            ask()
        assert refused.value.status_code == 400


# ------------------------------------------------------------------------------ refusals


def test_refusals_have_ollamas_shape(live: LiveServer, client: Any):
    with pytest.raises(ollama.ResponseError, match="not found") as absent:
        client.chat("nothing-here", HELLO)
    assert absent.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="does text-generation") as other_task:
        client.embed("chat", "x")
    assert other_task.value.status_code == 400
    wrong = ollama.Client(host=live.url, headers={"authorization": "Bearer nobody"})
    with pytest.raises(ollama.ResponseError) as stranger:
        wrong.list()
    assert stranger.value.status_code == 401
    wrong._client.close()
    for path in ("/api/nothing", "/api/blobs/sha256:00"):
        answer = live.http.get(path)
        assert (answer.status_code, set(answer.json())) == (404, {"error"})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"messages": [{"role": "king", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": "x", "images": ["nonsense"]}]}, "picture"),
        ({"messages": [{"role": "user", "content": "x", "images": ["iVBORw0KGgo="]}]}, "text only"),
        ({"messages": HELLO, "options": {"temperature": "hot"}}, "temperature"),
        ({"messages": HELLO, "options": {"top_p": 3}}, "top_p"),
        ({"messages": HELLO, "options": {"stop": [""]}}, "stop"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "function"),
        ({"messages": HELLO, "format": {"type": {"type": {}}}}, ""),
        ({"messages": "Hi"}, "messages"),
        ({"messages": HELLO, "stream": "yes"}, "stream"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(live: LiveServer, fields: Any, told: str):
    for stream in ({}, {"stream": False}):
        answer = live.http.post("/api/chat", json={"model": "chat", **stream, **fields})
        assert answer.status_code == 400, answer.text
        assert set(answer.json()) == {"error"}
        assert told in answer.json()["error"]


def test_a_client_that_leaves_ends_the_work(live: LiveServer):
    body = {"model": "chat", "messages": HELLO, "options": {**ENDLESS, "num_predict": 4000}}
    with live.http.stream("POST", "/api/chat", json=body) as answer:
        next(answer.iter_lines())
    wait_until_idle(worker_of(live, "chat").pid)


def test_an_error_in_mid_stream_is_a_line(live: LiveServer):
    counting = {"prompt": "1, 2, 3, 4, 5, 6, 7, 8, 9,", "raw": True}  # it never comes to an end
    body = {"model": "chat", **counting, "options": {**ENDLESS, "num_predict": 4000}}
    headers = {"x-request-timeout-seconds": "1.5"}
    with live.http.stream("POST", "/api/generate", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert "response" in lines[0]
    assert set(lines[-1]) == {"error"}
