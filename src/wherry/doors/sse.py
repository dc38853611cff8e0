"""Server-sent events that live long: bounded in number, with heartbeats, ended when they should be.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.doors.route import Inquiry, Response
from wherry.gateway.authenticate import Authenticator
from wherry.storage.database import Database

MAX_STREAMS = 500
"""Of one gateway."""
MAX_STREAMS_PER_TEAM = 250
MAX_STREAMS_PER_KEY = 50
HEARTBEAT_SECONDS = 15.0
CHECK_SECONDS = 0.5
"""How often a stream looks whether its key still holds, and for news it is not woken for."""
POLL_SECONDS = 0.25
HEARTBEAT = b": beat\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

Produce = Callable[[], Awaitable[tuple[list[bytes], bool]]]
"""Gives finished events that are new since the last call, and whether they are the last."""


def format_event(data: bytes, event_id: object = None) -> bytes:
    """One event; `data` is JSON, so it has no line breaks."""
    head = b"" if event_id is None else b"id: %s\n" % str(event_id).encode()
    return head + b"data: " + data + b"\n\n"


class Revisions:
    """Wakes streams when a revision in the database grows; polls only while one listens."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._values: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def listening(self) -> Generator[None]:
        """Keep the poll running."""
        self._listeners += 1
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._poll())
        try:
            yield
        finally:
            self._listeners -= 1

    @property
    def changed(self) -> asyncio.Event:
        """The event that the next change sets; another one afterwards."""
        return self._changed

    def value(self, name: str) -> int:
        """The revision as last seen; -1 before the first look."""
        return self._values.get(name, 0) if self._values else -1

    async def _poll(self) -> None:
        while self._listeners:
            try:
                values = await asyncio.to_thread(self._read)
            except errors.Unavailable:
                values = self._values  # the streams wait with us
            if values != self._values:
                self._values = values
                self._changed.set()
                self._changed = asyncio.Event()
            await asyncio.sleep(POLL_SECONDS)

    def _read(self) -> dict[str, int]:
        return self._database.revisions() or {"": 0}


class Streams:
    """All open streams of one gateway.

    Args:
        authenticator: says whether a key still holds.
        database: whose revisions wake the streams.
    """

    def __init__(self, authenticator: Authenticator, database: Database) -> None:
        self._authenticator = authenticator
        self.revisions = Revisions(database)
        self._by_key: Counter[tuple[str, str]] = Counter()
        """By team and key."""
        self._closing = asyncio.Event()

    def respond(self, inquiry: Inquiry, produce: Produce) -> Response:
        """A stream of what `produce` gives.

        It ends with that, when the client leaves, and when the key does not hold any more.

        Raises:
            Overloaded: there are too many streams.
        """
        if inquiry.method == "HEAD":
            return Response(content_type="text/event-stream", headers=dict(HEADERS))
        team_id, key_id = inquiry.principal.team_id, inquiry.principal.key_id
        of_team = sum(count for (team, _), count in self._by_key.items() if team == team_id)
        if (
            self._by_key.total() >= MAX_STREAMS
            or of_team >= MAX_STREAMS_PER_TEAM
            or self._by_key[team_id, key_id] >= MAX_STREAMS_PER_KEY
            or self._closing.is_set()
        ):
            raise errors.Overloaded(
                "too many event streams are open", hint="close some", retry_after_seconds=5.0
            )
        return Response(
            self._run(inquiry, produce), content_type="text/event-stream", headers=dict(HEADERS)
        )

    def close(self) -> None:
        """End all streams: the gateway stops."""
        self._closing.set()

    async def _run(self, inquiry: Inquiry, produce: Produce) -> AsyncIterator[bytes]:
        principal = inquiry.principal
        place = (principal.team_id, principal.key_id)
        self._by_key[place] += 1
        gone = asyncio.ensure_future(inquiry.wait_for_disconnect())
        closing = asyncio.ensure_future(self._closing.wait())
        next_beat = time.monotonic() + HEARTBEAT_SECONDS
        try:
            yield b"retry: 1000\n\n"
            with self.revisions.listening():
                while not gone.done() and not closing.done() and self._holds(principal):
                    changed = self.revisions.changed
                    events, is_over = await _try(produce)
                    if events:
                        next_beat = time.monotonic() + HEARTBEAT_SECONDS
                        yield b"".join(events)
                    elif time.monotonic() >= next_beat:
                        next_beat = time.monotonic() + HEARTBEAT_SECONDS
                        yield HEARTBEAT
                    if is_over:
                        return
                    await self._wait(changed, gone, closing)
        finally:
            gone.cancel()
            closing.cancel()
            self._by_key[place] -= 1
            if self._by_key[place] <= 0:
                del self._by_key[place]

    def _holds(self, principal: Principal) -> bool:
        return self._authenticator.is_current(principal)

    async def _wait(
        self, changed: asyncio.Event, gone: asyncio.Future[None], closing: asyncio.Future[Any]
    ) -> None:
        waiting = asyncio.ensure_future(changed.wait())
        try:
            await asyncio.wait(
                [waiting, gone, closing],
                timeout=CHECK_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            waiting.cancel()


async def _try(produce: Produce) -> tuple[list[bytes], bool]:
    try:
        return await produce()
    except errors.Unavailable:
        return [], False  # the database is away: wait for it
    except errors.WherryError:
        return [], True  # what the stream was about is gone; asking again will say so
