"""The lives of workers: placed, heard, watched, drained, removed, buried."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from wherry import errors
from wherry.control.autoscale import WorkMeter
from wherry.control.evict import Resident, choose_victims, will_make_room
from wherry.control.logs import WorkerLogs
from wherry.control.memory import MemoryBudget, memory_of
from wherry.control.placement.local import LocalPlacement
from wherry.control.placement.placement import WorkerEvent, describe_exit
from wherry.control.rollout import Wanted
from wherry.control.running import Replica, Running
from wherry.control.versions import Note
from wherry.storage.database import Database, add_event
from wherry.telemetry import get_logger
from wherry.worker.sandbox.sandbox import Confinement
from wherry.worker.spec import FileEntry, WorkerSpec

log = get_logger("control.replicas")

DRAIN_SECONDS = 10.0
"""What a worker gets to end beyond the deadline of its last request."""
MAX_CALIBRATIONS = 1000
SILENT_SECONDS = 15.0
LOAD_SECONDS = 900.0
HANG_GRACE_SECONDS = 10.0
PAUSE_SECONDS = 3.0


class Replicas:
    """All workers of all deployments. Its methods run on the controller's loop.

    Args:
        running: the deployments, shared with the controller.
        database: where the ends of workers are told.
        placement: where workers run.
        budget: how much memory they may use.
        logs: where their output goes.
        runtime_options: the operator's settings that runtimes must know.
        resolve_secret: the value behind a reference in a spec's secrets.
        request_timeout_seconds: the longest a request may take where a spec does not say.
        on_change: called when a worker became ready or ended.
        confinement: what holds workers.
        on_end: called with the id of a worker that ended, and whether it crashed: it did
            not if somebody killed it from outside.
    """

    def __init__(
        self,
        running: Mapping[str, Running],
        *,
        database: Database,
        placement: LocalPlacement,
        budget: MemoryBudget,
        logs: WorkerLogs,
        runtime_options: Mapping[str, Any],
        resolve_secret: Callable[[str], str],
        request_timeout_seconds: float,
        on_change: Callable[[], None],
        confinement: Confinement,
        on_end: Callable[[str, bool], None],
    ) -> None:
        self._running = running
        self._on_end = on_end
        self._oom_kills = count_oom_kills()
        self._database = database
        self._placement = placement
        self._budget = budget
        self._logs = logs
        self._runtime_options = dict(runtime_options)
        self._resolve_secret = resolve_secret
        self._request_timeout_seconds = request_timeout_seconds
        self._on_change = on_change
        self._confinement = confinement
        self._calibrations: dict[str, dict[str, Any]] = {}
        """By digest: what runtimes measured, so that the next worker need not. A worker has no
        place of its own to keep it; it checks that the machine is the same."""
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to listen to workers."""
        self._spawn(self._hear_for_ever())
        self._spawn(self._forgive_pauses())

    async def close(self) -> None:
        """Stop listening; workers are ended by the placement."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _all(self) -> list[tuple[Running, Replica]]:
        return [
            (running, replica)
            for running in self._running.values()
            for replica in running.replicas.values()
        ]

    # ------------------------------------------------------------------ as many as wanted

    async def adjust(self, running: Running, wanted: Wanted, target: int) -> None:
        """Start or drain workers of a version until it has as many as it should have."""
        live = running.replicas_of(wanted)
        for replica in live[target:]:
            replica.drain()
        failures = running.failures_of(wanted.key)
        for _ in range(len(live), target):
            if time.monotonic() < failures.not_before or not self._has_room(running, wanted):
                return
            try:
                await self._place(running, wanted)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again later
                failures.note(time.monotonic(), self._explain(running, error), was_ready=False)
                return

    def _explain(self, running: Running, error: Exception) -> str:
        """Why no worker could be started, in a sentence."""
        if isinstance(error, errors.WherryError):
            running.remedy = error.hint
            return error.message
        log.error("cannot start a worker", deployment=running.desired.full_name, exc_info=error)
        return "the controller cannot start it; the server's log says why"

    def _has_room(self, running: Running, wanted: Wanted) -> bool:
        """Whether one more fits now; if not, what will make room is begun, or told missing."""
        need = memory_of(wanted.version)
        if self._budget.fits(need, self.memory_used()):
            return True
        used = self.memory_used(live_only=True)
        if self._budget.fits(need, used):
            running.delay = "waits for the memory of workers that are ending"
            return False
        missing = need + sum(mib for _, mib in used) - self._budget.limit_mib
        is_served = any(each.key == wanted.key for each in running.wanted)
        # a worker more than it must have, or one for shadow copies, is worth nobody's unloading
        least = max(1, running.desired.spec.replicas.min) if is_served else 0
        is_due = len(running.replicas_of(wanted)) < least
        residents = self._residents(running)
        if self._end_warm(missing) or (is_due and self._evict(running, residents, missing)):
            running.delay = "waits for the memory of workers that are ending"
        elif is_served and self._replace_old(running):
            running.delay = "waits for the memory of the version before it"
        elif is_due and will_make_room(residents, missing):
            running.delay = "waits for memory that deployments in use hold"
        elif is_due:
            running.obstacle = (
                f"does not fit: {self._budget.explain(need, self.memory_used())}",
                "stop another deployment, or raise memory_limit_mib",
            )
        return False

    def _end_warm(self, missing_mib: int) -> bool:
        """End versions that are kept loaded for a roll-back, the oldest first, if that helps."""
        freed = 0
        for running in sorted(self._running.values(), key=lambda each: each.warm_until):
            idle = set(running.warm) - {each.key for each in running.wanted} - set(running.routed)
            workers = [each for each in running.replicas.values() if each.wanted.key in idle]
            if freed < missing_mib and any(each.is_live for each in workers):
                running.warm_until = 0.0
                freed += sum(each.memory_mib for each in workers)
                for replica in workers:
                    replica.drain()
        return freed > 0

    def _evict(self, asking: Running, residents: list[Resident], missing_mib: int) -> bool:
        """Unload deployments that nobody uses; why is kept and shown."""
        victims = choose_victims(residents, missing_mib)
        for victim in victims:
            running = self._running[victim]
            is_same_team = running.desired.team_id == asking.desired.team_id
            name = asking.desired.spec.name if is_same_team else "another team's deployment"
            running.sleep()
            running.unloaded = (name, time.time())
            idle = round(time.monotonic() - running.last_used)
            running.notes.append(Note("unloaded", f"to make room for {name}; idle for {idle} s"))
            log.info("unloaded", deployment=running.desired.full_name, for_deployment=name)
        if victims:
            self._on_change()  # their workers end in the next turn
        return bool(victims)

    def _residents(self, asking: Running) -> list[Resident]:
        now = time.monotonic()
        found: list[Resident] = []
        for running_id, running in self._running.items():
            workers = [each for each in running.replicas.values() if each.is_live]
            if running is asking or running.is_deleted or not workers:
                continue
            spec = running.desired.spec
            is_loading = any(each.state != "ready" for each in workers)
            is_used = running.in_flight > 0 or any(each.in_flight for each in workers)
            found.append(
                Resident(
                    id=running_id,
                    memory_mib=sum(each.memory_mib for each in workers),
                    may_be_unloaded=spec.replicas.min == 0 and not spec.pinned,
                    is_working=is_loading or is_used,
                    loaded_seconds=now - max(each.ready_at for each in workers),
                    idle_seconds=now - running.last_used,
                )
            )
        return found

    def _replace_old(self, running: Running) -> bool:
        """Drain one worker of an old version of the same deployment, one after another."""
        wanted_keys = {each.key for each in running.wanted} | set(running.shadow_shares)
        old = [each for each in running.replicas.values() if each.wanted.key not in wanted_keys]
        if old and all(replica.is_live for replica in old):
            min(old, key=lambda each: each.state == "ready").drain()
        return bool(old)

    def memory_used(self, *, live_only: bool = False) -> list[tuple[str, int]]:
        """MiB of each worker."""
        return [
            (f"{running.desired.spec.name}#{replica.number}", replica.memory_mib)
            for running, replica in self._all()
            if replica.is_live or not live_only
        ]

    async def _place(self, running: Running, wanted: Wanted) -> None:
        taken = {each.number for each in running.replicas.values() if each.wanted.key == wanted.key}
        number = next(index for index in range(10_000) if index not in taken)
        spec = self._worker_spec(running, wanted, number)
        handle = await self._placement.place(spec)
        running.replicas[spec.id] = Replica(wanted, handle, number)

    def _worker_spec(self, running: Running, wanted: Wanted, number: int) -> WorkerSpec:
        version = wanted.version
        given = {
            name: self._resolve_secret(value)
            for name, value in running.desired.spec.secrets.items()
        }
        return WorkerSpec(
            id="w-" + secrets.token_hex(6),
            deployment=running.desired.full_name,
            model=version.model,
            version=version.number,
            replica=number,
            digest=version.digest,
            files=tuple(FileEntry(file.path, file.size, file.sha256) for file in version.files),
            device=running.desired.spec.device,
            token=secrets.token_bytes(32),
            secrets=given if version.manifest.runtime == "upstream" else {},
            runtime_options=self._options_of(version.digest),
            environment=version.environment,
            memory_mib=memory_of(version),
            memory_limit_mib=self._confinement.memory_limit_mib(
                memory_of(version), self._budget.limit_mib
            ),
            runtime=version.manifest.runtime,
            sandbox=self._confinement.sandbox,
        )

    def _options_of(self, digest: str) -> dict[str, Any]:
        """What its runtime must know: the operator's settings, and what it measured before."""
        known = self._calibrations.get(digest)
        return self._runtime_options | ({"calibration": known} if known else {})

    def _remember(self, digest: str, calibration: dict[str, Any]) -> None:
        self._calibrations.pop(digest, None)
        self._calibrations[digest] = calibration
        while len(self._calibrations) > MAX_CALIBRATIONS:
            del self._calibrations[next(iter(self._calibrations))]  # the oldest

    # ------------------------------------------------------------------ the end of a worker

    def note_published(self, epoch: int) -> None:
        """Routes without the draining workers are out: gateways that follow them use none."""
        for _, replica in self._all():
            if not replica.is_live and replica.drain_epoch is None:
                replica.drain_epoch = epoch

    def finish_drains(self, is_acknowledged: Callable[[int], bool]) -> None:
        """Remove draining workers that no gateway uses any more."""
        for running, replica in self._all():
            if replica.is_removing or replica.drain_epoch is None:
                continue
            if is_acknowledged(replica.drain_epoch):
                replica.is_removing = True
                grace_seconds = self._request_limit(running) + DRAIN_SECONDS
                self._spawn(self._placement.remove(replica.handle, grace_seconds))

    def kill_hung(self) -> None:
        """End workers that say nothing, or whose batch never ends."""
        now = time.monotonic()
        for running, replica in self._all():
            if replica.is_removing:
                continue
            patience = LOAD_SECONDS if replica.state == "starting" else SILENT_SECONDS
            limit_ms = (self._request_limit(running) + HANG_GRACE_SECONDS) * 1000
            if now - replica.last_heard > patience or replica.busy_ms > limit_ms:
                self._kill(replica, "it hung and was killed")

    def kill_worker(self, worker: str, why: str) -> None:
        """End a worker that hangs, as a gateway sees it."""
        for running, replica in self._all():
            if replica.handle.id == worker and not replica.is_removing:
                log.warning("worker hangs", deployment=running.desired.full_name, cause=why)
                self._kill(replica, f"it hung and was killed: {why}")

    def _kill(self, replica: Replica, cause: str) -> None:
        replica.detail = cause
        replica.is_removing = True
        self._spawn(self._placement.kill(replica.handle))

    def _request_limit(self, running: Running) -> float:
        return running.desired.spec.limits.timeout_seconds or self._request_timeout_seconds

    async def _forgive_pauses(self) -> None:
        """When this process was frozen (a laptop's lid, a paused VM), silence proves nothing."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(1.0)
            if time.monotonic() - before > 1.0 + PAUSE_SECONDS:
                for _, replica in self._all():
                    replica.last_heard = time.monotonic()

    # ------------------------------------------------------------------ what is heard of them

    async def _hear_for_ever(self) -> None:
        async for event in self._placement.watch():
            try:
                self._hear(event)
            except Exception:
                log.exception("cannot handle a worker's event")

    def _hear(self, event: WorkerEvent) -> None:
        found = self._find(event)
        if found is None:
            return
        running, replica = found
        replica.last_heard = time.monotonic()
        report = event.report
        if report is not None and report.sandbox is not None and replica.sandbox is None:
            replica.sandbox = report.sandbox  # the launcher's word; later ones are the worker's
        if event.kind == "ready" and report is not None:
            if replica.state == "starting":
                replica.state = "ready"
                replica.ready_at = time.monotonic()
            replica.memory_mib = report.memory_mib or replica.memory_mib
            replica.calibration = report.calibration
            if report.calibration:
                self._remember(replica.wanted.version.digest, report.calibration)
            running.failures_of(replica.wanted.key).clear()
            running.remedy = ""
            self._note(running, replica, f"ready after {report.load_seconds:.2f} s")
            self._on_change()
        elif event.kind == "alive" and report is not None:
            replica.busy_ms = report.busy_ms
            replica.in_flight, replica.waiting = report.in_flight, report.waiting
            now = time.monotonic()
            worked = replica.note_busy(now, report.busy_seconds)
            running.meters.setdefault(replica.wanted.key, WorkMeter()).add(now, worked, 0)
            replica.memory_mib = report.memory_mib or replica.memory_mib
        elif event.kind == "starting" and report is not None and report.state == "failed":
            replica.detail = report.detail
            running.remedy = report.hint
        elif event.kind in ("exited", "lost"):
            self._bury(running, replica, event.status)
            self._on_change()

    def _find(self, event: WorkerEvent) -> tuple[Running, Replica] | None:
        for running in self._running.values():
            replica = running.replicas.get(event.id)
            if replica is not None and replica.handle.generation == event.generation:
                return running, replica
        return None

    def _bury(self, running: Running, replica: Replica, status: int | None) -> None:
        del running.replicas[replica.handle.id]
        self._note(running, replica, f"ended with status {status}")
        is_crash = self._is_crash(replica, status)
        self._on_end(replica.handle.id, is_crash)
        if not replica.is_live:
            return  # as it should
        cause = replica.detail or describe_exit(status)
        was_ready = replica.state == "ready"
        if is_crash or not was_ready:
            failures = running.failures_of(replica.wanted.key)
            failures.note(time.monotonic(), cause, was_ready=was_ready)
        log.warning(
            "worker ended", deployment=running.desired.full_name, cause=cause, status=status
        )
        self._spawn(self._record_end(running, cause))

    def _is_crash(self, replica: Replica, status: int | None) -> bool:
        """Whether it ended by itself: not if it was killed by somebody else than the kernel."""
        oom_kills, self._oom_kills = self._oom_kills, count_oom_kills()
        was_killed = status == -signal.SIGKILL and not replica.detail
        return not was_killed or self._oom_kills > oom_kills

    def _note(self, running: Running, replica: Replica, text: str) -> None:
        worker = f"{replica.wanted.version.model}@{replica.wanted.version.number} #{replica.number}"
        self._logs.note(running.desired.full_name, worker, f"wherry: {text}")

    async def _record_end(self, running: Running, cause: str) -> None:
        desired = running.desired

        def write() -> None:
            with self._database.write() as connection:
                add_event(
                    connection,
                    desired.team_id,
                    "workers",
                    desired.spec.name,
                    "worker ended",
                    {"cause": cause},
                )

        try:
            await asyncio.to_thread(write)
        except errors.Unavailable:
            return  # the log has it


def count_oom_kills() -> int:
    """How many processes the kernel has ended for want of memory; 0 where it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line[9:]) for line in lines if line.startswith("oom_kill ")), 0)
