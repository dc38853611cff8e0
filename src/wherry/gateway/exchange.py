"""One request on its way through a gateway, from admission to its single outcome."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import msgspec

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.frames import Outcome, Payload, Usage
from wherry.gateway.route import DeploymentRoute
from wherry.gateway.track import Track

MAX_UNREAD_BYTES = 4 << 20
"""A client that reads a stream more slowly than this is cut off."""


NOTHING_USED = Usage()

OnEnd = Callable[["errors.WherryError | None"], None]
"""Called once when a unary request is answered (`outcome` and `body` have it), or with its error."""


class Carrier(Protocol):
    """What has the request now: the link to a worker."""

    def cancel(self, exchange: Exchange) -> None:
        """Nobody waits for it any more."""
        ...


class WaitingRoom(Protocol):
    """Where it waits, or came from: the queue of a version."""

    def take_back(self, lost: list[Exchange]) -> None:
        """Their worker is gone."""
        ...

    def note_end(self, exchange: Exchange, now: float) -> None:
        """It has ended, and not together with others."""
        ...


class Answer:
    """A finished unary answer."""

    __slots__ = ("body", "exchange", "outcome")

    def __init__(self, exchange: Exchange, outcome: Outcome, body: bytes | memoryview) -> None:
        self.exchange = exchange
        self.outcome = outcome
        self.body = body


class Exchange:
    """A request that was admitted. It ends exactly once: in `finish`, `answered` or `fail`.

    `settle` is called with it at its end (after `answered` whoever calls that settles it, together
    with others) and must call back when its record is kept; only then does the waiter see the
    answer, so that a final success always has its record.

    Who waits is a coroutine in `answer` (or `first` and `chunks`), or, without a task of its own,
    the function `on_end`.

    Args:
        number: of this gateway's requests.
        request_id: as clients and the journal know it.
        track: what it has in common with others.
        body: as it came.
        size: of the body, bytes.
        now: monotonic.
        settle: see above.
        on_end: see above.
    """

    # What most requests never change is in the class: a request costs what it sets.

    copy: Any = None
    """What shadow copies keep of it; None if it gets none."""
    queue: WaitingRoom | None = None
    lane: Any = None
    """Its place in `queue`, while it waits there."""
    link: Carrier | None = None
    slot: set[Exchange] | None = None
    """Where its deadline is watched."""
    reserved = 0.0
    """Tokens that its key's limit holds for it."""
    sent_at = 0.0
    """Monotonic; to the worker that has it."""
    started_at = 0.0
    was_started = False
    attempts = 0
    """Times it was sent."""
    crashes = 0
    """Times a worker died after it had begun it, and nobody had killed the worker."""
    has_begun = False
    is_done = False
    code = ""
    usage = NOTHING_USED
    outcome: Outcome | None = None
    _is_kept = False
    _error: errors.WherryError | None = None
    _waiter: asyncio.Future[None] | None = None
    _chunks: deque[bytes | memoryview] | None = None
    _unread_bytes = 0

    def __init__(
        self,
        number: int,
        request_id: str,
        track: Track,
        body: Payload,
        size: int,
        now: float,
        settle: Callable[[Exchange, Callable[[Exception | None], None]], None],
        on_end: OnEnd | None = None,
    ) -> None:
        self.number = number
        self.request_id = request_id
        self.track = track
        self.call = track.call
        self.version = track.version
        self.body: Any = body
        """That of the request (a `Payload`); once it is answered, that of the answer."""
        self.size = size
        self.admitted_at = now
        self.deadline = now + track.seconds
        self._settle = settle
        self._on_end = on_end

    @property
    def principal(self) -> Principal:
        """Who calls."""
        return self.track.principal

    @property
    def deployment(self) -> DeploymentRoute:
        """What was called, as it was when the request came."""
        return self.track.deployment

    def change_call(self, **changes: Any) -> None:
        """Say something else to the worker than those that share its track."""
        self.call = msgspec.structs.replace(self.call, **changes)

    # ------------------------------------------------------------------ how it ends

    def finish(self, outcome: Outcome, body: bytes | memoryview) -> None:
        """The worker answered (for a stream: `body` is its closing event)."""
        if not self.is_done:
            self.answered(outcome, body)
            self._settle(self, self.on_kept)

    def answered(self, outcome: Outcome, body: bytes | memoryview) -> None:
        """As `finish`, but whoever calls settles it, together with others."""
        self.is_done = True
        self.code = "ok"
        self.outcome = outcome
        self.usage = outcome.usage
        self.body = body

    def on_kept(self, failure: Exception | None) -> None:
        """The record of an answer is safe, or cannot be made."""
        if failure is not None:
            self._error = _not_recorded()
        else:
            self._is_kept = True
            if self._on_end is not None:
                self._on_end(None)
                return
            if self.call.stream and len(self.body):
                self._queue_chunk(self.body)
        self._tell()

    def fail(self, error: errors.WherryError, usage: Usage | None = None) -> None:
        """It ends with an error."""
        if self.is_done:
            return
        self.is_done = True
        self.code = error.code
        # it may stay in a queue's heap or among a worker's requests for a while
        self.body = b""
        if usage is not None:
            self.usage = usage
        self._settle(self, lambda _: self._reject(error))

    def add_chunk(self, chunk: memoryview) -> bool:
        """More of a stream; False if the client reads too slowly."""
        self.has_begun = True
        self._queue_chunk(chunk)
        self._unread_bytes += len(chunk)
        self._tell()
        return self._unread_bytes <= MAX_UNREAD_BYTES

    def _queue_chunk(self, chunk: bytes | memoryview) -> None:
        if self._chunks is None:
            self._chunks = deque()
        self._chunks.append(chunk)

    def _reject(self, error: errors.WherryError) -> None:
        self._error = error
        self._tell()

    def _tell(self) -> None:
        if self._on_end is not None:
            self._on_end(self._error)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ------------------------------------------------------------------ who waits

    async def answer(self) -> Answer:
        """The answer of a unary request, or its error raised."""
        while not self._is_kept:
            if self._error is not None:
                raise self._error
            await self._change()
        assert self.outcome is not None
        return Answer(self, self.outcome, self.body)

    async def first(self) -> None:
        """Wait until a stream has something to read; an error before that is raised."""
        while not self._chunks and not self._is_kept:
            if self._error is not None:
                raise self._error
            await self._change()

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        """The events of a stream; an error in mid-stream is raised after what was sent."""
        while True:
            if self._chunks:
                if len(self._chunks) == 1:
                    chunk = self._chunks.popleft()
                else:  # what piled up goes out in one write
                    chunk = b"".join(self._chunks)
                    self._chunks.clear()
                self._unread_bytes = 0
                yield chunk
            elif self._is_kept:
                return
            elif self._error is not None:
                raise self._error
            else:
                await self._change()

    async def _change(self) -> None:
        """Wait for anything new."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


def _not_recorded() -> errors.Unavailable:
    return errors.Unavailable(
        "the answer cannot be recorded, so it is not given",
        hint="the operator must free the disk that holds the journal",
        retry_after_seconds=5.0,
    )
