"""Against a small working server of the OpenAI protocol, over real sockets."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.chat_pictures import chat_picture

from wherry.errors import (
    ContextLengthExceeded,
    InvalidInput,
    ModelFailed,
    Overloaded,
    TimedOut,
    UpstreamFailed,
)
from wherry.models.bundle import Bundle, Manifest
from wherry.models.tasks.chat_pictures import picture_url
from wherry.models.tasks.generation import (
    TEXT_GENERATION,
    ChatInput,
    CompletionInput,
    Generation,
    GenerationInput,
    ImagePart,
    JsonFormat,
    Message,
    Sampling,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from wherry.worker.runtimes.catalog import create_runtime
from wherry.worker.runtimes.runtime import ConcurrentRuntime
from wherry.worker.runtimes.upstream import UpstreamRuntime

KEY = "sk-very-secret"


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


class Twin:
    """Says the words of the last message back, one an event; some words mean mischief."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.open_streams = 0
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/elsewhere", self.elsewhere, methods=["POST"]),
            ]
        )

    async def elsewhere(self, request: Request) -> Response:
        raise AssertionError("a redirect was followed")

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": f"bad key {KEY}"}}, 401)
        text = body["messages"][-1]["content"]
        refusal = self.refuse(text if isinstance(text, str) else "")
        return refusal or self.stream(self.chat_events(body, str(text)))

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        logprobs = {
            "tokens": ["a"],
            "token_logprobs": [-0.5],
            "top_logprobs": [{"a": -0.5, "b": -1.5}],
            "text_offset": [0],
        }
        return self.stream(
            iter(
                [
                    event(choices=[{"index": 0, "text": "a", "logprobs": logprobs}]),
                    event(choices=[{"index": 0, "text": "", "finish_reason": "length"}]),
                    b"data: [DONE]\n\n",
                ]
            )
        )

    def refuse(self, text: str) -> Response | None:
        match text.split():
            case ["status", status, *rest]:
                error = {"message": f"{KEY} " + "x" * 1000, "code": None}
                headers = {"retry-after": rest[0]} if rest else {}
                return JSONResponse({"error": error}, int(status), headers)
            case ["overflow"]:
                error = {
                    "message": "This model's maximum context length is 8 tokens.",
                    "code": "context_length_exceeded",
                }
                return JSONResponse({"error": error}, 400)
            case ["plain"]:
                return Response("<html>no</html>", 400)
            case ["redirect"]:
                return RedirectResponse("/elsewhere", 307)
            case ["compressed"]:
                return Response(b"zzz", headers={"content-encoding": "gzip"})
            case _:
                return None

    def stream(self, events: Iterator[bytes]) -> StreamingResponse:
        async def send() -> AsyncIterator[bytes]:
            self.open_streams += 1
            try:
                for each in events:
                    if each == b"wait":
                        await asyncio.sleep(30)
                    yield each
                    await asyncio.sleep(0)
            finally:
                self.open_streams -= 1

        return StreamingResponse(send(), media_type="text/event-stream")

    def chat_events(self, body: dict[str, Any], text: str) -> Iterator[bytes]:
        yield b": ping\n\n" + event(choices=[{"delta": {"role": "assistant", "content": ""}}])
        if body.get("tools"):
            yield from self.call_events()
            return
        for number, word in enumerate(text.split(" ")):
            if word == "forever":
                yield from (event(choices=[{"delta": {"content": "x"}}]) for _ in range(10**9))
            if word in ("hang", "flood", "garbage", "failure", "break"):
                yield {
                    "hang": b"wait",
                    "flood": b"data: " + b"x" * (3 << 20) + b"\n\n",
                    "garbage": b"data: {nonsense\n\n",
                    "failure": event(error={"message": f"worker died {KEY}"}),
                    "break": b"",
                }[word]
                if word == "break":
                    return
            logprob = {"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": []}
            content = word if number == 0 else " " + word
            choice = {"delta": {"content": content}, "logprobs": {"content": [logprob]}}
            yield event(choices=[choice])
        last = text.split(" ")[-1]
        found = last if last in body.get("stop", []) else None
        yield event(choices=[{"delta": {}, "finish_reason": "stop", "stop_reason": found}])
        if body.get("stream_options"):
            usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
            yield event(choices=[], usage=usage)
        yield b"data: [DONE]\n\n"

    def call_events(self) -> Iterator[bytes]:
        start = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f"}}
        yield event(choices=[{"delta": {"tool_calls": [start]}}])
        for piece in ('{"a"', ": 1}"):
            call = {"index": 0, "function": {"arguments": piece}}
            yield event(choices=[{"delta": {"tool_calls": [call]}}])
        yield event(choices=[{"delta": {}, "finish_reason": "tool_calls"}])
        yield b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def twin() -> Iterator[tuple[Twin, str]]:
    twin = Twin()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(twin.app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield twin, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(10)
    listener.close()


def make(
    url: str, key: str = KEY, task: str = "text-generation", **options: Any
) -> UpstreamRuntime:
    runtime = create_runtime("upstream")
    assert isinstance(runtime, UpstreamRuntime)
    runtime.configure(secrets={"api_key": key}, options={})
    manifest = Manifest(task, "upstream", options={"base_url": url, "model": "there"} | options)
    runtime.load(Bundle(Path(), manifest), "cpu")
    return runtime


def generate(runtime: UpstreamRuntime, item: GenerationInput) -> Generation:
    async def collect() -> list[TextDelta]:
        return [delta async for delta in runtime.stream(item, threading.Event(), "")]

    async def collect_and_close() -> list[TextDelta]:
        try:
            return await collect()
        finally:
            runtime.close()
            await asyncio.sleep(0)

    return TEXT_GENERATION.join(asyncio.run(collect_and_close()))


def say(text: str, **sampling: Any) -> ChatInput:
    return ChatInput([Message("user", text)], Sampling(**sampling))


def test_it_is_a_concurrent_runtime(twin: tuple[Twin, str]) -> None:
    runtime = make(twin[1], max_concurrency=3)
    assert isinstance(runtime, ConcurrentRuntime)
    assert runtime.max_concurrency == 3


def test_an_answer_passes_through_with_its_usage(twin: tuple[Twin, str]) -> None:
    found = generate(make(twin[1]), say("hello 你好 😀"))
    assert found.text == "hello 你好 😀"
    assert found.finish_reason == "stop"
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.rows) == (11, 7, 1)


def test_usage_is_counted_where_it_is_not_told(twin: tuple[Twin, str]) -> None:
    found = generate(make(twin[1], include_usage=False), say("one two three"))
    assert "stream_options" not in twin[0].bodies[-1]
    assert found.usage.output_tokens == 3
    assert found.usage.input_tokens > 0


def test_a_later_answer_to_a_prompt_is_not_charged_for_it(twin: tuple[Twin, str]) -> None:
    item = say("hello")
    item.charge_prompt = False
    assert generate(make(twin[1]), item).usage.input_tokens == 0


def test_what_was_asked_is_what_is_sent(twin: tuple[Twin, str]) -> None:
    url = picture_url(chat_picture("red"))
    item = ChatInput(
        messages=[
            Message("system", "Be terse."),
            Message("user", [TextPart("see"), ImagePart(url, "low")]),
            Message("assistant", "", tool_calls=[ToolCall("c0", "f", "{}")]),
            Message("tool", "21", tool_call_id="c0"),
        ],
        sampling=Sampling(
            max_tokens=5, temperature=0.5, seed=3, stop=["x"], logit_bias={7: -1.0}, top_logprobs=2
        ),
        tools=[Tool("f", "does", {"type": "object"})],
        tool_choice=ToolChoice("named", "f"),
        parallel_tool_calls=False,
        json_format=JsonFormat({"type": "array"}, name="list"),
    )
    generate(
        make(twin[1], task="image-text-to-text", max_tokens_field="max_completion_tokens"), item
    )
    sent = twin[0].bodies[-1]
    assert sent["model"] == "there"
    assert sent["stream"] is True
    assert sent["max_completion_tokens"] == 5
    assert (sent["temperature"], sent["seed"], sent["stop"]) == (0.5, 3, ["x"])
    assert (sent["logit_bias"], sent["top_logprobs"]) == ({"7": -1.0}, 2)
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert sent["parallel_tool_calls"] is False
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "array"}
    image = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    assert sent["messages"] == [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": [{"type": "text", "text": "see"}, image]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "content": "21", "tool_call_id": "c0"},
    ]


def test_top_k_is_sent_to_servers_that_take_it(twin: tuple[Twin, str]) -> None:
    generate(make(twin[1]), say("go", top_k=4))
    assert "top_k" not in twin[0].bodies[-1]
    generate(make(twin[1], takes_top_k=True), say("go", top_k=4))
    assert twin[0].bodies[-1]["top_k"] == 4


@pytest.mark.parametrize("field", ["min_p", "repetition_penalty"])
def test_what_would_be_lost_in_silence_is_refused(twin: tuple[Twin, str], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        generate(make(twin[1]), say("go", **{field: 0.5}))
    assert refused.value.param == field
    generate(make(twin[1], takes_top_k=True), say("go", **{field: 0.5}))
    assert twin[0].bodies[-1][field] == 0.5


@pytest.mark.parametrize("task", ["text-generation", "image-text-to-text"])
def test_a_picture_that_may_not_pass_is_refused_before_anything_is_sent(
    twin: tuple[Twin, str], task: str
) -> None:
    asked = len(twin[0].bodies)
    url = picture_url(chat_picture("red")) if task == "text-generation" else "https://x.example/a"
    with pytest.raises(InvalidInput) as refused:
        generate(make(twin[1], task=task), ChatInput([Message("user", [ImagePart(url)])]))
    assert refused.value.param == "messages"
    assert len(twin[0].bodies) == asked


def test_the_stop_text_is_told_where_the_server_tells_it(twin: tuple[Twin, str]) -> None:
    assert generate(make(twin[1]), say("a b stopped", stop=["y", "stopped"])).stop_text == "stopped"
    assert generate(make(twin[1]), say("a b", stop=["y", "stopped"])).stop_text == ""


@pytest.mark.parametrize("fields", [{"count_only": True}, {"continue_last": True}])
def test_what_the_protocol_cannot_ask_is_refused(
    twin: tuple[Twin, str], fields: dict[str, Any]
) -> None:
    messages = [Message("user", "go"), Message("assistant", "I")]
    asked = len(twin[0].bodies)
    with pytest.raises(InvalidInput, match="this model cannot"):
        generate(make(twin[1]), ChatInput(messages, **fields))
    assert len(twin[0].bodies) == asked


def test_tool_calls_pass_through(twin: tuple[Twin, str]) -> None:
    found = generate(make(twin[1]), ChatInput([Message("user", "go")], tools=[Tool("f")]))
    assert found.tool_calls == [ToolCall("c1", "f", '{"a": 1}')]
    assert found.finish_reason == "tool_calls"


def test_log_probabilities_pass_only_if_asked(twin: tuple[Twin, str]) -> None:
    asked = generate(make(twin[1]), say("a b", top_logprobs=0)).logprobs
    assert asked is not None
    assert [token.logprob for token in asked] == [-0.5, -0.5]
    assert generate(make(twin[1]), say("a b")).logprobs is None


def test_a_prompt_is_continued(twin: tuple[Twin, str]) -> None:
    item = CompletionInput([1, 2], Sampling(max_tokens=3, top_logprobs=2), echo=True)
    found = generate(make(twin[1]), item)
    assert (found.text, found.finish_reason) == ("a", "length")
    assert found.logprobs is not None
    assert [rival.token for rival in found.logprobs[0].top] == ["a", "b"]
    sent = twin[0].bodies[-1]
    assert (sent["prompt"], sent["echo"], sent["logprobs"]) == ([1, 2], True, 2)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("status 400", InvalidInput),
        ("status 422", InvalidInput),
        ("plain", InvalidInput),
        ("overflow", ContextLengthExceeded),
        ("status 403", UpstreamFailed),
        ("status 404", UpstreamFailed),
        ("status 429 7", Overloaded),
        ("status 503", Overloaded),
        ("status 500", UpstreamFailed),
        ("redirect", UpstreamFailed),
        ("compressed", UpstreamFailed),
        ("a flood", UpstreamFailed),
        ("a garbage", UpstreamFailed),
        ("a failure", UpstreamFailed),
        ("a break", UpstreamFailed),
    ],
)
def test_a_refusal_becomes_an_error_of_ours(
    twin: tuple[Twin, str], text: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        generate(make(twin[1]), say(text))
    assert type(caught.value) is kind
    assert KEY not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("header", "seconds"), [("7", 7), ("nan", 1), ("soon", 1), ("1e9", 3600)])
def test_a_busy_server_says_when_to_come_back(
    twin: tuple[Twin, str], header: str, seconds: float
) -> None:
    with pytest.raises(Overloaded) as caught:
        generate(make(twin[1]), say(f"status 429 {header}"))
    assert caught.value.retry_after_seconds == seconds


def test_a_refused_key_is_not_told_to_the_client(twin: tuple[Twin, str]) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        generate(make(twin[1], key="sk-wrong-key"), say("hello"))
    assert "sk-" not in caught.value.text


def test_a_silent_server_times_out(twin: tuple[Twin, str]) -> None:
    with pytest.raises(TimedOut):
        generate(make(twin[1], read_timeout_seconds=0.2), say("a hang"))


def test_an_answer_over_the_limit_is_cut_off(twin: tuple[Twin, str]) -> None:
    with pytest.raises(UpstreamFailed, match="more than"):
        generate(make(twin[1], max_response_bytes=2000), say("word forever"))


def test_a_server_that_is_down_is_an_error() -> None:
    with pytest.raises(UpstreamFailed, match="reached"):
        generate(make("http://127.0.0.1:9/v1"), say("hello"))


@pytest.mark.parametrize("text", ["a forever", "a hang"])
def test_cancelling_closes_the_connection_and_counts(twin: tuple[Twin, str], text: str) -> None:
    runtime = make(twin[1])
    cancelled = threading.Event()

    async def cancel() -> tuple[list[TextDelta], float]:
        deltas, at = [], 0.0
        async for delta in runtime.stream(say(text), cancelled, ""):
            deltas.append(delta)
            cancelled.set()
            at = at or time.monotonic()
        seconds = time.monotonic() - at
        deadline = time.monotonic() + 5
        while twin[0].open_streams and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        runtime.close()
        await asyncio.sleep(0)
        return deltas, seconds

    deltas, seconds = asyncio.run(cancel())
    assert deltas[-1].finish_reason == "cancelled"
    assert deltas[-1].usage.output_tokens >= 1
    assert seconds < 1
    assert twin[0].open_streams == 0


def test_many_at_once(twin: tuple[Twin, str]) -> None:
    runtime = make(twin[1], max_concurrency=8)

    async def one(number: int) -> str:
        return "".join(
            [
                delta.text
                async for delta in runtime.stream(say(f"n {number}"), threading.Event(), "")
            ]
        )

    async def gather() -> list[str]:
        found = await asyncio.gather(*map(one, range(8)))
        runtime.close()
        await asyncio.sleep(0)
        return found

    assert asyncio.run(gather()) == [f"n {number}" for number in range(8)]


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "ftp://x/v1"},
        {"base_url": "http://user:password@x/v1"},
        {"base_url": "http:///v1"},
        {"base_url": "http://x/v1?key=1"},
        {"base_url": "http://x:port/v1"},
        {"model": None},
        {"max_concurrency": 0},
        {"read_timeout_seconds": 0},
        {"api_key": "sk-in-the-bundle"},
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        make("http://127.0.0.1:9/v1", **options)


def test_a_runtime_that_is_not_loaded_says_so() -> None:
    with pytest.raises(ModelFailed, match="not loaded"):
        generate(UpstreamRuntime(), say("hello"))
