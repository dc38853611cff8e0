# pyright: standard
"""Uvicorn's HTTP protocol with the bounds that it lacks, below every door.

A head, its fields and what surrounds a body are bounded before anything knows who calls. Trailers
are dropped, or one could pass for a header. A fault behind requests that wait for their answers
never gets ahead of these answers. A client that stops in mid-request is not waited for.
"""

from __future__ import annotations

import asyncio
import http
from typing import Any

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wherry import errors
from wherry.doors.errors import render_platform
from wherry.telemetry import request_id

MAX_HEAD_BYTES = 64 << 10
"""Most bytes of a head, up to the read that ends it."""
MAX_FIELDS = 100
MAX_CHUNK_BYTES = 8
"""Most bytes around a byte of a chunked body, beside `MAX_HEAD_BYTES`."""
MAX_PIPELINED = 64
STALL_SECONDS = 20.0
MIN_BYTES_PER_STALL = 1024
"""A client in mid-request must send as much in `STALL_SECONDS`."""


class Refusal(Exception):  # noqa: N818 - it is an answer
    """Raised in a parser's callback: the connection ends with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    parser: Any
    """None once the connection is lost; nothing is parsed then."""
    _overhead_bytes = 0
    """Received for the request that is coming in, without its body."""
    _body_bytes = 0
    _is_in_body = False
    _is_receiving = True
    """Whether a request has begun to come in, and has not ended; also before the first one."""
    _messages = 0
    _received_bytes = 0
    _is_refused = False
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and watch for a client that stalls."""
        super().connection_made(transport)
        self._watch_stall()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, unless too much has come already that is no body."""
        if self._is_refused:
            return
        self._received_bytes += len(data)
        if self._overhead_bytes > MAX_HEAD_BYTES + MAX_CHUNK_BYTES * self._body_bytes:
            self._refuse(Refusal(431, "the head of the request is too large"))
            return
        self._overhead_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except HttpParserError as error:
            cause = error.__context__
            known = isinstance(cause, Refusal)
            self._refuse(cause if known else Refusal(400, "this is not valid HTTP"))
        except Exception:  # noqa: BLE001 - HttpParserUpgrade: other protocols are not spoken here
            self.cycle.keep_alive = False

    # ------------------------------------------------------------------ the parser's callbacks

    def on_message_begin(self) -> None:
        """A request begins."""
        self._is_in_body, self._is_receiving = False, True
        self._overhead_bytes = self._body_bytes = 0
        self._messages += 1
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; after the body it is a trailer, which nobody reads."""
        if not self._is_in_body:
            super().on_header(name, value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._is_in_body = True
        if len(self.headers) > MAX_FIELDS:
            raise Refusal(431, f"the request has more than {MAX_FIELDS} header fields")
        if not self.url.startswith(b"/"):
            raise Refusal(400, "the request's target must be a path")
        if len(self.pipeline) >= MAX_PIPELINED:
            raise Refusal(400, "too many requests were sent before their answers were read")
        if self.parser.should_upgrade() and self.parser.get_method() not in (b"GET", b"HEAD"):
            raise Refusal(400, "a request with a body cannot change the protocol")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(body)
        self._overhead_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has come in."""
        self._is_receiving = False
        super().on_message_complete()

    # ------------------------------------------------------------------ faults

    def _refuse(self, refusal: Refusal) -> None:
        """End the connection: at once, or after the answers that earlier requests wait for."""
        self._is_refused = True
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._answer(refusal)
        elif not cycle.more_body:
            cycle.keep_alive = False
        elif self.pipeline or cycle.response_started:
            self.transport.close()
        else:
            self._answer(refusal)

    def _answer(self, refusal: Refusal) -> None:
        error = errors.InvalidInput(refusal.message)
        number = request_id()
        _, body, _ = render_platform(error, number)
        phrase = http.HTTPStatus(refusal.status).phrase
        head = (
            f"HTTP/1.1 {refusal.status} {phrase}\r\ncontent-type: application/json\r\n"
            f"x-request-id: {number}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("latin-1") + body)
        self.transport.close()

    def _watch_stall(self, messages: int = -1, received_bytes: int = 0) -> None:
        """Look at the connection every `STALL_SECONDS`; the arguments say how it was before."""
        is_same = self._is_receiving and messages == self._messages and not self.flow.read_paused
        if is_same and self._received_bytes - received_bytes < MIN_BYTES_PER_STALL:
            if self._received_bytes:
                self._refuse(Refusal(408, "the request did not come to its end"))
            else:
                self.transport.close()
            return
        self._stall_timer = self.loop.call_later(
            STALL_SECONDS,
            self._watch_stall,
            self._messages if self._is_receiving else -1,
            self._received_bytes,
        )
