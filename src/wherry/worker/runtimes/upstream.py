"""Runtime `upstream`: answers by asking another OpenAI-compatible server.

It chats, continues texts, and translates or summarizes by a prompt (`upstream_prompts`); the other
server may be this one, with a deployment that chats.

Bundle options: `UpstreamOptions`. The key is no option: a bundle is copied, shown and exported.
It arrives through `configure`, as the secret `api_key`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Annotated, Any

import httpx
import msgspec
from msgspec import Meta

from wherry.errors import (
    ContextLengthExceeded,
    InvalidInput,
    ModelFailed,
    Overloaded,
    TimedOut,
    UpstreamFailed,
    WherryError,
)
from wherry.models.bundle import Bundle
from wherry.models.tasks.generation import GenerationInput, TextDelta, expect_whole_answer
from wherry.models.tasks.text_to_text import TextToTextInput, TextToTextOutput
from wherry.worker.runtimes.upstream_messages import (
    DeltaReader,
    UpstreamChunk,
    chunk_decoder,
    encode_request,
)
from wherry.worker.runtimes.upstream_prompts import PROMPTS, PromptedTask, read_answer

MAX_LINE_BYTES = 1 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_ERROR_CHARACTERS = 300
MAX_WAITING_CHUNKS = 256
CANCEL_POLL_SECONDS = 0.05
"""`cancelled` belongs to threads and cannot be awaited."""
LONGEST_RETRY_SECONDS = 3600.0


class UpstreamOptions(msgspec.Struct, frozen=True):
    """Options of a bundle."""

    base_url: str
    """Root of the API, with its version: `https://llm.example/v1`."""
    model: str
    """The model's name there."""
    max_concurrency: Annotated[int, Meta(ge=1, le=1024)] = 32
    connect_timeout_seconds: Annotated[float, Meta(gt=0, le=300)] = 10.0
    read_timeout_seconds: Annotated[float, Meta(gt=0, le=3600)] = 120.0
    """Longest silence between two events."""
    max_response_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 64 << 20
    include_usage: bool = True
    """Ask for token counts; false for servers that refuse `stream_options`: then we count."""
    max_tokens_field: str = "max_tokens"
    """Some servers want `max_completion_tokens`."""
    takes_top_k: bool = False
    """The server knows `top_k` (vLLM, llama.cpp); it is left out for others."""


class UpstreamRuntime:
    """Streams answers of one model of one server."""

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        self.max_concurrency = 1
        self._secrets = dict(secrets or {})
        self._options: UpstreamOptions | None = None
        self._prompted: PromptedTask | None = None
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def configure(
        self, secrets: Mapping[str, str], options: Mapping[str, Any] | None = None
    ) -> None:
        """Take the deployment's secrets, of which `api_key` is used; there are no options."""
        del options
        self._secrets = dict(secrets)

    def load(self, bundle: Bundle, device: str) -> None:
        """Check the options; the server is not asked, it may be down now and up later."""
        del device
        options = dict(bundle.manifest.options)
        if "api_key" in options:
            raise InvalidInput(
                "'api_key' must not be in a bundle", hint="give it as a secret of the deployment"
            )
        try:
            self._options = msgspec.convert(options, UpstreamOptions)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"an option of the bundle is wrong: {error}") from error
        _check_url(self._options.base_url)
        self.max_concurrency = self._options.max_concurrency
        if bundle.manifest.task in PROMPTS:
            self._prompted = PromptedTask(bundle)

    async def stream(
        self, item: GenerationInput | TextToTextInput, cancelled: Event, tenant: str
    ) -> AsyncIterator[TextDelta | TextToTextOutput]:
        """Deltas as the server sends them; a text that is made by a prompt comes in one piece."""
        del tenant  # the server behind knows one client: us
        if isinstance(item, TextToTextInput):
            yield await self._answer_by_prompt(item, cancelled)
            return
        async with aclosing(self._chat(item, cancelled)) as deltas:
            async for delta in deltas:
                yield delta

    async def _answer_by_prompt(self, item: TextToTextInput, cancelled: Event) -> TextToTextOutput:
        if self._prompted is None:
            raise ModelFailed("the model is not loaded")
        pair = self._prompted.choose_languages(item)
        chat = self._prompted.chat_of(item, pair)
        async with aclosing(self._chat(chat, cancelled)) as deltas:
            return await read_answer(deltas, item, pair)

    async def _chat(
        self, item: GenerationInput, cancelled: Event
    ) -> AsyncGenerator[TextDelta, None]:
        """Deltas of the server's answer; the connection is closed when cancelled."""
        options = self._require_options()
        expect_whole_answer(item)
        reader = DeltaReader(item)
        chunks: asyncio.Queue[UpstreamChunk | Exception | None] = asyncio.Queue(MAX_WAITING_CHUNKS)
        asking = asyncio.create_task(self._ask(options, item, chunks))
        try:
            while True:
                chunk = await _next_or_cancelled(chunks, cancelled)
                if chunk is None:
                    break
                if isinstance(chunk, Exception):
                    raise chunk
                delta = reader.read(chunk)
                if delta is not None:
                    yield delta
            yield reader.finish(cancelled=cancelled.is_set())
        finally:
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking

    def close(self) -> None:
        """Close the connections."""
        client, loop = self._client, self._loop
        self._client = self._loop = None
        if client is None or loop is None or loop.is_closed():
            return
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(client.aclose(), loop)
        else:
            loop.run_until_complete(client.aclose())

    def _require_options(self) -> UpstreamOptions:
        if self._options is None:
            raise ModelFailed("the model is not loaded")
        return self._options

    async def _ask(
        self,
        options: UpstreamOptions,
        item: GenerationInput,
        chunks: asyncio.Queue[UpstreamChunk | Exception | None],
    ) -> None:
        """Put the answer's chunks into the queue, then at most one error, then None."""
        try:
            path, body = encode_request(item, options)
            request = self._client_of(options).build_request("POST", path, json=body)
            async with aclosing(self._receive(options, request)) as received:
                async for chunk in received:
                    await chunks.put(chunk)
        except WherryError as error:
            await chunks.put(error)
        except httpx.TimeoutException:
            await chunks.put(TimedOut("the upstream server did not answer in time"))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            kind = type(error).__name__
            await chunks.put(UpstreamFailed(f"the upstream server could not be reached ({kind})"))
        except Exception as error:  # noqa: BLE001 - the edge of a task: the stream raises it
            await chunks.put(error)
        await chunks.put(None)

    def _client_of(self, options: UpstreamOptions) -> httpx.AsyncClient:
        """The client of the running loop, made at the first request."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._client = self._new_client(options)
            self._loop = loop
        return self._client

    def _new_client(self, options: UpstreamOptions) -> httpx.AsyncClient:
        headers = {"accept": "text/event-stream, application/json", "accept-encoding": "identity"}
        key = self._secrets.get("api_key", "")
        if key:
            headers["authorization"] = f"Bearer {key}"
        return httpx.AsyncClient(
            base_url=options.base_url.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(
                options.read_timeout_seconds, connect=options.connect_timeout_seconds
            ),
            limits=httpx.Limits(max_connections=options.max_concurrency),
            follow_redirects=False,  # where it points is not where the operator pointed
            trust_env=False,  # no proxy and no netrc from the environment
        )

    async def _receive(
        self, options: UpstreamOptions, request: httpx.Request
    ) -> AsyncGenerator[UpstreamChunk, None]:
        response = await self._client_of(options).send(request, stream=True)
        try:
            if response.status_code != 200:
                raise await self._error_of(response)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise UpstreamFailed("the upstream server sent a compressed stream")
            async with aclosing(_read_events(response, options.max_response_bytes)) as events:
                async for data in events:
                    chunk = _decode(data)
                    if chunk.error is not None:
                        text = self._safe(chunk.error.text)
                        raise UpstreamFailed(f"the upstream server failed: {text}")
                    yield chunk
        finally:
            await response.aclose()

    async def _error_of(self, response: httpx.Response) -> WherryError:
        """What a refusal means to our client; its credentials are never its business."""
        status = response.status_code
        if status in (401, 403):
            return UpstreamFailed(
                "the upstream server refused our credentials",
                hint="the operator must check the deployment's secret 'api_key'",
            )
        text, code = _error_in(await _read_some(response, MAX_ERROR_BYTES))
        text = self._safe(text)
        if code == "context_length_exceeded":
            return ContextLengthExceeded(text)
        if status in (429, 503):
            wait = _retry_after_seconds(response.headers.get("retry-after", ""))
            return Overloaded("the upstream server is busy", retry_after_seconds=wait)
        if status in (400, 413, 422):
            return InvalidInput(f"the upstream server refused the request: {text}")
        if status == 404:
            return UpstreamFailed(
                "the upstream server does not know the model or the route",
                hint="the operator must check base_url and model in the bundle's options",
            )
        return UpstreamFailed(f"the upstream server answered with status {status}")

    def _safe(self, text: str) -> str:
        """Text of the server, shortened, without our key if it repeats it."""
        key = self._secrets.get("api_key")
        if key:
            text = text.replace(key, "…")
        return text if len(text) <= MAX_ERROR_CHARACTERS else text[:MAX_ERROR_CHARACTERS] + "…"


async def _next_or_cancelled(
    chunks: asyncio.Queue[UpstreamChunk | Exception | None], cancelled: Event
) -> UpstreamChunk | Exception | None:
    """The next chunk, or None as soon as the request is cancelled."""
    waiting = asyncio.ensure_future(chunks.get())
    try:
        while not cancelled.is_set():
            done, _ = await asyncio.wait({waiting}, timeout=CANCEL_POLL_SECONDS)
            if done:
                return waiting.result()
        return None
    finally:
        waiting.cancel()


async def _read_events(response: httpx.Response, most: int) -> AsyncGenerator[bytes, None]:
    """The `data:` of server-sent events until `[DONE]` or the end; bounded in all and by line."""
    received, rest = 0, b""
    async for piece in response.aiter_raw():
        received += len(piece)
        *lines, rest = (rest + piece).split(b"\n")
        if received > most or len(rest) > MAX_LINE_BYTES:
            raise UpstreamFailed("the upstream server sent more than is allowed")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            if data == b"[DONE]":
                return
            if data:
                yield data


def _decode(data: bytes) -> UpstreamChunk:
    try:
        return chunk_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UpstreamFailed("the upstream server sent what is not OpenAI's protocol") from error


async def _read_some(response: httpx.Response, most: int) -> bytes:
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) >= most:
            break
    return body[:most]


def _error_in(body: bytes) -> tuple[str, str]:
    """Message and code of an error body, in whatever shape it comes."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return "", ""
    error: Any = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return str(error), ""
    return str(error.get("message") or error.get("detail") or ""), str(error.get("code") or "")


def _retry_after_seconds(header: str) -> float:
    """`Retry-After`, seconds or a date, within reason; 1 if it says nothing useful."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return 1.0
    return min(max(seconds, 1.0), LONGEST_RETRY_SECONDS) if seconds == seconds else 1.0


def _check_url(base_url: str) -> None:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise InvalidInput("base_url is not a URL") from error
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        raise InvalidInput(
            "base_url is not usable",
            hint="http or https, a host, no user and no query: https://llm.example/v1",
        )
