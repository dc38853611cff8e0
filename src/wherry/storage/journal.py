"""The journal's writer: an append-only record of every admitted request, made before its reply.

A gateway starts a new segment (`wherry.storage.segment`) with every start; the ledger reads them.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Literal

from wherry.errors import InvalidInput, Unavailable
from wherry.storage.segment import (
    Ballast,
    Damage,
    OutcomeRecord,
    Segment,
    encode_frame,
    read_segment,
)
from wherry.telemetry import get_logger

__all__ = ["Damage", "Durability", "JournalWriter", "OnDurable", "OutcomeRecord", "read_segment"]

SEGMENT_BYTES = 16 << 20
BALLAST_BYTES = 1 << 20
"""Given back to a full disk, so that requests in flight can still be recorded."""
MAX_WAITING = 10_000
"""More unwritten frames mean that the disk is stuck: the journal is not healthy."""
MAX_WAITING_EVER = 50_000
"""Frames; beyond this, records of requests in flight are refused too."""
SYNC_DELAY_SECONDS = 0.025
"""From a write to the start of its sync, which may take as long as is left of 50 ms."""
PROBE_SECONDS = 0.5

Durability = Literal["process", "power"]
OnDurable = Callable[[Unavailable | None], None]
"""Told None once the record is safe, or an error, after which it may or may not be recorded."""

_log = get_logger("journal")


class JournalWriter:
    """Writes the records of one gateway; made and used in the thread of one event loop.

    Records of one tick of the loop, or of one read of a worker's answers, leave in one write. With
    durability `process` they are safe from then on (the kernel has them) and on disk within 50 ms:
    a thread waits and syncs by itself, so that the loop never wakes up for it. With `power` they
    are safe when the disk has them; while one sync runs, the next batch gathers.
    """

    def __init__(
        self,
        folder: Path,
        gateway: str,
        *,
        durability: Durability = "process",
        segment_bytes: int = SEGMENT_BYTES,
        ballast_bytes: int = BALLAST_BYTES,
    ) -> None:
        """Open a new segment in `folder/gateway`.

        Raises:
            Unavailable: the folder cannot be written.
        """
        self._folder = folder / gateway
        self._waits_for_disk = durability == "power"
        self._segment_bytes = segment_bytes
        self._ballast = Ballast(self._folder / "ballast", ballast_bytes)
        self._loop = asyncio.get_running_loop()
        self._frames: list[bytes] = []
        self._waiting: list[OnDurable] = []
        self._is_flush_planned = False
        self._is_sync_planned = False  # in mode `power`: a batch is with the thread
        self._is_renewing = False
        self._is_closed = False
        self._error: OSError | None = None
        self.records = 0
        """Frames written since the start; one may hold the answers of a whole batch."""
        self.syncs = 0
        """Times the disk was asked to keep them."""
        self.failures = 0
        """Times that a write or sync failed."""
        try:
            self._segment = Segment(self._folder)
            self._ballast.fill()
        except OSError as error:
            raise _unavailable(error) from error
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        Thread(target=_run_jobs, args=(self._jobs,), name="journal", daemon=True).start()

    @property
    def healthy(self) -> bool:
        """Whether new requests may be admitted, because their records will find a place."""
        return self._error is None and len(self._frames) < MAX_WAITING and not self._is_closed

    @property
    def error(self) -> Unavailable | None:
        """Why the journal is not healthy."""
        if self._error is not None:
            return _unavailable(self._error)
        return None if self.healthy else Unavailable("the journal cannot keep up, or is closed")

    @property
    def segment_path(self) -> Path:
        """The segment that is written now."""
        return self._segment.path

    def append(self, record: OutcomeRecord, on_durable: OnDurable) -> None:
        """Record an outcome; `on_durable` is called exactly once, later, in the loop's thread."""
        try:
            frame = encode_frame(record)
        except InvalidInput as error:
            self.refuse(on_durable, error.message)
            return
        self.append_frame(frame, on_durable)

    def append_frame(self, frame: bytes, on_durable: OnDurable) -> None:
        """As `append`, for what is encoded: a record, or several answers.

        A journal that has failed still tries: requests in flight deserve their record, and the
        ballast makes room for them.
        """
        if self._is_closed or len(self._frames) >= MAX_WAITING_EVER:
            self.refuse(on_durable, "the journal takes no more records")
            return
        self._frames.append(frame)
        self._waiting.append(on_durable)
        if not self._is_flush_planned:
            self._is_flush_planned = True
            self._loop.call_soon(self._flush)

    def flush(self) -> None:
        """Write now what waits for the end of this tick: the caller knows that no more comes."""
        if self._frames:
            self._flush()

    async def close(self) -> None:
        """Write and sync what is left, then let go of the segment; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        while self._frames or (self._waits_for_disk and self._is_sync_planned):
            self._flush()
            await self._wait_for_thread()
        self._jobs.put(partial(_retire, self._segment))
        await self._wait_for_thread()
        self._jobs.put(None)

    # ------------------------------------------------------------------ in the loop's thread

    def _flush(self) -> None:
        self._is_flush_planned = False
        if not self._frames or (self._waits_for_disk and self._is_sync_planned):
            return
        frames, self._frames = self._frames, []
        waiting, self._waiting = self._waiting, []
        if self._waits_for_disk:
            self._is_sync_planned = True
            self._jobs.put(partial(self._store_and_sync, self._segment, frames, waiting))
        else:
            count, error = self._store(self._segment, frames)
            self._sync_soon()
            self._settle(waiting, count, error)

    def _settle(self, waiting: list[OnDurable], count: int, error: OSError | None) -> None:
        if error is not None:
            self._fail(error)
        elif self._segment.size >= self._segment_bytes:
            self._renew()
        self.records += count
        self._tell(waiting[:count], None)
        if error is not None:
            self._tell(waiting[count:], _unavailable(error))

    def _settle_synced(self, waiting: list[OnDurable], count: int, error: OSError | None) -> None:
        self.syncs += 1
        self._is_sync_planned = False
        self._settle(waiting, count, error)
        self._flush()

    def _sync_soon(self) -> None:
        """Let the thread sync what has just been written, if it is not about to."""
        if not self._is_sync_planned:
            self._is_sync_planned = True
            self._jobs.put(partial(self._sync_at, time.monotonic() + SYNC_DELAY_SECONDS))

    def _fail(self, error: OSError) -> None:
        self.failures += 1
        if self._error is None:
            _log.error("the journal cannot be written; new requests are refused", error=error)
        self._error = error
        self._renew()

    def _renew(self) -> None:
        """Go on in a new segment: the old one is full, or failed."""
        if not self._is_renewing:
            self._is_renewing = True
            self._jobs.put(self._open_segment)

    def _install(self, segment: Segment) -> None:
        self._is_renewing = False
        if self._is_closed:
            segment.close()
            return
        old, self._segment = self._segment, segment
        if self._error is not None:
            self._error = None
            _log.info("the journal can be written again")
        self._jobs.put(partial(_retire, old))

    def _probe_later(self) -> None:
        self._loop.call_later(PROBE_SECONDS, self._jobs.put, self._open_segment)

    def refuse(self, on_durable: OnDurable, why: str) -> None:
        """Say, later, that a record cannot be made."""
        self._loop.call_soon(self._tell, [on_durable], Unavailable(why))

    def _tell(self, waiting: list[OnDurable], error: Unavailable | None) -> None:
        for on_durable in waiting:
            try:
                on_durable(error)
            except Exception:  # noqa: BLE001  one reply that fails must not hold back the others
                _log.exception("a reply failed after its record was written")

    async def _wait_for_thread(self) -> None:
        done = asyncio.Event()

        def report() -> None:
            self._loop.call_soon_threadsafe(done.set)

        self._jobs.put(report)
        await done.wait()

    # ------------------------------------------------------------------ in the journal's thread

    def _store_and_sync(
        self, segment: Segment, frames: list[bytes], waiting: list[OnDurable]
    ) -> None:
        count, error = self._store(segment, frames)
        try:
            segment.sync()
        except OSError as sync_error:
            count, error = 0, sync_error
        self._loop.call_soon_threadsafe(self._settle_synced, waiting, count, error)

    def _sync_at(self, due: float) -> None:
        if not self._is_closed:
            time.sleep(max(0.0, due - time.monotonic()))
        # first: what is written from here on finds no sync planned, and plans the next one
        self._is_sync_planned = False
        try:
            self._segment.sync()
        except OSError as error:
            self._loop.call_soon_threadsafe(self._fail, error)
        self.syncs += 1

    def _open_segment(self) -> None:
        try:
            self._ballast.fill()
            segment = Segment(self._folder)
        except OSError:
            self._loop.call_soon_threadsafe(self._probe_later)
        else:
            self._loop.call_soon_threadsafe(self._install, segment)

    # ------------------------------------------------------------------ in either, never in both

    def _store(self, segment: Segment, frames: list[bytes]) -> tuple[int, OSError | None]:
        """Write frames, with the ballast's room if need be; tells how many are in the file."""
        count, error = segment.append(frames)
        is_full = error is not None and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_full and self._ballast.release():
            count += segment.append(frames[count:])[0]
        return count, error


def _run_jobs(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        try:
            job()
        except RuntimeError:
            return  # the loop is closed, nobody waits for an answer: the process is ending


def _retire(segment: Segment) -> None:
    try:
        segment.sync()
    except OSError as error:
        _log.error("the last records may not survive a power loss", error=error)
    segment.close()


def _unavailable(error: OSError) -> Unavailable:
    return Unavailable(
        f"the journal cannot be written: {error.strerror}",
        hint="nothing is answered without a record; is the disk full?",
    )
