"""A gateway's connection to one worker: hello, requests out, answers in, its death understood."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from wherry import errors, frames
from wherry.frames import Call, Connection, Failure, Frame, Kind, Outcome, Usage
from wherry.gateway.exchange import MAX_UNREAD_BYTES, Exchange
from wherry.gateway.route import WorkerRoute
from wherry.telemetry import get_logger

log = get_logger("gateway.link")

MAX_ANSWER_BYTES = 512 << 20
"""A worker is not trusted: it may not make us allocate more."""
GATHERED_BYTES = 8 << 10
"""Larger requests travel in frames of their own."""
OVERDUE_SECONDS = 0.8
"""After its deadline a request's final frame is on its way, or the model does not end."""
ONE_ROW = Usage(rows=1)
SILENT_SECONDS = 5.0
"""Pings are answered by a thread of their own, unless the model holds the interpreter's lock."""

decode_challenge = msgspec.msgpack.Decoder(frames.Challenge).decode
decode_ready = msgspec.msgpack.Decoder(frames.Ready).decode
decode_started = msgspec.msgpack.Decoder(list[int]).decode
decode_outcome = msgspec.msgpack.Decoder(Outcome).decode
decode_failure = msgspec.msgpack.Decoder(Failure).decode
decode_batch = msgspec.msgpack.Decoder(frames.Batch).decode
decode_parts = msgspec.msgpack.Decoder(list[frames.Part]).decode
decode_table = msgspec.msgpack.Decoder(frames.Table).decode
decode_rows = msgspec.msgpack.Decoder(list[frames.Row]).decode
decode_presume = msgspec.msgpack.Decoder(bool).decode
decode_pong = msgspec.msgpack.Decoder(frames.Pong).decode


class WorkerLink:
    """One worker as this gateway sees it.

    Args:
        route: where and who it is.
        gateway: our name, for the worker's log.
        on_answers: told of answers of one batch on one track, and how many microseconds it ran.
        on_news: called when requests have ended there, or it can take the first ones.
        on_lost: called once when the connection has ended, with what was in flight.
    """

    def __init__(
        self,
        route: WorkerRoute,
        gateway: str,
        on_answers: Callable[[list[Exchange], int], None],
        on_news: Callable[[], None],
        on_lost: Callable[[WorkerLink, list[Exchange]], None],
    ) -> None:
        self.route = route
        self.is_ready = False
        self.is_retired = False
        self.last_pong = time.monotonic()
        self.busy_ms = 0
        self._gateway = gateway
        self._on_answers = on_answers
        self._on_news = on_news
        self._on_lost = on_lost
        self._credits = 0
        self._credit_bytes = 0
        self.outstanding: dict[int, Exchange] = {}
        """Requests in flight, by number."""
        self._outstanding_bytes = 0
        self._has_news = False
        self._gathered: list[tuple[int, int, bytes | memoryview]] = []
        """Small requests that share a call and leave together, at the end of this loop tick."""
        self._gathered_call: Call | None = None
        self._is_gathering = False
        self._are_alone = False
        """Whether requests come one by one lately: gathering them would only delay them."""
        self._presumes = False
        """Whether what was sent counts as begun (see `wherry.frames`)."""
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
        self._connection = Connection(connected, self._on_frame, self._on_close, self._end_read)
        self._connection.max_frame_bytes = MAX_ANSWER_BYTES
        hello = frames.Hello(frames.VERSION, self._gateway, self._nonce)
        self._connection.send(Kind.HELLO, header=hello)

    # ------------------------------------------------------------------ requests out

    @property
    def load(self) -> int:
        """Requests in flight."""
        return len(self.outstanding)

    @property
    def spare_credits(self) -> int:
        """How many more requests it may have that nobody waits for.

        A worker gives credits for twice what it runs at once, or more. While it has no live request,
        background work fills three quarters of what it runs at once, so that one which comes finds a
        place or a short wait; beside live requests there is one, so that it does not stop for ever.
        """
        if not self.is_ready or self.is_retired:
            return 0
        background = sum(each.track.is_background for each in self.outstanding.values())
        is_idle = background == len(self.outstanding)
        return (max(1, self._credits * 3 // 8) if is_idle else 1) - background

    def has_room(self, size: int) -> bool:
        """Whether a request of so many bytes may be sent now."""
        if not self.is_ready or self.is_retired or len(self.outstanding) >= self._credits:
            return False
        # one large body may always pass alone
        return not self.outstanding or self._outstanding_bytes + size <= self._credit_bytes

    def send(self, exchange: Exchange, now: float) -> None:
        """Send a request; its final frame returns the credit, even if nobody waits any more."""
        assert self._connection is not None
        exchange.link = self
        exchange.attempts += 1
        exchange.was_started = False
        exchange.sent_at = now
        left_ms = int((exchange.deadline - now) * 1000)
        if left_ms < 1:
            left_ms = 1
        self.outstanding[exchange.number] = exchange
        self._outstanding_bytes += exchange.size
        call, track = exchange.call, exchange.track
        if track.is_lasting and call is track.call and exchange.size <= GATHERED_BYTES:
            if call is not self._gathered_call:
                self._send_gathered()
                self._gathered_call = call
            self._gathered.append((exchange.number, left_ms, exchange.body))
            if self._are_alone and len(self.outstanding) == 1:
                self._end_gathering()
            elif not self._is_gathering:
                self._is_gathering = True
                asyncio.get_running_loop().call_soon(self._end_gathering)
        else:
            self._send_gathered()
            call.deadline_ms = left_ms
            self._connection.send(Kind.REQUEST, exchange.number, call, exchange.body)

    def has_room_for(self, exchanges: Sequence[Exchange]) -> bool:
        """Whether all of these may be sent now, and are small enough to share a frame."""
        if not self.is_ready or self.is_retired:
            return False
        if len(self.outstanding) + len(exchanges) > self._credits:
            return False
        size = 0
        for exchange in exchanges:
            if exchange.size > GATHERED_BYTES:
                return False
            size += exchange.size
        return self._outstanding_bytes + size <= self._credit_bytes

    def send_many(self, exchanges: Sequence[Exchange], now: float) -> None:
        """Send requests of one lasting track for which there is room, in one frame, at once."""
        assert self._connection is not None
        self._send_gathered()
        left_ms = max(1, int((exchanges[0].deadline - now) * 1000))
        outstanding, size = self.outstanding, 0
        pieces: list[tuple[int, int, Any]] = []
        for exchange in exchanges:
            exchange.link = self
            exchange.attempts = 1
            exchange.sent_at = now
            size += exchange.size
            outstanding[exchange.number] = exchange
            pieces.append((exchange.number, left_ms, exchange.body))
        self._outstanding_bytes += size
        self._are_alone = False
        call = exchanges[0].call
        self._connection.send(Kind.REQUESTS, 0, call, frames.encode(pieces), now=True)

    def _end_gathering(self) -> None:
        self._is_gathering = False
        self._are_alone = len(self.outstanding) == 1
        self._send_gathered()
        if self._connection is not None:
            self._connection.flush()

    def _send_gathered(self) -> None:
        if self._gathered and self._connection is not None:
            call, pieces = self._gathered_call, frames.encode(self._gathered)
            self._gathered.clear()
            self._connection.send(Kind.REQUESTS, 0, call, pieces)
        self._gathered_call = None

    def cancel(self, exchange: Exchange) -> None:
        """Tell the worker that nobody waits for it."""
        if self._connection is not None and exchange.number in self.outstanding:
            self._send_gathered()  # it may be among these
            self._connection.send(Kind.CANCEL, exchange.number, now=True)

    def find_hang(self, now: float, patience_seconds: float) -> str:
        """Why the worker must be killed: it is silent, or runs what should long have ended.

        Args:
            now: monotonic.
            patience_seconds: how long a request may run at least.
        """
        silent = now - self.last_pong
        if self.outstanding and silent > max(SILENT_SECONDS, patience_seconds):
            return f"it said nothing for {silent:.0f} s while it had requests"
        for exchange in self.outstanding.values():
            late = now - exchange.deadline
            is_begun = exchange.was_started or (self._presumes and not exchange.call.alone)
            if late < OVERDUE_SECONDS or not is_begun:
                continue
            begun_at = exchange.started_at if exchange.was_started else exchange.sent_at
            if now - begun_at > patience_seconds:
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
        self._send_gathered()
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
            exchange = self.outstanding.get(frame.request_id)
            if exchange is not None and not exchange.is_done:
                self._begin(exchange)
                if not exchange.add_chunk(frame.payload):
                    self.cancel(exchange)
                    exchange.fail(_too_slow())
        elif kind == Kind.ROWS:
            self._on_rows(frame)
        elif kind == Kind.RESULTS:
            self._on_results(frame)
        elif kind == Kind.RESULT or kind == Kind.END:
            outcome = decode_outcome(frame.header)  # first: if it is garbled, it has no end yet
            exchange = self._take(frame.request_id)
            if exchange is not None:
                self._begin(exchange)
                exchange.finish(outcome, frame.payload)
        elif kind == Kind.STARTED:
            for number in decode_started(frame.header):
                exchange = self.outstanding.get(number)
                if exchange is not None:
                    self._begin(exchange)
        elif kind == Kind.PRESUME:
            self._presumes = decode_presume(frame.header)
        elif kind == Kind.FAILURE:
            self._on_failure(frame)
        elif kind == Kind.PONG:
            self.last_pong = time.monotonic()
            self.busy_ms = decode_pong(frame.header).busy_ms
        elif not self.is_ready:
            self._on_hello(frame)

    def _on_results(self, frame: Frame) -> None:
        run_us = decode_batch(frame.header).run_us
        parts = decode_parts(frame.payload)  # whole, before anything ends: see above
        self._end_together(
            [
                (number, Outcome(usage, queued_us=queued_us, run_us=run_us), body)
                for number, usage, queued_us, body in parts
            ],
            run_us,
        )

    def _on_rows(self, frame: Frame) -> None:
        run_us = decode_table(frame.header).run_us
        rows = decode_rows(frame.payload)
        outcome = Outcome(ONE_ROW, run_us=run_us)
        self._end_together([(number, outcome, body) for number, body in rows], run_us)

    def _end_together(self, answers: list[tuple[int, Outcome, memoryview]], run_us: int) -> None:
        """Answers of one batch; those on one track are accounted for together."""
        started_at = time.monotonic() - run_us / 1e6
        outstanding, track = self.outstanding, None
        together: list[Exchange] = []
        for number, outcome, body in answers:
            exchange = outstanding.pop(number, None)
            if exchange is None:
                continue
            self._outstanding_bytes -= exchange.size
            if exchange.is_done:
                continue
            if not exchange.was_started:
                exchange.was_started = True
                admitted_at = exchange.admitted_at
                exchange.started_at = started_at if started_at > admitted_at else admitted_at
            if exchange.call is not exchange.track.call:  # it is not like the others any more
                exchange.finish(outcome, body)
                continue
            if exchange.track is not track:
                if together:
                    self._on_answers(together, run_us)
                together, track = [], exchange.track
            exchange.answered(outcome, body)
            together.append(exchange)
        self._has_news = True
        if self.is_retired:
            self._close_if_retired()
        if together:
            self._on_answers(together, run_us)

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
            self.is_ready = self._has_news = True

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
        exchange = self.outstanding.pop(number, None)
        if exchange is not None:
            self._outstanding_bytes -= exchange.size
            self._has_news = True
            if self.is_retired:
                self._close_if_retired()
        return exchange

    def _end_read(self) -> None:
        """All that the worker had said is heard: records leave, and what waits has its turn."""
        if self._has_news:
            self._has_news = False
            self._on_news()

    def _close_if_retired(self) -> None:
        if not self.outstanding and self._connection is not None:
            asyncio.get_running_loop().call_soon(self._connection.close)

    def _on_close(self) -> None:
        lost = list(self.outstanding.values())
        is_cut = self._connection is not None and not self._connection.reached_end
        if is_cut or self._presumes:
            # we broke off, or it spared itself STARTED: that none was read says nothing
            unsent = {number for number, _, _ in self._gathered}
            for exchange in lost:
                # of one that runs alone the worker tells always
                if exchange.number not in unsent and (is_cut or not exchange.call.alone):
                    self._begin(exchange)
        self._gathered.clear()
        self.outstanding.clear()
        self._outstanding_bytes = 0
        self.is_ready = False
        self._on_lost(self, lost)


def _too_slow() -> errors.TooLarge:
    return errors.TooLarge(
        f"the client reads too slowly: {MAX_UNREAD_BYTES >> 20} MiB of the stream wait for it",
        hint="read faster, or ask for less at once",
    )
