"""Responses whose clients do not wait for them: they run here, and end up in the store.

A run belongs to the gateway that began it and says so by a lease. If the gateway ends, so does the
run, and the lease runs out: then whoever reads the response finds that it has failed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from functools import partial

import msgspec

from wherry import errors
from wherry.doors.errors import status_of
from wherry.gateway.admit import Inbound
from wherry.gateway.exchange import Exchange
from wherry.gateway.predict import Gateway
from wherry.models.codecs.responses_turn import (
    Turn,
    TurnFailure,
    TurnReader,
    read_turn,
    with_outcome,
)
from wherry.models.tasks.packing import pack
from wherry.storage.responses import ResponseStore
from wherry.telemetry import get_logger

log = get_logger("doors")

LOOK_SECONDS = 1.0
"""How often leases are renewed, and cancellations by other gateways seen."""
MAX_RUNS_PER_TEAM = 100
"""Of one gateway."""
MAX_EVENT_BYTES = 16 << 20
"""Events of one response: they can be read again, so they are kept."""


class Record(msgspec.Struct, array_like=True):
    """What the store holds of a response."""

    turn: bytes
    """A packed `Turn`."""
    events: bytes = b""
    """As they were sent, of one that ran in the background."""

    def read_turn(self) -> Turn:
        """The turn itself."""
        return read_turn(self.turn)


class Run:
    """One response that is being made, and its events so far.

    Args:
        response_id: of the response.
        team_id: whose it is.
        begun: the turn as it was announced.
        exchange: the request at its worker.
    """

    def __init__(self, response_id: str, team_id: str, begun: bytes, exchange: Exchange) -> None:
        self.id = response_id
        self.team_id = team_id
        self.exchange = exchange
        self.is_over = False
        self._begun = begun
        self._events: list[bytes] = []
        self._size = 0
        self._turn: Turn | None = None
        self._reader = TurnReader()
        self._changed = asyncio.Event()

    def take(self, chunk: bytes | memoryview) -> None:
        """More of the stream; `TooLarge` if it does not end."""
        for piece in self._reader.feed(chunk):
            self._turn = piece.turn or self._turn
            self.add(piece.events)

    def add(self, events: bytes) -> None:
        """More events, for those who follow."""
        self._size += len(events)
        if self._size > MAX_EVENT_BYTES:
            raise errors.TooLarge(f"the response has more than {MAX_EVENT_BYTES} bytes of events")
        self._events += split_events(events)
        self._tell()

    def end(self, failure: errors.WherryError | None) -> tuple[str, bytes, str]:
        """State, record and error as they are to be stored."""
        turn = self._turn
        if failure is None and turn is not None and turn.status != "in_progress":
            return turn.status, self._record(pack(turn)), ""
        if isinstance(failure, errors.Cancelled):
            return "cancelled", self._record(self._begun), ""
        error = failure_of(failure or errors.Internal("the worker did not say how it ended"))
        self._tell_failure(error)
        return "failed", self._record(self._begun), msgspec.json.encode(error).decode()

    def close(self) -> None:
        """Its end is stored: those who follow may read to the end."""
        self.is_over = True
        self._tell()

    async def follow(self, after: int) -> AsyncGenerator[bytes]:
        """The events behind number `after`, until the end."""
        position = after + 1
        while True:
            changed, is_over = self._changed, self.is_over
            if position < len(self._events):
                news = self._events[position:]
                position += len(news)
                yield b"".join(news)
            elif is_over:
                return
            else:
                await changed.wait()

    def _record(self, turn: bytes) -> bytes:
        return pack(Record(turn, b"".join(self._events)))

    def _tell_failure(self, error: TurnFailure) -> None:
        response = with_outcome(read_turn(self._begun).response, "failed", error)
        self._events.append(failed_event(len(self._events), response))

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class BackgroundRuns:
    """All runs of one gateway.

    Args:
        gateway: what they run through.
        store: where they end up.
    """

    def __init__(self, gateway: Gateway, store: ResponseStore) -> None:
        self._gateway = gateway
        self._store = store
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    def check_room(self, team_id: str) -> None:
        """Raise `QuotaExceeded` if the team has too many runs, `Unavailable` if none may begin."""
        if self._is_closing:
            raise errors.Unavailable("the gateway is stopping", hint="repeat in a moment")
        if Counter(run.team_id for run in self._runs.values())[team_id] >= MAX_RUNS_PER_TEAM:
            raise errors.QuotaExceeded(
                f"the team has {MAX_RUNS_PER_TEAM} background responses running",
                hint="wait for some, or cancel them",
                retry_after_seconds=5.0,
            )

    def start(self, inbound: Inbound, response_id: str, begun: bytes) -> Run:
        """Let a stored response run, whoever waits for it.

        Raises:
            WherryError: it cannot run.
        """
        team_id = inbound.principal.team_id
        self.check_room(team_id)  # others may have begun meanwhile
        run = Run(response_id, team_id, begun, self._gateway.predict(inbound))
        self._runs[response_id] = run
        task = asyncio.get_running_loop().create_task(self._finish(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    def find(self, response_id: str) -> Run | None:
        """A run of this gateway."""
        return self._runs.get(response_id)

    def cancel(self, response_id: str) -> None:
        """Stop a run, if it is this gateway's."""
        run = self._runs.get(response_id)
        if run is not None:
            self._gateway.cancel(run.exchange)

    async def run(self) -> None:
        """Renew leases and see what was cancelled elsewhere, until cancelled itself."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self._runs:
                continue
            try:
                for response_id in await asyncio.to_thread(self._store.renew, list(self._runs)):
                    self.cancel(response_id)
            except errors.Unavailable as error:
                log.warning("cannot renew background responses", error=error.message)

    async def close(self) -> None:
        """The gateway stops: its runs fail, and are stored so."""
        self._is_closing = True
        for run in list(self._runs.values()):
            if run.exchange.link is not None:
                run.exchange.link.cancel(run.exchange)
            run.exchange.fail(errors.Unavailable("the gateway was stopped", hint="send it again"))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _finish(self, run: Run) -> None:
        try:
            state, record, error = run.end(await self._read(run))
            await asyncio.to_thread(partial(self._store.finish, run.id, state, record, error))
        except errors.WherryError as error:
            # its lease runs out, so it will be found to have failed
            log.warning("cannot store a background response", id=run.id, error=error.message)
        finally:
            self._runs.pop(run.id, None)
            run.close()

    async def _read(self, run: Run) -> errors.WherryError | None:
        """Take the stream to its end; what went wrong, if anything did."""
        try:
            async for chunk in run.exchange.chunks():
                run.take(chunk)
        except errors.WherryError as error:
            self._gateway.cancel(run.exchange)
            return error
        return None


def failure_of(error: errors.WherryError) -> TurnFailure:
    """`error` of a response, by the few codes that clients know."""
    status = status_of(error)
    if status == 429:
        return TurnFailure("rate_limit_exceeded", error.text)
    return TurnFailure("invalid_prompt" if status < 500 else "server_error", error.text)


def failed_event(number: int, response: bytes) -> bytes:
    """The last event of a response that failed."""
    data = b'{"type":"response.failed","sequence_number":%d,"response":%b}' % (number, response)
    return b"event: response.failed\ndata: %b\n\n" % data


def split_events(events: bytes) -> list[bytes]:
    """Finished events, one by one: their data has no line breaks."""
    return [each + b"\n\n" for each in events.split(b"\n\n") if each]
