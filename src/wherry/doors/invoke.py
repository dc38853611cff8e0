"""From a door's envelope to an HTTP answer: what all inference doors do alike."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from functools import lru_cache

from wherry import errors
from wherry.accounts.limits import KeyMeter
from wherry.doors.route import (
    Direct,
    Field,
    Inquiry,
    Response,
    header_value,
)
from wherry.frames import Outcome, Usage
from wherry.gateway.admit import Inbound
from wherry.gateway.exchange import Exchange
from wherry.gateway.predict import Gateway
from wherry.gateway.route import VersionRoute

WATCH_AFTER_SECONDS = 0.05
"""Requests this old are watched for a client that leaves; quicker ones are not worth a task."""
MIN_TIMEOUT_SECONDS = 0.001
MAX_TIMEOUT_SECONDS = 86_400.0
MAX_STICKY_CHARACTERS = 256
WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])")

SSE_HEADERS = {
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

ALIKE_LINES = (
    b"content-type: %b\r\n"
    b"x-content-type-options: nosniff\r\n"
    b"server-timing: queue;dur=%d.%02d, run;dur=%d.%02d\r\n"
    b"openai-processing-ms: %d\r\n"
    b"x-wherry-units: input_tokens=%d, output_tokens=%d, rows=%d%b\r\n"
    b"%b%b"
)

OWN_LINES = b"%bx-request-id: %b\r\ncontent-length: %d\r\n"

ErrorEvent = Callable[[errors.WherryError], bytes]
"""The last event of a stream that fails after it has begun."""
Piece = bytes | bytearray | memoryview
Amend = Callable[[Exchange, Piece], Piece]
"""What a door does to finished pieces of an answer before they leave: it has a clock, codecs none."""


async def invoke(
    gateway: Gateway,
    inquiry: Inquiry,
    *,
    door: str,
    deployment: str,
    codec: str,
    body: bytes,
    version: str = "",
    forward: tuple[str, ...] = (),
    stream: bool = False,
    tokens_bound: int = 0,
    stream_type: str = "text/event-stream",
    error_event: ErrorEvent | None = None,
    amend: Amend | None = None,
    is_direct: bool = False,
) -> Response:
    """Send a request through the gateway and answer with what the worker encoded.

    `stream_type` is the media type of an answer in pieces; `amend` is shown every piece of either
    kind of answer.

    Raises:
        WherryError: it was refused or failed before anything was sent.
    """
    headers = inquiry.headers
    inbound = Inbound(
        door=door,
        request_id=inquiry.id,
        principal=inquiry.principal,
        deployment=deployment,
        version=version,
        codec=codec,
        body=body,
        headers={name: headers[name] for name in forward if name in headers},
        stream=stream,
        tokens_bound=tokens_bound,
        timeout_seconds=read_timeout(headers.get("x-request-timeout-seconds")),
        sticky=read_sticky(headers.get("x-wherry-sticky")),
        wait_seconds=read_wait(headers.get("prefer")),
        is_background=inquiry.is_background,
        is_direct=is_direct,
    )
    if inbound.is_background:
        await gateway.wait_for_spare_room(inbound)
    exchange = gateway.predict(inbound)
    watch = _Watch(gateway, inquiry, exchange)
    if stream:
        try:
            await exchange.first()
        except BaseException:
            watch.stop()
            raise
        return Response(
            _events(exchange, watch, error_event, amend),
            content_type=stream_type,
            headers=stream_headers(gateway, exchange),
        )
    try:
        answer = await exchange.answer()
    except asyncio.CancelledError:
        gateway.cancel(exchange)
        raise
    finally:
        watch.stop()
    if amend is not None:
        exchange.body = amend(exchange, answer.body)
    return Response(exchange.body, fields=answer_fields(exchange))


async def invoke_direct(gateway: Gateway, inquiry: Inquiry, direct: Direct) -> Response:
    """Serve a row that only hands its body on, for requests that its fast lane does not take."""
    return await invoke(
        gateway,
        inquiry,
        door=direct.door,
        deployment=inquiry.params["name"],
        version=inquiry.params.get("version", ""),
        codec=direct.codec,
        body=await inquiry.body(),
        forward=direct.forward,
        is_direct=True,
    )


def answer_lines(exchange: Exchange) -> bytes:
    """All header fields of a unary answer, as lines."""
    return OWN_LINES % (alike_lines(exchange), exchange.request_id.encode(), len(exchange.body))


_said: tuple[Outcome, KeyMeter | None, VersionRoute, bytes] | None = None
"""The last lines: answers of one batch, which leave one after another, may have the same."""


def alike_lines(exchange: Exchange) -> bytes:
    """Those that other answers with the same outcome have, too."""
    global _said
    outcome, meter, version = exchange.outcome, exchange.track.meter, exchange.version
    said = _said
    if said and said[0] is outcome and said[1] is meter and said[2] is version:
        return said[3]
    assert outcome is not None
    kind, queued_us, run_us = outcome.content_type, outcome.queued_us, outcome.run_us
    usage = outcome.usage
    lines = ALIKE_LINES % (
        b"application/json" if kind == "application/json" else header_value(kind),
        queued_us // 1000,
        queued_us % 1000 // 10,
        run_us // 1000,
        run_us % 1000 // 10,
        (queued_us + run_us + 999) // 1000,
        usage.input_tokens,
        usage.output_tokens,
        usage.rows,
        _rare_units(usage),
        meter.lines(time.monotonic()) if meter is not None else b"",
        _version_line(version.key),
    )
    for name, value in outcome.headers.items():
        lines += b"%b: %b\r\n" % (name.encode("latin-1"), header_value(value))
    _said = outcome, meter, version, lines
    return lines


def _rare_units(usage: Usage) -> bytes:
    """Those that most tasks do not have."""
    if not (usage.characters or usage.audio_ms):
        return b""
    return b", characters=%d, audio_ms=%d" % (usage.characters, usage.audio_ms)


@lru_cache(maxsize=1024)
def _version_line(key: str) -> bytes:
    return b"x-wherry-version: %b\r\n" % header_value(key)


def answer_fields(exchange: Exchange) -> list[Field]:
    """The same as pairs of name and value."""
    fields: list[Field] = []
    for line in answer_lines(exchange).split(b"\r\n")[:-1]:
        name, _, value = line.partition(b": ")
        fields.append((name, value))
    return fields


def stream_headers(gateway: Gateway, exchange: Exchange) -> dict[str, str]:
    """Those of an answer that comes in events: which version answers, and what the key has left."""
    left = gateway.settler.limit_headers(exchange.principal)
    return {**SSE_HEADERS, **left, "x-wherry-version": exchange.version.key}


async def _events(
    exchange: Exchange, watch: _Watch, error_event: ErrorEvent | None, amend: Amend | None
) -> AsyncIterator[Piece]:
    try:
        async for chunk in exchange.chunks():
            yield chunk if amend is None else amend(exchange, chunk)
    except errors.WherryError as error:
        if error_event is None:
            raise  # what is no row of events has no place for it: the answer breaks off
        if not isinstance(error, errors.Cancelled):
            yield error_event(error)
    finally:
        watch.end()


class _Watch:
    """Cancels the work of a client that leaves."""

    def __init__(self, gateway: Gateway, inquiry: Inquiry, exchange: Exchange) -> None:
        self._gateway = gateway
        self._inquiry = inquiry
        self._exchange = exchange
        self._task: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(WATCH_AFTER_SECONDS, self._start)

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        await self._inquiry.wait_for_disconnect()
        self._gateway.cancel(self._exchange)

    def stop(self) -> None:
        """The answer is there (or will not come)."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def end(self) -> None:
        """The stream is over, or its reader is gone: nothing may go on unread."""
        self.stop()
        self._gateway.cancel(self._exchange)


def read_timeout(text: str | None) -> float | None:
    """Seconds that the client waits at most; None if it does not say."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not MIN_TIMEOUT_SECONDS <= seconds <= MAX_TIMEOUT_SECONDS:
        raise errors.InvalidInput(
            f"x-request-timeout-seconds must be between {MIN_TIMEOUT_SECONDS} and "
            f"{MAX_TIMEOUT_SECONDS:.0f}"
        )
    return seconds


def read_sticky(text: str | None) -> str:
    """The client's word for who asks."""
    if not text:
        return ""
    if len(text) > MAX_STICKY_CHARACTERS:
        raise errors.InvalidInput(
            f"x-wherry-sticky has {len(text)} characters, at most {MAX_STICKY_CHARACTERS} are taken"
        )
    return text


def read_wait(prefer: str | None) -> float | None:
    """Seconds that the client waits for a model that is not loaded."""
    if not prefer:
        return None
    found = WAIT.search(prefer)
    return float(found[1]) if found else None
