"""Jobs: the rows that say what should be done, and how each went.

queued → running → succeeded | failed | cancelled. Every change names the state (and the attempt)
that it starts from, so that of two who change a job at once only one succeeds.
"""

from __future__ import annotations

import re
import time
from typing import Any

import msgspec

from wherry.client import schema
from wherry.errors import Conflict, NotFound, QuotaExceeded, TooLarge
from wherry.jobs import store
from wherry.jobs.store import Connection, Row
from wherry.jobs.work import Failed, Kind, Work, decode_work, kind_of
from wherry.models.bundle import MANIFEST
from wherry.storage.database import Database, add_event, new_id

MAX_ACTIVE_PER_TEAM = 200
MAX_FINISHED = 20_000
MAX_FINISHED_PER_TEAM = 2_000
"""So that no team pushes another's out of the list."""
MAX_REQUEST_BYTES = 1 << 20
"""Of one job; the queue holds those of all unfinished jobs in memory."""
MAX_ATTEMPTS = 5
"""Starts of one job before it is blamed for the server's restarts."""
MAX_RESUMED_ATTEMPTS = 100
"""Of one that goes on from where it was: each has done something."""
MAX_TEXT_CHARACTERS = 2_000
ID = re.compile(r"job_[0-9a-z]{26}")

encode = msgspec.json.Encoder().encode
_decode_progress = msgspec.json.Decoder(schema.Progress).decode
_decode_result = msgspec.json.Decoder(dict[str, Any]).decode


class JobRecord(msgspec.Struct, frozen=True):
    """A job as the queue sees it."""

    id: str
    team_id: str
    state: str
    work: Work
    attempt: int
    cancel_requested: bool

    @property
    def kind(self) -> Kind:
        """As clients see it."""
        return kind_of(self.work)


class Jobs:
    """The jobs of one database. Blocking: call it in a thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ------------------------------------------------------------------ for doors

    def submit(self, team_id: str, work: Work) -> schema.Job:
        """Queue a job.

        Raises:
            TooLarge: the request has more parameters, labels or options than a job can keep.
            QuotaExceeded: the team has too many unfinished ones.
        """
        with self._database.write() as connection:
            return self.add(connection, team_id, work)

    def add(self, connection: Connection, team_id: str, work: Work) -> schema.Job:
        """As `submit`, as part of a transaction."""
        request = encode(work).decode()
        if len(request) > MAX_REQUEST_BYTES:
            raise TooLarge(
                f"the request is larger than {MAX_REQUEST_BYTES} bytes",
                hint=f"put labels, options and sample into the upload's {MANIFEST}",
            )
        job_id = new_id("job")
        fields = {
            "id": job_id,
            "team_id": team_id,
            "kind": kind_of(work),
            "state": "queued",
            "request": request,
            "created_at": time.time(),
        }
        if store.count_active(connection, team_id) >= MAX_ACTIVE_PER_TEAM:
            raise QuotaExceeded(
                f"the team has {MAX_ACTIVE_PER_TEAM} unfinished jobs",
                hint="wait for some, or cancel them: wherry jobs",
                retry_after_seconds=10.0,
            )
        store.delete_finished(connection, MAX_FINISHED_PER_TEAM, team_id)
        store.insert_job(connection, fields)
        _announce(connection, team_id, job_id, "queued", kind_of(work))
        row = store.find_job(connection, job_id)
        assert row is not None
        return to_job(row)

    def find(self, team_id: str, job_id: str) -> schema.Job:
        """One of the team's, or `NotFound`."""
        with self._database.read() as connection:
            return to_job(_find(connection, team_id, job_id))

    def page(self, team_id: str, before: str, limit: int) -> list[schema.Job]:
        """A team's jobs, newest first, from the one before the id `before` (empty = the newest)."""
        with self._database.read() as connection:
            return [to_job(row) for row in store.list_jobs(connection, team_id, before, limit)]

    def cancel(self, team_id: str, job_id: str) -> schema.Job:
        """End a queued job; ask the queue to end a running one; leave a finished one."""
        with self._database.write() as connection:
            row = _find(connection, team_id, job_id)
            if row.kind == "batch" and row.state in store.ACTIVE:
                raise Conflict("this job is a batch", hint="cancel the batch: POST /v1/batches/…")
            if row.state == "queued":
                _finish(connection, row, "cancelled")
            else:
                store.request_cancel(connection, job_id)
            return to_job(_find(connection, team_id, job_id))

    def cancel_queued(self, connection: Connection, job_id: str) -> bool:
        """End a job that has not begun; False if it has, or has ended."""
        row = store.find_job(connection, job_id)
        if row is None or row.state != "queued":
            return False
        _finish(connection, row, "cancelled")
        return True

    # ------------------------------------------------------------------ for the queue

    def revision(self) -> int:
        """Grows with every change; cheap to ask."""
        return self._database.revisions().get(store.REVISION, 0)

    def active(self) -> list[JobRecord]:
        """Queued and running jobs of all teams, oldest first."""
        with self._database.read() as connection:
            return [_to_record(row) for row in store.list_active(connection)]

    def claim(self, job: JobRecord) -> JobRecord | None:
        """Let a queued job run, as a new attempt; None if it is not queued any more."""
        attempt = job.attempt + 1
        fields = {"state": "running", "attempt": attempt, "started_at": time.time()}
        with self._database.write() as connection:
            if not store.change_job(
                connection, job.id, fields, state="queued", attempt=job.attempt
            ):
                return None
            _announce(connection, job.team_id, job.id, "running", job.kind)
        return msgspec.structs.replace(job, state="running", attempt=attempt)

    def requeue(self, job: JobRecord) -> None:
        """Let a job run again whose runner died with the server, unless that happens too often."""
        with self._database.write() as connection:
            row = store.find_job(connection, job.id)
            if row is None or row.state != "running" or row.attempt != job.attempt:
                return
            if row.cancel_requested:
                _finish(connection, row, "cancelled")
            elif row.attempt >= (MAX_RESUMED_ATTEMPTS if job.kind == "batch" else MAX_ATTEMPTS):
                message = (
                    f"the server or its runner restarted {row.attempt} times while this job ran"
                )
                failure = Failed("internal", message, "see the server's log")
                _finish(connection, row, "failed", failure=failure)
            else:
                store.change_job(connection, job.id, {"state": "queued"}, state="running")

    def write_progress(self, job: JobRecord, progress: schema.Progress) -> bool:
        """Tell how far a running job is; False if it is not this attempt's any more."""
        fields = {"progress": encode(progress).decode()}
        with self._database.write() as connection:
            return store.change_job(
                connection, job.id, fields, state="running", attempt=job.attempt
            )

    def is_current(self, job_id: str, attempt: int) -> bool:
        """Whether this attempt runs and nobody has asked to cancel it."""
        with self._database.read() as connection:
            row = store.find_job(connection, job_id)
        return (
            row is not None
            and row.state == "running"
            and row.attempt == attempt
            and not row.cancel_requested
        )

    def finish(
        self,
        job: JobRecord,
        state: str,
        *,
        result: dict[str, Any] | None = None,
        failure: Failed | None = None,
    ) -> bool:
        """End a running job; False if it is not this attempt's any more."""
        with self._database.write() as connection:
            row = store.find_job(connection, job.id)
            if row is None or row.state != "running" or row.attempt != job.attempt:
                return False
            _finish(connection, row, state, result=result, failure=failure)
        return True

    def trim(self) -> int:
        """Forget the oldest finished jobs of a long list; how many."""
        with self._database.write() as connection:
            return store.delete_finished(connection, MAX_FINISHED)

    def used_environments(self) -> set[str]:
        """Digests of the Python environments that versions need."""
        with self._database.read() as connection:
            return store.list_environments(connection)


def to_job(row: Row[Any]) -> schema.Job:
    """A row as clients see it."""
    return schema.Job(
        id=row.id,
        kind=row.kind,
        state=row.state,
        created_at=row.created_at,
        finished_at=row.finished_at,
        progress=_decode_progress(row.progress),
        error=row.error,
        hint=row.hint,
        result=_decode_result(row.result),
    )


def _to_record(row: Row[Any]) -> JobRecord:
    return JobRecord(
        id=row.id,
        team_id=row.team_id,
        state=row.state,
        work=decode_work(row.request),
        attempt=row.attempt,
        cancel_requested=bool(row.cancel_requested),
    )


def _find(connection: Connection, team_id: str, job_id: str) -> Row[Any]:
    row = store.find_job(connection, job_id, team_id) if ID.fullmatch(job_id) else None
    if row is None:
        raise NotFound(f"no job {job_id[:80]!r}", hint="wherry jobs")
    return row


def _finish(
    connection: Connection,
    row: Row[Any],
    state: str,
    *,
    result: dict[str, Any] | None = None,
    failure: Failed | None = None,
) -> None:
    told = {"code": failure.code} if failure else result or {}
    fields = {
        "state": state,
        "finished_at": time.time(),
        "result": encode(told).decode(),
        "request": "{}",  # nobody asks for it any more, and it may be long
        "error": failure.message[:MAX_TEXT_CHARACTERS] if failure else "",
        "hint": failure.hint[:MAX_TEXT_CHARACTERS] if failure else "",
    }
    store.change_job(connection, row.id, fields, state=row.state, attempt=row.attempt)
    _announce(connection, row.team_id, row.id, state, row.kind, told)


def _announce(
    connection: Connection,
    team_id: str,
    job_id: str,
    state: str,
    kind: str,
    told: dict[str, Any] | None = None,
) -> None:
    data = {"kind": kind, "state": state, **({"result": told} if told else {})}
    add_event(connection, team_id, "jobs", job_id, state, data)
