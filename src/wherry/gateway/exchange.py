"""One request on its way through a gateway, from admission to its single outcome."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.frames import Call, Outcome, Usage
from wherry.gateway.route import DeploymentRoute, VersionRoute

MAX_UNREAD_BYTES = 4 << 20
"""A client that reads a stream more slowly than this is cut off."""


NOTHING_USED = Usage()

OnEnd = Callable[["Answer | None", "errors.WherryError | None"], None]
"""Called once with the answer of a unary request, or with its error."""


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

    def note_end(self, exchange: Exchange) -> None:
        """It has ended."""
        ...


class Answer:
    """A finished unary answer."""

    __slots__ = ("body", "exchange", "outcome")

    def __init__(self, exchange: Exchange, outcome: Outcome, body: bytes | memoryview) -> None:
        self.exchange = exchange
        self.outcome = outcome
        self.body = body


class Exchange:
    """A request that was admitted. It ends exactly once, in `finish` or `fail`.

    `settle` is called with it at its end and must call back when its record is kept; only then
    does the waiter see the answer, so that a final success always has its record.

    Who waits is a coroutine in `answer` (or `first` and `chunks`), or, without a task of its own,
    the function `on_end`.
    """

    __slots__ = (
        "_answer",
        "_chunks",
        "_closing_event",
        "_error",
        "_on_end",
        "_settle",
        "_unread_bytes",
        "_waiter",
        "admission",
        "admitted_at",
        "attempts",
        "body",
        "call",
        "code",
        "copy",
        "crashes",
        "deadline",
        "deployment",
        "door",
        "has_begun",
        "is_done",
        "lane",
        "link",
        "number",
        "outcome",
        "pinned",
        "principal",
        "queue",
        "size",
        "started_at",
        "sticky",
        "usage",
        "version",
        "was_started",
    )

    def __init__(
        self,
        *,
        number: int,
        call: Call,
        body: bytes | memoryview,
        deadline: float,
        principal: Principal,
        door: str,
        deployment: DeploymentRoute,
        pinned: str = "",
        sticky: str = "",
        settle: Callable[[Exchange, Callable[[Exception | None], None]], None],
        on_end: OnEnd | None = None,
    ) -> None:
        self.number = number
        self.call = call
        self.body = body
        self.size = len(body)
        self.deadline = deadline
        self.principal = principal
        self.door = door
        self.deployment = deployment
        self.pinned = pinned
        """The version the client asked for; no other may answer."""
        self.sticky = sticky
        """Chooses among several versions; see `wherry.gateway.route.sticky_of`."""
        self.copy: Any = None
        """What shadow copies keep of it; None if it gets none."""
        self.version: VersionRoute | None = None
        self.queue: WaitingRoom | None = None
        self.lane: Any = None
        """Its place in `queue`, while it waits there."""
        self.link: Carrier | None = None
        self.admission: Any = None
        self.admitted_at = time.monotonic()
        self.started_at = 0.0
        self.was_started = False
        self.attempts = 0
        """Times it was sent."""
        self.crashes = 0
        """Times a worker died after it had begun it, and nobody had killed the worker."""
        self.has_begun = False
        self.is_done = False
        self.code = ""
        self.usage = NOTHING_USED
        self.outcome: Outcome | None = None
        self._settle = settle
        self._on_end = on_end
        self._closing_event: bytes | memoryview = b""
        self._answer: Answer | None = None
        self._error: errors.WherryError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: deque[bytes | memoryview] | None = None
        self._unread_bytes = 0

    # ------------------------------------------------------------------ how it ends

    def finish(self, outcome: Outcome, body: bytes | memoryview) -> None:
        """The worker answered (for a stream: `body` is its closing event)."""
        if self.is_done:
            return
        self._end("ok")
        self.outcome = outcome
        self.usage = outcome.usage
        self._closing_event = body
        self._settle(self, self._on_kept)

    def _on_kept(self, failure: Exception | None) -> None:
        """The record of an answer is safe, or cannot be made."""
        body, outcome = self._closing_event, self.outcome
        assert outcome is not None
        if failure is not None:
            self._reject(_not_recorded())
            return
        if self.call.stream and len(body):
            self._queue_chunk(body)
        self._answer = Answer(self, outcome, body)
        self._tell()

    def fail(self, error: errors.WherryError, usage: Usage | None = None) -> None:
        """It ends with an error."""
        if self.is_done:
            return
        self._end(error.code)
        if usage is not None:
            self.usage = usage
        self._settle(self, lambda _: self._reject(error))

    def _end(self, code: str) -> None:
        self.is_done = True
        self.code = code
        # it may stay in a queue's heap or among a worker's requests for a while
        self.body = b""

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
            self._on_end(self._answer, self._error)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ------------------------------------------------------------------ who waits

    async def answer(self) -> Answer:
        """The answer of a unary request, or its error raised."""
        while self._answer is None:
            if self._error is not None:
                raise self._error
            await self._change()
        return self._answer

    async def first(self) -> None:
        """Wait until a stream has something to read; an error before that is raised."""
        while not self._chunks and self._answer is None:
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
            elif self._answer is not None:
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
