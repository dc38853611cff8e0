"""Batches: what clients ask for, how far each is, and how it ended.

validating → in_progress → finalizing → completed; or failed (the file is wrong, or nobody may call
for its key any more), expired (its window has passed), cancelling → cancelled. The work is a job of
the kind `batch`; whatever ends the job, the batch has an end too (`settle_orphans`).
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from wherry.accounts.keys import Principal
from wherry.client.batch_schema import Fault
from wherry.errors import Conflict, InvalidInput, NotFound
from wherry.jobs.batches import store
from wherry.jobs.batches.outputs import CANCELLED, Outputs, Rest, publish_outputs
from wherry.jobs.batches.progress import ProgressFile
from wherry.jobs.batches.record import BatchRecord, to_record
from wherry.jobs.batches.store import Connection, Row
from wherry.jobs.files.files import Files
from wherry.jobs.jobs import Jobs
from wherry.jobs.work import BatchWork
from wherry.settings import Settings
from wherry.storage.blobs import explain_full_disk
from wherry.storage.database import Database, add_event, new_id
from wherry.storage.folders import make_folder, sync_folder

INPUT = "input.jsonl"
PROGRESS = "progress.jsonl"
PURPOSE = "batch"

encode = msgspec.json.Encoder().encode


class BatchOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for, checked by its door."""

    endpoint: str
    completion_window: str
    window_seconds: float
    input_file_id: str
    metadata: dict[str, str] = {}
    kept_seconds: float | None = None
    """Of its output and error files; None = as usual."""
    total: int = 0
    """Requests, if they have been counted; 0 = they will be."""


class Batches:
    """The batches of one data folder; processes may share it. Blocking: call it in a thread."""

    def __init__(self, database: Database, files: Files, settings: Settings) -> None:
        self._database = database
        self._files = files
        self._jobs = Jobs(database)
        self._folder = settings.folder / "batches"
        self._max_bytes = settings.max_batch_bytes

    # ------------------------------------------------------------------ for doors

    def create(self, principal: Principal, order: BatchOrder) -> BatchRecord:
        """Queue a batch for the key that asks.

        Raises:
            NotFound: the team has no such file.
            InvalidInput: the file is no batch's, or too large.
            QuotaExceeded: the team has too many unfinished jobs.
        """
        file = self._files.find(principal.team_id, order.input_file_id)
        if file.purpose != PURPOSE:
            raise InvalidInput(
                f"file {file.id!r} has the purpose {file.purpose!r}, not {PURPOSE!r}",
                param="input_file_id",
            )
        if file.size_bytes > self._max_bytes:
            raise InvalidInput(
                f"the file has {file.size_bytes} bytes, a batch takes {self._max_bytes}",
                hint="make several batches of it",
                param="input_file_id",
            )
        batch_id = new_id("batch")
        folder = self.folder(batch_id)
        try:
            with explain_full_disk():
                make_folder(folder)
                # its own name for the bytes: the client may delete the file meanwhile
                _link(self._files.path(file), folder / INPUT)
                sync_folder(folder)
            return self._insert(principal, order, batch_id)
        except FileNotFoundError as error:
            raise NotFound(f"no file {file.id!r}", hint="GET /v1/files lists them") from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _insert(self, principal: Principal, order: BatchOrder, batch_id: str) -> BatchRecord:
        now, team_id = time.time(), principal.team_id
        with self._database.write() as connection:
            work = BatchWork(batch=batch_id, key_id=principal.key_id)
            job = self._jobs.add(connection, team_id, work)
            fields = {
                "id": batch_id,
                "team_id": team_id,
                "key_id": principal.key_id,
                "job_id": job.id,
                "endpoint": order.endpoint,
                "completion_window": order.completion_window,
                "state": "validating",
                "input_file_id": order.input_file_id,
                "kept_seconds": order.kept_seconds,
                "created_at": now,
                "expires_at": now + order.window_seconds,
                "metadata": encode(order.metadata).decode(),
                "total": order.total,
            }
            store.insert_batch(connection, fields)
            _announce(connection, team_id, batch_id, "validating")
            return to_record(_find(connection, batch_id))

    def find(self, team_id: str, batch_id: str) -> BatchRecord:
        """One of the team's, or `NotFound`."""
        with self._database.read() as connection:
            return to_record(_find(connection, batch_id, team_id))

    def page(
        self, team_id: str, *, limit: int, after: str = "", before: str = "", endpoint: str = ""
    ) -> list[BatchRecord]:
        """A team's batches, newest first.

        Args:
            team_id: whose.
            limit: how many at most.
            after: those just behind this id.
            before: those just before this id.
            endpoint: only of this one.
        """
        with self._database.read() as connection:
            rows = store.list_batches(
                connection, team_id, after=after, before=before, limit=limit, endpoint=endpoint
            )
        return [to_record(row) for row in rows]

    def cancel(self, team_id: str, batch_id: str) -> BatchRecord:
        """Let its runner stop; what was answered until then is in the output.

        Raises:
            Conflict: it has ended, or is about to.
        """
        with self._database.write() as connection:
            batch = to_record(_find(connection, batch_id, team_id))
            if batch.has_ended or batch.state == "finalizing":
                raise Conflict(f"batch {batch_id!r} is {batch.state}: there is nothing to cancel")
            if batch.state != "cancelling":
                _change(connection, batch, "cancelling")
            has_begun = not self._jobs.cancel_queued(connection, batch.job_id)
        if not has_begun:
            self.finish(batch, "cancelled", CANCELLED)
        return self.find(team_id, batch_id)

    def remove(self, team_id: str, batch_id: str) -> None:
        """Delete a batch and its results.

        Raises:
            Conflict: it has not ended.
        """
        batch = self.find(team_id, batch_id)
        if not batch.has_ended:
            raise Conflict(f"batch {batch_id!r} is {batch.state}", hint="cancel it first")
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is not None:
                with suppress(NotFound):  # deleted, or expired
                    self._files.remove(team_id, file_id)
        with self._database.write() as connection:
            store.delete_batch(connection, batch_id)
            _announce(connection, team_id, batch_id, "deleted")

    # ------------------------------------------------------------------ for its runner

    def load(self, batch_id: str) -> BatchRecord:
        """A batch of any team, or `NotFound`."""
        with self._database.read() as connection:
            return to_record(_find(connection, batch_id))

    def folder(self, batch_id: str) -> Path:
        """Where its input and its progress are until it has ended."""
        return self._folder / batch_id

    def enter(self, batch: BatchRecord, state: str, **fields: Any) -> bool:
        """Go on to `in_progress` or `finalizing`, unless it is to be cancelled or has ended."""
        with self._database.write() as connection:
            now = to_record(_find(connection, batch.id))
            if now.has_ended or now.state == "cancelling":
                return False
            _change(connection, now, state, **fields)
        return True

    def count(self, batch_id: str, completed: int, failed: int) -> str:
        """Tell how far it is; gives the state, which others may have changed."""
        with self._database.write() as connection:
            fields = {"completed": completed, "failed": failed}
            store.change_batch(connection, batch_id, fields)
            return _find(connection, batch_id).state

    def finish(
        self, batch: BatchRecord, state: str, rest: Rest | None, faults: list[Fault] | None = None
    ) -> None:
        """End a batch, once: its files and its state are there at the same moment.

        Args:
            batch: as it was.
            state: in which it ends.
            rest: what is said of lines that have no answer; None: the batch has no outputs at all.
            faults: what was wrong with it as a whole.
        """
        folder = self.folder(batch.id)
        if rest is None or not (folder / INPUT).exists():
            self._end(batch, state, faults or [])
        else:
            progress = ProgressFile(folder / PROGRESS)
            try:
                with publish_outputs(self._files, batch, folder / INPUT, progress, rest) as outputs:
                    self._end(batch, state, faults or [], outputs)
            finally:
                progress.close()
        shutil.rmtree(folder, ignore_errors=True)

    def _end(
        self, batch: BatchRecord, state: str, faults: list[Fault], outputs: Outputs | None = None
    ) -> None:
        with self._database.write() as connection:
            now = to_record(_find(connection, batch.id))
            if now.has_ended:
                return
            fields: dict[str, Any] = {"faults": encode(faults).decode()}
            if outputs is not None:
                for file in outputs.files:
                    self._files.insert(connection, file)
                fields |= outputs.fields()
            _change(connection, now, state, **fields)

    # ------------------------------------------------------------------ for the queue

    def settle_orphans(self) -> None:
        """End batches whose jobs have ended without them: what was answered is kept."""
        with self._database.read() as connection:
            found = store.list_orphans(connection)
        for row in found:
            batch, message = to_record(row), row.error or "the job of this batch is gone"
            if batch.state == "cancelling":
                self.finish(batch, "cancelled", CANCELLED)
            else:
                rest, fault = Rest("batch_failed", message), Fault("batch_failed", message)
                self.finish(batch, "failed", rest, [fault])

    def sweep(self, older_than_seconds: float = 3600.0) -> None:
        """Delete folders of batches that have ended or never were."""
        if not self._folder.is_dir():
            return
        for folder in self._folder.iterdir():
            with self._database.read() as connection:
                row = store.find_batch(connection, folder.name)
            is_old = time.time() - folder.stat().st_mtime > older_than_seconds
            if is_old and (row is None or row.state in store.ENDED):
                shutil.rmtree(folder, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _find(connection: Connection, batch_id: str, team_id: str | None = None) -> Row[Any]:
    row = store.find_batch(connection, batch_id, team_id)
    if row is None:
        raise NotFound(f"no batch {batch_id[:80]!r}", hint="GET /v1/batches lists them")
    return row


def _change(connection: Connection, batch: BatchRecord, state: str, **fields: Any) -> None:
    times = {state: time.time(), **batch.times}
    fields |= {"state": state, "times": encode(times).decode()}
    store.change_batch(connection, batch.id, fields)
    _announce(connection, batch.team_id, batch.id, state)


def _announce(connection: Connection, team_id: str, batch_id: str, state: str) -> None:
    add_event(connection, team_id, "batches", batch_id, state)
