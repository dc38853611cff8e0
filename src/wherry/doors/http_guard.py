# pyright: standard
"""Uvicorn's HTTP protocol with the bounds that it lacks, below every door.

A head, its fields and what surrounds a body are bounded before anything knows who calls. Trailers
are dropped, or one could pass for a header. A fault behind requests that wait for their answers
never gets ahead of these answers. A client that stops sending in mid-request, or stops reading its
answer, is not waited for. One that still sends when it is refused gets to read why.

What RFC 9112 leaves open is decided in docs/decisions/0021. `doors/self_check.py` tells at the
start whether the installed uvicorn still has what is used of it here.
"""

from __future__ import annotations

import asyncio
import http
from typing import Any, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wherry import errors
from wherry.doors.errors import render_platform
from wherry.telemetry import request_id

MAX_HEAD_BYTES = 64 << 10
MAX_FIELDS = 100
MAX_CHUNK_BYTES = 8
"""Most bytes around a byte of a chunked body, beside `MAX_HEAD_BYTES`."""
MAX_PIPELINED = 64
"""Requests that wait behind the one that is answered."""
MIN_BYTES_PER_STALL = 1024
"""A client in the middle of a body must send as much in `stall_seconds`."""
LINGER_SECONDS = 5.0
"""How long a refused client that still sends may take to read its answer."""
SCHEMES = (b"http://", b"https://")


class Refusal(Exception):  # noqa: N818 - it is an answer
    """Raised in a parser's callback: the connection ends with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    A subclass may answer a request by itself: it overrides `take`, and puts something into `cycle`
    that has `disconnected`, `keep_alive`, `message_event`, `response_complete` and
    `response_started`, calls `on_response_complete` when it is answered, and writes and closes
    through `transport` only.
    """

    stall_seconds = 20.0
    """How long a client may send nothing in mid-request, or read nothing of its answer."""
    max_connections = 0
    """Connections that this process serves at once; more are told to come later. 0 = any."""

    parser: Any
    """None once the connection is lost; nothing is parsed then."""
    running: Any = None
    """The cycle that is being answered; those behind it are in `pipeline`, `cycle` is the newest."""
    _read_bytes = 0
    """Size of the read that is parsed now."""
    _first_read_bytes = 0
    """Size of the read in which the request that is coming in began."""
    _overhead_bytes = 0
    """Received for it in later reads, without its body."""
    _body_bytes = 0
    _is_in_body = False
    _is_receiving = True
    """Whether a request has begun to come in, and has not ended; also before the first one."""
    _keeps_alive = True
    """What the request that is coming in wishes for the connection, once it is whole."""
    _messages = 0
    _received_bytes = 0
    _is_refused = False
    """Nothing more is parsed."""
    _refusal: Refusal | None = None
    """The connection's last answer; it waits for its turn."""
    _is_closing = False
    _was_busy = True
    """At the last look: it may have become idle at any time since."""
    _drains = 0
    """Times that a client which read too slowly caught up."""
    _timers: tuple[asyncio.TimerHandle, ...] = ()

    # ------------------------------------------------------------------ a connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and watch for a client that stalls."""
        self._inner = transport
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        self._idle_since = self.loop.time()
        self._seen = self._see()
        self._look_again()
        if self.max_connections and len(self.connections) > self.max_connections:
            self._write(Refusal(503, "this server has as many connections as it can serve"))
            self._is_closing = True
            self._inner.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and let what is being answered know; uvicorn tells the newest request only."""
        self._is_closing = True
        for timer in self._timers:
            timer.cancel()
        if self.running is not None:
            self._disconnect(self.running)
        super().connection_lost(exc)
        self.pipeline.clear()

    def shutdown(self) -> None:
        """The server stops: end now, or after the answers that are on their way."""
        self._keeps_alive = False
        if self._is_closing or self.cycle is None or self.cycle.response_complete:
            self._is_closing = True
            self._inner.close()
        else:
            self.cycle.keep_alive = False

    def close(self) -> None:
        """End the connection after what is written.

        A client that still sends would be reset, and might lose its answer: its end of the
        connection stays open for a while, and what comes is thrown away.
        """
        if self._is_closing:
            return
        self._is_closing = True
        if not (self._is_refused or (self._is_receiving and self._messages)):
            self._inner.close()
            return
        if self._inner.can_write_eof():
            self._inner.write_eof()
        self.flow.resume_reading()
        self._timers += (self.loop.call_later(LINGER_SECONDS, self._inner.close),)

    def is_closing(self) -> bool:
        """Whether nothing more can be answered."""
        return self._is_closing or self._inner.is_closing()

    def data_received(self, data: bytes) -> None:
        """Parse, unless too much has come already that is no body."""
        if self._is_refused or self._is_closing:
            return
        self._received_bytes += len(data)
        if self._overhead_bytes > MAX_HEAD_BYTES + MAX_CHUNK_BYTES * self._body_bytes:
            self.refuse(Refusal(431, "the head of the request is too large"))
            return
        self._read_bytes = len(data)
        self._overhead_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except HttpParserError as error:
            cause = error.__context__
            known = isinstance(cause, Refusal)
            self.refuse(cause if known else Refusal(400, "this is not valid HTTP"))
        except HttpParserUpgrade:  # other protocols are not spoken here: it is a plain request
            self._is_refused = True
            self.cycle.keep_alive = False

    # ------------------------------------------------------------------ the parser's callbacks

    def on_message_begin(self) -> None:
        """A request begins."""
        self.begin_message()
        super().on_message_begin()

    def begin_message(self) -> None:
        """Count from nothing for the request that begins."""
        self._is_in_body, self._is_receiving = False, True
        self._overhead_bytes = self._body_bytes = 0
        self._first_read_bytes = self._read_bytes
        self._messages += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; after the body it is a trailer, which nobody reads."""
        if not self._is_in_body:
            super().on_header(name, value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._screen()
        before = self.cycle
        self.take()
        cycle = self.cycle
        if before is None or before.response_complete:
            self.running = cycle
        elif len(self.pipeline) <= MAX_PIPELINED // 2:
            # uvicorn reads no more while requests wait, so it would not see that their client left
            self.flow.resume_reading()
        # An answer that leaves before the request is whole ends the connection: what comes later
        # must not be taken for a request.
        self._keeps_alive = cycle.keep_alive
        cycle.keep_alive = False
        self._is_in_body = True

    def take(self) -> None:
        """Let the request be answered."""
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(body)
        self._overhead_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has come in."""
        self._is_receiving = False
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps_alive
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request is answered: the next one's turn, or that of the refusal behind them all."""
        self.running = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if self.running is None and self._refusal is not None and not self.is_closing():
            self._answer(self._refusal)

    # ------------------------------------------------------------------ faults

    def _screen(self) -> None:
        """Refuse a head that is no request to us, whoever sends it."""
        # counting the fields of every request would cost more than all the rest
        if self._first_read_bytes + self._overhead_bytes > MAX_HEAD_BYTES:
            fields = sum(len(name) + len(value) + 4 for name, value in self.headers)
            if fields + len(self.url) > MAX_HEAD_BYTES:
                raise Refusal(431, "the head of the request is too large")
        if len(self.headers) > MAX_FIELDS:
            raise Refusal(431, f"the request has more than {MAX_FIELDS} header fields")
        version = self.parser.get_http_version()
        if version != "1.1":
            self._screen_version(version)
        if not self.url.startswith(b"/"):
            self.url = self._path_of_absolute_form()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise Refusal(400, "too many requests were sent before their answers were read")
        if self.parser.should_upgrade() and self.parser.get_method() not in (b"GET", b"HEAD"):
            raise Refusal(400, "a request with a body cannot change the protocol")

    def _screen_version(self, version: str) -> None:
        if version != "1.0":
            raise Refusal(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        self.expect_100_continue = False  # HTTP/1.0 has no interim answers
        if any(name == b"transfer-encoding" for name, _ in self.headers):
            raise Refusal(400, "a request of HTTP/1.0 cannot be sent in chunks")

    def _path_of_absolute_form(self) -> bytes:
        """`http://HOST/path` is `/path`, if HOST is what the Host field says."""
        for scheme in SCHEMES:
            if self.url[: len(scheme)].lower() == scheme:
                host, slash, rest = self.url[len(scheme) :].partition(b"/")
                named = [value for name, value in self.headers if name == b"host"]
                if slash and [value.lower() for value in named] == [host.lower()]:
                    return slash + rest
                raise Refusal(400, "the request's target and its Host field disagree")
        raise Refusal(400, "the request's target must be a path")

    def refuse(self, refusal: Refusal) -> None:
        """End the connection with this answer, after those that earlier requests wait for."""
        if self._is_refused:
            return
        self._is_refused = True
        cycle = self.cycle
        if self._is_in_body and self._is_receiving:  # the fault is in the newest request's body
            if self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline.popleft()
                self._refusal = refusal
                # it waited for its turn only; uvicorn tells the newest one of a lost connection
                self.cycle = self.pipeline[0][0] if self.pipeline else self.running
            elif cycle.response_started:
                self.close()
            else:
                self._disconnect(cycle)
                self._answer(refusal)
        elif cycle is None or cycle.response_complete:
            self._answer(refusal)
        else:
            self._refusal = refusal

    @staticmethod
    def _disconnect(cycle: Any) -> None:
        if not cycle.response_complete:
            cycle.disconnected = True
        cycle.message_event.set()

    def _answer(self, refusal: Refusal) -> None:
        self._write(refusal)
        self.close()

    def _write(self, refusal: Refusal) -> None:
        error = errors.InvalidInput(refusal.message)
        number = request_id()
        _, body, _ = render_platform(error, number)
        phrase = http.HTTPStatus(refusal.status).phrase
        lines = [f"HTTP/1.1 {refusal.status} {phrase}".encode()]
        lines += [b"%b: %b" % field for field in self.server_state.default_headers]
        lines += [
            b"content-type: application/json",
            b"x-request-id: " + number.encode("latin-1"),
            b"content-length: %d" % len(body),
            b"connection: close",
        ]
        if refusal.status == 503:
            lines.append(b"retry-after: 1")
        is_head = self._messages and self.parser.get_method() == b"HEAD"
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        self._inner.write(head if is_head else head + body)

    # ------------------------------------------------------------------ stalls

    # Nothing is done for a single request: what has changed between two looks tells enough.

    def resume_writing(self) -> None:
        """The client reads again."""
        self._drains += 1
        super().resume_writing()

    def _look_again(self) -> None:
        every = min(self.stall_seconds, self.timeout_keep_alive)
        self._timers = (self.loop.call_later(every, self._look), *self._timers[1:])

    def _look(self) -> None:
        """End a connection that has been idle for too long, or whose client stalls."""
        self._look_again()
        now = self.loop.time()
        is_busy = self._is_receiving or self.running is not None
        if is_busy or self._was_busy or self._messages != self._seen.messages:
            self._idle_since = now
        elif now - self._idle_since >= self.timeout_keep_alive:
            self._inner.close()
        self._was_busy = is_busy
        if now - self._seen.at >= self.stall_seconds - 0.01:
            if not self._end_if_not_read() and not self._is_closing:
                self._end_if_not_sent()
            self._seen = self._see()

    def _see(self) -> _Seen:
        return _Seen(
            self.loop.time(),
            self._messages if self._is_receiving else -1,
            self._messages,
            self._received_bytes,
            self._inner.get_write_buffer_size(),
            self._drains,
        )

    def _end_if_not_read(self) -> bool:
        unread_bytes, before = self._inner.get_write_buffer_size(), self._seen
        is_read = unread_bytes < before.unread_bytes or self._drains != before.drains
        if is_read or not before.unread_bytes:
            return False
        self._inner.abort()
        return True

    def _end_if_not_sent(self) -> None:
        is_same = self._is_receiving and self._messages == self._seen.receiving
        if not is_same or self.flow.read_paused:
            return
        if not self._received_bytes:
            self._inner.close()
        elif not self._is_in_body or (
            self._received_bytes - self._seen.received_bytes < MIN_BYTES_PER_STALL
        ):
            self.refuse(Refusal(408, "the request did not come to its end"))


class _Seen(NamedTuple):
    """A connection as it was at the last look."""

    at: float
    receiving: int
    """Number of the request that was coming in; -1 = none."""
    messages: int
    received_bytes: int
    unread_bytes: int
    drains: int


class _Transport:
    """What uvicorn sees of the connection: its `close` is the protocol's, which may linger."""

    __slots__ = ("_inner", "close", "is_closing", "write", "writelines")

    def __init__(self, inner: asyncio.Transport, protocol: GuardedProtocol) -> None:
        self._inner = inner
        # what every answer needs costs no more than without us
        self.write = inner.write
        self.writelines = inner.writelines
        self.close = protocol.close
        self.is_closing = protocol.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
