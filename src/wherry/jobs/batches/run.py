"""The work of one batch, inside its runner: check the file, send its lines, write what came back.

All that must outlive a kill is in the progress file; a runner that starts again goes on from there.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from wherry import errors
from wherry.client.batch_schema import Fault
from wherry.jobs.batches.batches import INPUT, PROGRESS, Batches
from wherry.jobs.batches.caller import GatewayLostError, Gateways
from wherry.jobs.batches.lines import Line, check_lines, read_lines, streams
from wherry.jobs.batches.outputs import (
    CANCELLED,
    EXPIRED,
    REVOKED,
    UNANSWERED,
    Entry,
    EntryError,
    EntryResponse,
    Rest,
    encode_entry,
    id_of,
)
from wherry.jobs.batches.progress import ProgressFile, Record
from wherry.jobs.batches.record import BatchRecord
from wherry.jobs.batches.wire import Reply, RowCall, socket_of
from wherry.jobs.publish import Tell
from wherry.settings import Settings
from wherry.telemetry import get_logger

MAX_IN_FLIGHT = 64
"""Lines at the gateways at once; they let through as many as nobody else waits for."""
MAX_IN_FLIGHT_BYTES = 32 << 20
LINE_SPARE_BYTES = 64 << 10
"""What a line may have around its body."""
LOOK_SECONDS = 0.5
"""Between looks whether somebody cancelled; then counts are told and the disk gets its due."""
MIN_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 30.0
OUTAGE_SECONDS = 2.0

TRANSIENT = frozenset(kind.code for kind in (*errors.all_errors(errors.TryLater), errors.Cancelled))
"""Codes of errors that pass by themselves."""
KEY_IS_GONE = errors.NotAuthenticated.code

log = get_logger("jobs.batches")


class BatchRun:
    """One attempt at a batch.

    Args:
        batches: where it is written down.
        batch: it.
        settings: the server's.
        token: by which gateways know for whom we speak.
        run_folder: where the gateways listen.
        check_current: raises if another attempt has taken over.
        tell: the queue how far it is.
    """

    def __init__(
        self,
        batches: Batches,
        batch: BatchRecord,
        *,
        settings: Settings,
        token: str,
        run_folder: Path,
        check_current: Callable[[], None],
        tell: Tell,
    ) -> None:
        self._batches = batches
        self._batch = batch
        self._settings = settings
        self._check_current = check_current
        self._tell = tell
        self._total = batch.total
        self._loop = asyncio.get_running_loop()
        folder = batches.folder(batch.id)
        self._input = folder / INPUT
        self._progress = ProgressFile(folder / PROGRESS)
        names = (f"gateway {number}" for number in range(settings.gateways))
        self._gateways = Gateways([socket_of(run_folder, name) for name in names], token)
        self._tasks: dict[asyncio.Task[None], int] = {}
        """Lines in flight, and the bytes of each."""
        self._rest: Rest | None = None
        """Why the rest is not sent, once that is decided."""
        self._broken: errors.WherryError | None = None
        """Why this attempt may not end the batch."""
        self._is_stopped = False
        self._is_over = asyncio.Event()
        """Set when nothing is left to be watched."""
        self._changed = asyncio.Event()
        """Set when a line has ended, or the rest is not sent any more."""

    # ------------------------------------------------------------------ the story

    async def run(self) -> str:
        """Do it; the state in which it ended."""
        try:
            if self._batch.state == "validating" and not await self._validate():
                return "failed"
            await self._send_all()
        finally:
            self._progress.close()
        if self._broken is not None:
            raise self._broken
        return await self._finish()

    async def _validate(self) -> bool:
        checked = await asyncio.to_thread(
            check_lines,
            self._input,
            self._batch.endpoint,
            self._settings.max_batch_lines,
            self._max_line_bytes,
        )
        if checked.faults:
            await self._insist(self._batches.finish, self._batch, "failed", None, checked.faults)
            return False
        self._total = checked.total
        is_on = await asyncio.to_thread(
            self._batches.enter, self._batch, "in_progress", total=checked.total
        )
        if not is_on:
            self._stop(CANCELLED)
        return True

    @property
    def _max_line_bytes(self) -> int:
        return self._settings.max_body_bytes + LINE_SPARE_BYTES

    async def _send_all(self) -> None:
        if self._batch.state == "cancelling":
            self._stop(CANCELLED)
        watching = asyncio.create_task(self._watch())
        try:
            async with self._gateways:
                async for line in self._open_lines():
                    await self._wait_for_room(len(line.body))
                    if self._is_stopped:
                        break
                    task = asyncio.create_task(self._do(line))
                    self._tasks[task] = len(line.body)
                    task.add_done_callback(self._forget)
                await self._end_tasks()
        finally:
            self._is_over.set()
            await watching

    async def _open_lines(self) -> AsyncIterator[Line]:
        """Lines without an answer, in order."""
        for line in read_lines(self._input, self._max_line_bytes):
            if self._is_stopped:
                return
            await asyncio.sleep(0)  # a long row of answered ones must not keep others waiting
            if isinstance(line, Line) and line.number not in self._progress.ended:
                yield line

    async def _wait_for_room(self, size: int) -> None:
        while self._tasks and not self._is_stopped:
            held = sum(self._tasks.values())
            if len(self._tasks) < MAX_IN_FLIGHT and held + size <= MAX_IN_FLIGHT_BYTES:
                return
            await self._wait_for_change()

    async def _end_tasks(self) -> None:
        while self._tasks and not self._is_stopped:
            await self._wait_for_change()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_for_change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._changed.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("a line failed unexpectedly", error=repr(task.exception()))
            self._break(errors.Internal("an unexpected error", hint="see the server's log"))

    async def _finish(self) -> str:
        rest = self._rest
        if rest is EXPIRED and len(self._progress.ended) == self._total:
            rest = None  # all were answered before
        state = {None: "completed", EXPIRED: "expired", CANCELLED: "cancelled"}.get(rest, "failed")
        if state != "cancelled":
            await self._insist(self._batches.enter, self._batch, "finalizing")
        faults = [Fault(rest.code, rest.message)] if rest and state == "failed" else []
        await self._insist(self._batches.finish, self._batch, state, rest or UNANSWERED, faults)
        return state

    async def _insist(self, work: Callable[..., object], *arguments: Any) -> None:
        """Do in a thread what needs database and disk; outages are waited out."""
        while True:
            try:
                await asyncio.to_thread(work, *arguments)
                return
            except errors.Unavailable as outage:
                log.warning("a batch waits", error=outage.message)
                await asyncio.sleep(OUTAGE_SECONDS)

    # ------------------------------------------------------------------ one line

    async def _do(self, line: Line) -> None:
        if streams(line):
            error = EntryError("invalid_input", "a line cannot be answered by a stream")
            await self._write(line, None, error)
            return
        request_id = id_of(self._batch.id, line.number)
        call = RowCall(line.method, line.url, request_id)
        for tries in itertools.count():
            try:
                reply, body = await self._gateways.call(call, bytes(line.body))
            except GatewayLostError:
                continue
            if reply.code == KEY_IS_GONE:
                self._stop(REVOKED)
                return
            if reply.code not in TRANSIENT:
                response = EntryResponse(reply.status, request_id, _readable(reply, body))
                await self._write(line, response, None)
                return
            await asyncio.sleep(_pause(reply, tries))

    async def _write(
        self, line: Line, response: EntryResponse | None, error: EntryError | None
    ) -> None:
        entry = Entry(id_of(self._batch.id, line.number), line.custom_id, response, error)
        is_failed = response is None or response.status_code >= 400
        record = Record(line.number, is_failed, msgspec.Raw(encode_entry(entry)))
        while True:
            try:
                self._progress.append(record)
                return
            except errors.Unavailable as full:
                log.warning("a batch waits for the disk", error=full.message)
                await asyncio.sleep(OUTAGE_SECONDS)

    # ------------------------------------------------------------------ beside it

    def _stop(self, rest: Rest | None) -> None:
        """Send no more lines; `rest` is said of those that have no answer."""
        if not self._is_stopped:
            self._is_stopped, self._rest = True, rest
            self._changed.set()
            self._is_over.set()

    def _break(self, error: errors.WherryError) -> None:
        """Stop without an end: another attempt, or the queue, makes one."""
        self._broken = self._broken or error
        self._stop(None)

    async def _watch(self) -> None:
        """Look whether it may go on, and tell how far it is, until it stops."""
        told = (-1, -1)
        while not self._is_over.is_set():
            left = self._batch.expires_at - time.time()
            if left <= 0:
                self._stop(EXPIRED)
                return
            try:
                told = await asyncio.to_thread(self._look, told)
            except errors.Unavailable as error:
                log.warning("a batch cannot tell how far it is", error=error.message)
            except errors.WherryError as error:
                self._break(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(LOOK_SECONDS, left)):
                    await self._is_over.wait()

    def _look(self, told: tuple[int, int]) -> tuple[int, int]:
        """One look, in a thread; gives what has been told."""
        self._check_current()
        done = (self._progress.completed, self._progress.failed)
        if done != told:
            self._progress.sync()
            self._tell("answering", sum(done), self._total, "lines")
            state = self._batches.count(self._batch.id, *done)
        else:
            state = self._batches.load(self._batch.id).state
        if state == "cancelling":
            self._loop.call_soon_threadsafe(self._stop, CANCELLED)
        return done


def _readable(reply: Reply, body: bytes) -> Any:
    """The body as JSON on one line; what is none is wrapped."""
    if reply.content_type.partition(";")[0].strip() == "application/json":
        try:
            return msgspec.Raw(msgspec.json.format(body, indent=-1))
        except (msgspec.DecodeError, RecursionError):
            pass
    return {"content_type": reply.content_type, "base64": base64.b64encode(body).decode()}


def _pause(reply: Reply, tries: int) -> float:
    """Seconds until a line is sent again: as its answer says, longer each time, never in step."""
    least = max(MIN_PAUSE_SECONDS * 2 ** min(tries, 10), reply.retry_after_seconds)
    return min(MAX_PAUSE_SECONDS, least) * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
