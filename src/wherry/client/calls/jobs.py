"""Jobs: work longer than a request."""

from __future__ import annotations

import time
from collections.abc import Callable

from wherry import errors
from wherry.client.schema import Job, Progress
from wherry.client.wire import (
    Call,
    Emit,
    EventReader,
    LinkError,
    Pause,
    Stream,
    ask,
    ask_for_all,
    consume,
    decode,
    listen,
    platform,
)

OnProgress = Callable[[Progress], None]
"""Called with every change of a job's or an upload's progress."""

FINISHED = frozenset({"succeeded", "failed", "cancelled"})
POLL_SECONDS = 0.5
MAX_FAILURES = 20
"""Reconnections in a row: ten seconds for a restart of the server."""


def list_jobs() -> Call[list[Job]]:
    """Your jobs, newest first."""
    return (yield from ask_for_all(platform("GET", "jobs"), Job))


def get_job(job_id: str) -> Call[Job]:
    """A job as it is now."""
    return (yield from ask(platform("GET", "jobs", job_id), Job))


def cancel_job(job_id: str) -> Call[Job]:
    """Ask a job to stop; what it made so far is discarded."""
    return (yield from ask(platform("POST", "jobs", job_id, verb="cancel"), Job))


def watch_job(job_id: str) -> Stream[Job]:
    """A job whenever it changes, until it is finished; survives a restart of the server."""
    failures_left = 0
    while True:
        reader = EventReader()
        try:
            yield from listen(platform("GET", "jobs", job_id, "events"))
            failures_left = MAX_FAILURES
            while (event := (yield from reader.next())) is not None:
                job = decode(event.data, Job)
                yield Emit(job)
                if job.state in FINISHED:
                    return
        except LinkError:
            pass  # the first event of the next stream tells what was missed
        except errors.Unavailable:
            if failures_left == 0:
                raise
            failures_left -= 1
        yield Pause(POLL_SECONDS)


def wait_for_job(
    job_id: str, *, on_progress: OnProgress | None = None, timeout: float | None = None
) -> Call[Job]:
    """Wait until a job has succeeded; raises what made it fail.

    Args:
        job_id: the job.
        on_progress: called with every change.
        timeout: seconds, looked at whenever the job changes; the job itself goes on after them.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    latest: list[Job] = []

    def take(job: Job) -> None:
        latest[:] = [job]
        if on_progress is not None:
            on_progress(job.progress)
        if deadline is not None and job.state not in FINISHED and time.monotonic() > deadline:
            raise errors.TimedOut(f"job {job_id!r} is still {job.state}", hint="it goes on")

    yield from consume(watch_job(job_id), take)
    return check_job(latest[0])


def check_job(job: Job) -> Job:
    """The job if it succeeded; raises what made it fail."""
    if job.state == "cancelled":
        raise errors.Cancelled(f"{job.kind} {job.id!r} was cancelled")
    if job.state != "failed":
        return job
    message = f"{job.kind} {job.id!r} failed: {job.error or 'no cause was told'}"
    code = job.result.get("code")
    if isinstance(code, str):
        raise errors.from_code(code, message, job.hint)
    raise errors.WherryError(message, hint=job.hint)
