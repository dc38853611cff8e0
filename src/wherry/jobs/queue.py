"""The queue of the supervisor process: starts runners, writes down what they say, ends them.

It follows the rows of the table `jobs` as the controller follows deployments: whatever happens to
this process or to a runner, the next turn goes on from what the rows say.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from hmac import compare_digest
from pathlib import Path
from typing import Any

from wherry import errors
from wherry.control.placement.placement import describe_exit
from wherry.control.store import trim_events
from wherry.jobs.batches.batches import Batches
from wherry.jobs.batches.wire import BatchCaller
from wherry.jobs.environments import Environments
from wherry.jobs.files.files import Files
from wherry.jobs.jobs import JobRecord, Jobs
from wherry.jobs.process import RunnerProcess
from wherry.jobs.runtime_environments import RuntimeEnvironments
from wherry.jobs.uploads import TAKEN, Uploads
from wherry.jobs.work import BatchWork, Failed, ImportWork, Succeeded
from wherry.models.registry.registry import Registry
from wherry.settings import Settings
from wherry.storage.blobs import LocalBlobs
from wherry.storage.database import Database
from wherry.telemetry import get_logger

MAX_RUNNERS = 2
MAX_BATCHES = 4
"""Batches at work, beside the other jobs: they wait for models, and hardly need the processor."""
POLL_SECONDS = 1.0
"""Gateways tell of new jobs at once; this is for what they could not tell."""
PROGRESS_SECONDS = 0.25
RETRY_SECONDS = 1.0
MAX_JOB_SECONDS = 24 * 3600.0
"""But for batches, which end by themselves when their windows have passed."""
SWEEP_SECONDS = 3600.0

log = get_logger("jobs")


class JobQueue:
    """Runs the jobs of one server; one at a time per data folder.

    Args:
        database: where jobs are.
        settings: the server's.
        run_folder: short and private, for sockets.
    """

    def __init__(self, database: Database, settings: Settings, run_folder: Path) -> None:
        self._database = database
        self._jobs = Jobs(database)
        self._settings = settings
        self._run_folder = run_folder
        self._folder = settings.folder / "jobs"
        self._environments = Environments(
            settings.folder / "environments", allow_code=settings.allow_code
        )
        self._uploads = Uploads(settings.folder / "uploads", settings.max_upload_bytes)
        self._files = Files(database, settings)
        self._batches = Batches(database, self._files, settings)
        self._running: dict[str, RunnerProcess] = {}
        self._followers: set[asyncio.Task[None]] = set()
        self._revision = -1
        self._next_sweep = 0.0
        self._changed = asyncio.Event()
        self._is_stopping = False

    # ------------------------------------------------------------------ the loop

    def nudge(self) -> None:
        """A job may have been added or cancelled: look now."""
        self._changed.set()

    async def run(self) -> None:
        """Take turns until cancelled."""
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._environments.prepare)
        while True:
            try:
                await self._turn()
            except errors.Unavailable as error:
                log.warning("jobs wait for the database", error=error.message)
            except Exception:
                log.exception("a turn of the job queue failed")
            timer = loop.call_later(POLL_SECONDS, self._changed.set)
            await self._changed.wait()
            timer.cancel()
            self._changed.clear()

    async def stop(self) -> None:
        """End all runners; their jobs run again at the next start."""
        self._is_stopping = True
        for process in self._running.values():
            process.kill()
        await asyncio.gather(*self._followers, return_exceptions=True)

    async def _turn(self) -> None:
        if self._is_stopping:
            return
        for process in self._running.values():
            is_old = time.monotonic() - process.started_at > MAX_JOB_SECONDS
            if is_old and not is_batch(process.job):
                process.expire()
        revision = await asyncio.to_thread(self._jobs.revision)
        if revision != self._revision:
            await self._follow_rows(await asyncio.to_thread(self._jobs.active))
            # only now: a turn that failed half-way is taken again
            self._revision = revision
        if time.monotonic() > self._next_sweep:
            self._next_sweep = time.monotonic() + SWEEP_SECONDS
            await asyncio.to_thread(self._sweep)

    async def _follow_rows(self, active: list[JobRecord]) -> None:
        for job in active:
            process = self._running.get(job.id)
            if process is not None:
                if job.cancel_requested and process.outcome is None:
                    process.cancel()
            elif job.state == "running":
                # its runner died with the server that had started it
                await asyncio.to_thread(self._jobs.requeue, job)
        await asyncio.to_thread(self._settle_batches)
        queued = [job for job in active if job.state == "queued"]
        await self._start_some([job for job in queued if not is_batch(job)], MAX_RUNNERS)
        await self._start_some([job for job in queued if is_batch(job)], MAX_BATCHES)

    async def _start_some(self, queued: list[JobRecord], most: int) -> None:
        """Start jobs of one sort while fewer than `most` of it are running."""
        while queued and not self._is_stopping:
            alike = [
                each for each in self._running.values() if is_batch(each.job) == is_batch(queued[0])
            ]
            if len(alike) >= most:
                return
            job = self._choose(queued)
            queued.remove(job)
            await self._start(job)

    def _choose(self, queued: list[JobRecord]) -> JobRecord:
        """The oldest job of the team that has the fewest running, so that none waits for others."""
        running = Counter(process.job.team_id for process in self._running.values())
        return min(queued, key=lambda job: (running[job.team_id], job.id))

    async def _start(self, queued: JobRecord) -> None:
        job = await asyncio.to_thread(self._jobs.claim, queued)
        if job is None:
            return
        log.info("job starts", job=job.id, kind=job.kind, attempt=job.attempt)
        scratch = self._folder / job.id / "tmp"
        process = RunnerProcess(job, self._settings, self._run_folder, scratch)
        self._running[job.id] = process
        follower = asyncio.get_running_loop().create_task(self._follow(process))
        self._followers.add(follower)
        follower.add_done_callback(self._followers.discard)

    # ------------------------------------------------------------------ one job

    async def _follow(self, process: RunnerProcess) -> None:
        writing = asyncio.get_running_loop().create_task(self._write_progress(process))
        try:
            status = await process.wait()
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        if self._is_stopping and process.outcome is None:
            return  # the row still says running, so the next start runs it again
        try:
            if not (is_batch(process.job) and _may_go_on(process)):
                await self._finish(process.job, *_judge(process, status))
            # else the next turn lets it go on from where it was
        finally:
            self._running.pop(process.job.id, None)
            # a slot is free: look at the rows even if none has changed since
            self._revision = -1
            self.nudge()

    async def _write_progress(self, process: RunnerProcess) -> None:
        while True:
            await process.changed.wait()
            process.changed.clear()
            try:
                is_ours = await asyncio.to_thread(
                    self._jobs.write_progress, process.job, process.progress
                )
                if not is_ours:
                    process.kill()  # fenced: the row belongs to another attempt
            except errors.Unavailable:
                process.changed.set()
            await asyncio.sleep(PROGRESS_SECONDS)

    async def _finish(self, job: JobRecord, state: str, told: Succeeded | Failed | None) -> None:
        options: dict[str, Any] = {}
        if isinstance(told, Succeeded):
            options["result"] = told.result
        elif told is not None:
            options["failure"] = told
        if state != "succeeded":
            # first, so that who reads of the failure can import the upload again
            await asyncio.to_thread(self._clean, job, gives_back=True)
        while True:
            try:
                await asyncio.to_thread(self._jobs.finish, job, state, **options)
                break
            except errors.Unavailable:
                if self._is_stopping:
                    return  # the next start will run it again, to the same end
                await asyncio.sleep(RETRY_SECONDS)
        await asyncio.to_thread(self._clean, job, gives_back=False)
        log.info("job ended", job=job.id, kind=job.kind, state=state, why=_why(told))

    # ------------------------------------------------------------------ batches

    def find_caller(self, token: str) -> BatchCaller | None:
        """For whom the runner speaks that was given this token; None if there is none."""
        for process in self._running.values():
            work = process.job.work
            if isinstance(work, BatchWork) and compare_digest(
                process.token.encode(), token.encode()
            ):
                return BatchCaller(work.batch, process.job.team_id, work.key_id)
        return None

    def _settle_batches(self) -> None:
        try:
            self._batches.settle_orphans()
        except errors.WherryError as error:
            # the disk is full, or its runner has not let go of it: later
            log.warning("a batch cannot be ended now", error=error.message)

    # ------------------------------------------------------------------ folders

    def _clean(self, job: JobRecord, *, gives_back: bool) -> None:
        folder = self._folder / job.id
        try:
            if gives_back and isinstance(job.work, ImportWork):
                self._uploads.give_back(folder / TAKEN, job.work.upload)
        except OSError as error:
            log.warning("an upload cannot be given back", job=job.id, error=error)
        if gives_back:
            self._environments.remove_unfinished()  # an installation may have been interrupted
        shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what is of no use any more: folders of finished jobs, old uploads, rows, blobs."""
        active = self._jobs.active()
        known = {job.id for job in active}
        if self._folder.is_dir():
            for folder in self._folder.iterdir():
                if folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)
        waiting = [job.work.upload for job in active if isinstance(job.work, ImportWork)]
        self._uploads.sweep(waiting)
        self._settle_batches()
        self._files.sweep()
        self._batches.sweep()
        self._jobs.trim()
        runtimes = RuntimeEnvironments(self._settings.folder / "environments")
        self._environments.remove_unused(self._jobs.used_environments() | runtimes.used())
        with self._database.write() as connection:
            trim_events(connection)
        folder = self._settings.folder
        Registry(self._database, LocalBlobs(folder / "blobs"), folder).clean_up()


def is_batch(job: JobRecord) -> bool:
    """Whether it is work for others' models, that goes on from where it was."""
    return isinstance(job.work, BatchWork)


def _may_go_on(process: RunnerProcess) -> bool:
    """Whether it ended by something that passes: it was killed, or the database was away."""
    outcome = process.outcome
    is_outage = isinstance(outcome, Failed) and outcome.code == errors.Unavailable.code
    return outcome is None or is_outage


def _judge(process: RunnerProcess, status: int) -> tuple[str, Succeeded | Failed | None]:
    """State and story of a job whose runner has ended."""
    outcome = process.outcome
    if isinstance(outcome, Succeeded):
        return "succeeded", outcome
    if process.was_cancelled or (isinstance(outcome, Failed) and outcome.code == "cancelled"):
        return "cancelled", None
    if outcome is not None:
        return "failed", outcome
    if process.has_expired:
        return "failed", Failed("timed_out", f"the job took over {MAX_JOB_SECONDS:g} s")
    hint = "was the machine out of memory? see the server's log" if status == -9 else ""
    return "failed", Failed(
        "internal", f"the job's process ended: {describe_exit(status)}", hint or "see its log"
    )


def _why(told: Succeeded | Failed | None) -> str:
    return f"{told.code}: {told.message}" if isinstance(told, Failed) else ""
