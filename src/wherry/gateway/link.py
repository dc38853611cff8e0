"""A gateway's connection to one worker: hello, requests out, answers in, its death understood."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
import time
from collections.abc import Callable

import msgspec

from wherry import errors, frames
from wherry.frames import Connection, Failure, Frame, Kind, Outcome
from wherry.gateway.exchange import MAX_UNREAD_BYTES, Exchange
from wherry.gateway.route import WorkerRoute
from wherry.telemetry import get_logger

log = get_logger("gateway.link")

MAX_ANSWER_BYTES = 512 << 20
"""A worker is not trusted: it may not make us allocate more."""
OVERDUE_SECONDS = 0.8
"""After its deadline a request's final frame is on its way, or the model does not end."""
SILENT_SECONDS = 5.0
"""Pings are answered by a thread of their own, unless the model holds the interpreter's lock."""

decode_challenge = msgspec.msgpack.Decoder(frames.Challenge).decode
decode_ready = msgspec.msgpack.Decoder(frames.Ready).decode
decode_started = msgspec.msgpack.Decoder(list[int]).decode
decode_outcome = msgspec.msgpack.Decoder(Outcome).decode
decode_failure = msgspec.msgpack.Decoder(Failure).decode
decode_pong = msgspec.msgpack.Decoder(frames.Pong).decode


class WorkerLink:
    """One worker as this gateway sees it.

    Args:
        route: where and who it is.
        gateway: our name, for the worker's log.
        on_room: called when it can take (more) requests.
        on_lost: called once when the connection has ended, with what was in flight.
    """

    def __init__(
        self,
        route: WorkerRoute,
        gateway: str,
        on_room: Callable[[], None],
        on_lost: Callable[[WorkerLink, list[Exchange]], None],
    ) -> None:
        self.route = route
        self.is_ready = False
        self.is_retired = False
        self.last_pong = time.monotonic()
        self.busy_ms = 0
        self._gateway = gateway
        self._on_room = on_room
        self._on_lost = on_lost
        self._credits = 0
        self._credit_bytes = 0
        self._outstanding: dict[int, Exchange] = {}
        self._outstanding_bytes = 0
        self._is_room_planned = False
        self._nonce = secrets.token_bytes(16)
        self._connection: Connection | None = None
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.setblocking(False)
        try:
            await loop.sock_connect(connected, self.route.address)
        except OSError as error:
            connected.close()
            log.warning("worker not reachable", worker=self.route.id, error=str(error))
            self._on_lost(self, [])
            return
        except asyncio.CancelledError:
            connected.close()
            raise
        self._connection = Connection(connected, self._on_frame, self._on_close)
        self._connection.max_frame_bytes = MAX_ANSWER_BYTES
        hello = frames.Hello(frames.VERSION, self._gateway, self._nonce)
        self._connection.send(Kind.HELLO, header=hello)

    # ------------------------------------------------------------------ requests out

    @property
    def load(self) -> int:
        """Requests in flight."""
        return len(self._outstanding)

    def has_room(self, size: int) -> bool:
        """Whether a request of so many bytes may be sent now."""
        if not self.is_ready or self.is_retired or len(self._outstanding) >= self._credits:
            return False
        # one large body may always pass alone
        return not self._outstanding or self._outstanding_bytes + size <= self._credit_bytes

    def send(self, exchange: Exchange) -> None:
        """Send a request; its final frame returns the credit, even if nobody waits any more."""
        assert self._connection is not None
        exchange.link = self
        exchange.attempts += 1
        exchange.was_started = False
        remaining = exchange.deadline - time.monotonic()
        exchange.call.deadline_ms = max(1, int(remaining * 1000))
        self._outstanding[exchange.number] = exchange
        self._outstanding_bytes += exchange.size
        self._connection.send(Kind.REQUEST, exchange.number, exchange.call, exchange.body)

    def cancel(self, exchange: Exchange) -> None:
        """Tell the worker that nobody waits for it."""
        if self._connection is not None and exchange.number in self._outstanding:
            self._connection.send(Kind.CANCEL, exchange.number, now=True)

    def find_hang(self, now: float, patience_seconds: float) -> str:
        """Why the worker must be killed: it is silent, or runs what should long have ended.

        Args:
            now: monotonic.
            patience_seconds: how long a request may run at least.
        """
        silent = now - self.last_pong
        if self._outstanding and silent > max(SILENT_SECONDS, patience_seconds):
            return f"it said nothing for {silent:.0f} s while it had requests"
        for exchange in self._outstanding.values():
            late = now - exchange.deadline
            if late < OVERDUE_SECONDS or not exchange.was_started:
                continue
            if now - exchange.started_at > patience_seconds:
                return f"a request ran {late:.1f} s beyond its deadline"
        return ""

    def forgive_silence(self) -> None:
        """This process was paused: that nothing was heard proves nothing."""
        self.last_pong = time.monotonic()

    def ping(self) -> None:
        """Ask whether the executor moves."""
        if self.is_ready and self._connection is not None:
            self._connection.send(Kind.PING)

    def retire(self) -> None:
        """Send nothing more; close when what is in flight has ended."""
        self.is_retired = True
        if self._connection is None:
            self._connecting.cancel()
        else:
            self._close_if_retired()

    def close(self) -> None:
        """Close now."""
        self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()

    # ------------------------------------------------------------------ answers in

    def _on_frame(self, frame: Frame) -> None:
        # a message that cannot be handled costs this connection, never the loop
        try:
            self._handle(frame)
        except Exception:
            log.exception("bad frame from worker", worker=self.route.id, kind=frame.kind)
            if self._connection is not None:
                self._connection.close()

    def _handle(self, frame: Frame) -> None:
        kind = frame.kind
        if kind == Kind.CHUNK:
            exchange = self._outstanding.get(frame.request_id)
            if exchange is not None and not exchange.is_done:
                self._begin(exchange)
                if not exchange.add_chunk(frame.payload):
                    self.cancel(exchange)
                    exchange.fail(_too_slow())
        elif kind == Kind.RESULT or kind == Kind.END:
            outcome = decode_outcome(frame.header)  # first: if it is garbled, it has no end yet
            exchange = self._take(frame.request_id)
            if exchange is not None:
                self._begin(exchange)
                exchange.finish(outcome, frame.payload)
        elif kind == Kind.STARTED:
            for number in decode_started(frame.header):
                exchange = self._outstanding.get(number)
                if exchange is not None:
                    self._begin(exchange)
        elif kind == Kind.FAILURE:
            self._on_failure(frame)
        elif kind == Kind.PONG:
            self.last_pong = time.monotonic()
            self.busy_ms = decode_pong(frame.header).busy_ms
        elif not self.is_ready:
            self._on_hello(frame)

    def _on_hello(self, frame: Frame) -> None:
        assert self._connection is not None
        if frame.kind == Kind.CHALLENGE:
            theirs = decode_challenge(frame.header)
            route = self.route
            expected = frames.prove(route.token, "worker", route.id, self._nonce, theirs.nonce)
            if theirs.version != frames.VERSION or theirs.worker != route.id:
                raise ValueError(f"unexpected worker {theirs.worker!r}")
            if not hmac.compare_digest(theirs.proof, expected):
                raise ValueError("the worker does not know its token")
            proof = frames.prove(route.token, "gateway", route.id, theirs.nonce, self._nonce)
            self._connection.send(Kind.PROOF, header=frames.Proof(proof))
        elif frame.kind == Kind.READY:
            ready = decode_ready(frame.header)
            self._credits, self._credit_bytes = ready.credits, ready.credit_bytes
            self.is_ready = True
            self._on_room()

    def _on_failure(self, frame: Frame) -> None:
        failure = decode_failure(frame.header)
        exchange = self._take(frame.request_id)
        if exchange is None:
            return
        if failure.code == frames.DRAINING:
            self.retire()
            if not exchange.is_done:
                # not executed there: the queue gives it to another
                self._on_lost_requests([exchange])
            return
        error = errors.from_code(
            failure.code, failure.message, failure.hint, failure.retry_after_seconds
        )
        error.param = failure.param
        exchange.fail(error, failure.usage)

    def _on_lost_requests(self, lost: list[Exchange]) -> None:
        assert lost[0].queue is not None
        lost[0].queue.take_back(lost)

    def _begin(self, exchange: Exchange) -> None:
        if not exchange.was_started:
            exchange.was_started = True
            exchange.started_at = time.monotonic()

    def _take(self, number: int) -> Exchange | None:
        """Return the credit of a request; it may have been answered (late) otherwise."""
        exchange = self._outstanding.pop(number, None)
        if exchange is not None:
            self._outstanding_bytes -= exchange.size
            if not self._is_room_planned:
                self._is_room_planned = True
                asyncio.get_running_loop().call_soon(self._tell_room)
            if self.is_retired:
                self._close_if_retired()
        return exchange

    def _tell_room(self) -> None:
        self._is_room_planned = False
        self._on_room()

    def _close_if_retired(self) -> None:
        if not self._outstanding and self._connection is not None:
            asyncio.get_running_loop().call_soon(self._connection.close)

    def _on_close(self) -> None:
        lost = list(self._outstanding.values())
        if self._connection is not None and not self._connection.reached_end:
            # we broke off: that no STARTED was read says nothing of what the worker has begun
            for exchange in lost:
                self._begin(exchange)
        self._outstanding.clear()
        self._outstanding_bytes = 0
        self.is_ready = False
        self._on_lost(self, lost)


def _too_slow() -> errors.TooLarge:
    return errors.TooLarge(
        f"the client reads too slowly: {MAX_UNREAD_BYTES >> 20} MiB of the stream wait for it",
        hint="read faster, or ask for less at once",
    )
