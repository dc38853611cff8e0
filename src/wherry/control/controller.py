"""Makes what runs agree with what should run: level-triggered, restartable at any line."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from wherry import errors
from wherry.client.schema import Deployment, WorkerInfo
from wherry.control.autoscale import Autoscaler
from wherry.control.deployments import Deployments
from wherry.control.hub import Hub
from wherry.control.logs import WorkerLogs
from wherry.control.memory import MemoryBudget, memory_of
from wherry.control.placement.local import LocalPlacement
from wherry.control.placement.placement import WorkerEvent, WorkerHandle
from wherry.control.rollout import Failures, Wanted, choose_routed, count_replicas
from wherry.control.store import Desired
from wherry.gateway.route import (
    DeploymentRoute,
    Snapshot,
    VersionRoute,
    WorkerRoute,
    describe_tensors,
)
from wherry.models.registry.registry import ResolvedVersion
from wherry.storage.database import Database, add_event, read_revisions
from wherry.telemetry import get_logger
from wherry.worker.spec import FileEntry, WorkerSpec

log = get_logger("controller")

TURN_SECONDS = 0.5
SETTLE_SECONDS = 3.0
DRAIN_SECONDS = 60.0
SILENT_SECONDS = 15.0
LOAD_SECONDS = 900.0
HANG_GRACE_SECONDS = 10.0


class Replica:
    """One worker that this controller placed."""

    def __init__(self, wanted: Wanted, handle: WorkerHandle, number: int) -> None:
        self.wanted = wanted
        self.handle = handle
        self.number = number
        self.state = "starting"
        self.started_at = time.time()
        self.last_heard = time.monotonic()
        self.memory_mib = memory_of(wanted.version)
        self.busy_ms = 0
        self.detail = ""
        self.drain_epoch = 0
        self.is_removing = False
        self.calibration: dict[str, Any] = {}


class Running:
    """One deployment as it runs."""

    def __init__(self, desired: Desired) -> None:
        self.desired = desired
        self.wanted: list[Wanted] = []
        self.known: dict[str, Wanted] = {}
        self.routed: list[str] = []
        self.replicas: dict[str, Replica] = {}
        self.failures: dict[str, Failures] = {}
        self.scaler = Autoscaler()
        self.last_used = time.monotonic()
        self.is_awake = desired.spec.replicas.min > 0
        self.cause = ""
        self.remedy = ""

    def ready_by_version(self) -> dict[str, int]:
        """Ready workers of each version."""
        counts: dict[str, int] = {}
        for replica in self.replicas.values():
            if replica.state == "ready":
                counts[replica.wanted.key] = counts.get(replica.wanted.key, 0) + 1
        return counts

    def failures_of(self, key: str) -> Failures:
        """Failures of a version."""
        return self.failures.setdefault(key, Failures())


class Controller:
    """Owns the workers. One runs at a time; all its methods run on its loop.

    Args:
        database: desired state, for the poll of its revision.
        deployments: desired state.
        placement: where workers run.
        budget: how much memory they may use.
        logs: where their output goes.
        runtime_options: the operator's settings that runtimes must know.
        secrets: resolves `env:NAME` of a spec's secrets.
    """

    def __init__(
        self,
        *,
        database: Database,
        deployments: Deployments,
        placement: LocalPlacement,
        budget: MemoryBudget,
        logs: WorkerLogs,
        runtime_options: Mapping[str, Any],
        resolve_secret: Any,
        request_timeout_seconds: float,
    ) -> None:
        self._database = database
        self._deployments = deployments
        self._placement = placement
        self._budget = budget
        self._logs = logs
        self._runtime_options = dict(runtime_options)
        self._resolve_secret = resolve_secret
        self._request_timeout_seconds = request_timeout_seconds
        self._running: dict[str, Running] = {}
        self._revisions: tuple[int, int] = (-1, -1)
        self._epoch = 0
        self._turns_begun = 0
        self._turns_done = 0
        self._published: tuple[DeploymentRoute, ...] | None = None
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.hub: Hub

    # ------------------------------------------------------------------ the loop

    def wake_up(self) -> None:
        """Something happened: take a turn now."""
        self._changed.set()

    def nudge(self) -> None:
        """Desired state changed in the database."""
        self._changed.set()

    async def run(self) -> None:
        """Take turns until cancelled."""
        loop = asyncio.get_running_loop()
        self._spawn(self._hear_workers())
        while True:
            timer = loop.call_later(TURN_SECONDS, self._changed.set)
            await self._changed.wait()
            timer.cancel()
            self._changed.clear()
            try:
                await self._turn()
            except errors.Unavailable as error:
                log.warning("database is away, serving what runs", error=error.message)
            except Exception:
                log.exception("a turn of the controller failed")

    async def settle(self) -> None:
        """Return when all that is in the database now has been taken up by every gateway.

        So that a caller whose change was accepted finds it in force; loading goes on after that.
        """
        self.nudge()
        await self.catch_up(self._turns_begun + 1)

    async def catch_up(self, turn: int = 0) -> None:
        """Return when gateways act on all that is known here (and `turn` is over)."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            is_idle = not self._changed.is_set() and self._turns_done == self._turns_begun
            if is_idle and self._turns_done >= turn and self.hub.is_acknowledged(self._epoch):
                return
            await asyncio.sleep(0.003)

    async def _turn(self) -> None:
        self._turns_begun += 1
        turn = self._turns_begun
        await self._read_desired()
        self._read_loads()
        for running in list(self._running.values()):
            await self._reconcile_alone(running)
        self._publish()
        self._turns_done = turn
        self._finish_drains()
        self._watch_hangs()

    async def _read_desired(self) -> None:
        def read() -> tuple[tuple[int, int], list[tuple[Desired, Any]]] | None:
            with self._database.read() as connection:
                revisions = read_revisions(connection)
            seen = (revisions.get("deployments", 0), revisions.get("models", 0))
            if seen == self._revisions:
                return None
            return seen, [(each, self._resolve(each)) for each in self._deployments.load()]

        found = await asyncio.to_thread(read)
        if found is None:
            return
        self._revisions, all_desired = found
        for desired, resolved in all_desired:
            self._take_desired(desired, resolved)
        wanted = {desired.id for desired, _ in all_desired}
        for running_id, running in self._running.items():
            if running_id not in wanted:
                running.wanted, running.routed = [], []
                running.desired = msgspec.structs.replace(
                    running.desired,
                    spec=msgspec.structs.replace(running.desired.spec, stopped=True),
                )

    def _resolve(self, desired: Desired) -> list[Wanted] | errors.WherryError:
        try:
            return [Wanted(*pair) for pair in self._deployments.resolve(desired)]
        except errors.Unavailable:
            raise
        except errors.WherryError as error:
            return error

    def _take_desired(self, desired: Desired, resolved: list[Wanted] | errors.WherryError) -> None:
        running = self._running.get(desired.id)
        if running is None:
            running = self._running[desired.id] = Running(desired)
        was_stopped = running.desired.spec.stopped
        running.desired = desired
        if isinstance(resolved, errors.WherryError):
            running.cause, running.remedy = resolved.message, resolved.hint
            return
        running.cause = running.remedy = ""
        running.wanted = resolved
        running.known.update({each.key: each for each in resolved})
        if was_stopped and not desired.spec.stopped:
            running.is_awake, running.last_used = True, time.monotonic()
            running.failures.clear()

    def _read_loads(self) -> None:
        now = time.monotonic()
        for running in self._running.values():
            waiting, wait_seconds = 0, 0.0
            name = running.desired.full_name
            for line in self.hub.lines:
                if line.load is None:
                    continue
                in_flight, queued, wait = line.load.loads.get(name, (0, 0, 0.0))
                waiting += queued
                wait_seconds = max(wait_seconds, wait)
                if in_flight or queued:
                    running.last_used = now
                elif name in line.load.last_used:
                    used = now - line.load.last_used[name]
                    running.last_used = max(running.last_used, used)
            spec = running.desired.spec
            if spec.replicas.max > 1:
                states = {replica.state for replica in running.replicas.values()}
                running.scaler.observe(now, waiting, wait_seconds, is_settled=states <= {"ready"})
            running.scaler.clamp(spec.replicas.min, spec.replicas.max)
            idle = now - running.last_used
            if spec.replicas.min == 0 and spec.idle_seconds and idle > spec.idle_seconds:
                running.is_awake = False

    # ------------------------------------------------------------------ one deployment

    async def _reconcile_alone(self, running: Running) -> None:
        """Reconcile a deployment so that its fault is its own: the others go on."""
        try:
            await self._reconcile(running)
        except errors.Unavailable:
            raise
        except errors.WherryError as error:
            running.cause, running.remedy = error.message, error.hint
        except Exception:
            running.cause = "the controller cannot start it; the server's log says why"
            log.exception("cannot reconcile", deployment=running.desired.full_name)

    async def _reconcile(self, running: Running) -> None:
        spec = running.desired.spec
        if spec.replicas.min > 0:
            running.is_awake = True
        target = count_replicas(spec, is_awake=running.is_awake, autoscaled=running.scaler.replicas)
        wanted_keys = [] if target == 0 else [each.key for each in running.wanted]
        if target == 0:
            running.routed = []
        for wanted in running.wanted:
            await self._adjust(running, wanted, target)
        running.routed = choose_routed(wanted_keys, running.routed, running.ready_by_version())
        for replica in running.replicas.values():
            key = replica.wanted.key
            if key not in wanted_keys and key not in running.routed:
                self._begin_drain(replica)
        if not running.replicas and self._is_forgotten(running):
            del self._running[running.desired.id]

    def _is_forgotten(self, running: Running) -> bool:
        return not running.wanted and running.desired.spec.stopped

    async def _adjust(self, running: Running, wanted: Wanted, target: int) -> None:
        live = [
            replica
            for replica in running.replicas.values()
            if replica.wanted.key == wanted.key and replica.state in ("starting", "ready")
        ]
        for replica in sorted(live, key=lambda each: each.number)[target:]:
            self._begin_drain(replica)
        failures = running.failures_of(wanted.key)
        while len(live) < target:
            if time.monotonic() < failures.not_before:
                return
            used = self._memory_used()
            need = memory_of(wanted.version)
            if not self._budget.fits(need, used):
                if not self._make_room(running, wanted):
                    running.cause = f"does not fit: {self._budget.explain(need, used)}"
                    running.remedy = "stop another deployment, or raise memory_limit_mib"
                return
            running.cause = running.remedy = ""
            live.append(await self._place(running, wanted))

    def _make_room(self, running: Running, wanted: Wanted) -> bool:
        """Stop old versions of the same deployment first, where both do not fit."""
        old = [
            replica
            for replica in running.replicas.values()
            if replica.wanted.key not in {each.key for each in running.wanted}
        ]
        for replica in old:
            self._begin_drain(replica)
        if old:
            running.routed = [each.key for each in running.wanted]
        return bool(old)

    def _memory_used(self) -> list[tuple[str, int]]:
        return [
            (f"{running.desired.spec.name}#{replica.number}", replica.memory_mib)
            for running in self._running.values()
            for replica in running.replicas.values()
        ]

    async def _place(self, running: Running, wanted: Wanted) -> Replica:
        taken = {each.number for each in running.replicas.values() if each.wanted.key == wanted.key}
        number = next(index for index in range(10_000) if index not in taken)
        spec = self._worker_spec(running, wanted, number)
        replica = Replica(wanted, await self._placement.place(spec), number)
        running.replicas[spec.id] = replica
        return replica

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
            runtime_options=self._runtime_options,
            environment=version.environment,
            memory_mib=memory_of(version),
        )

    # ------------------------------------------------------------------ workers' lives

    def _begin_drain(self, replica: Replica) -> None:
        if replica.state in ("starting", "ready"):
            was_routed = replica.state == "ready"
            replica.state = "draining"
            # it may be in the epoch that holds now; the next one is without it
            replica.drain_epoch = self._epoch + 1 if was_routed else 0

    def _finish_drains(self) -> None:
        for running in self._running.values():
            for replica in running.replicas.values():
                if replica.state != "draining" or replica.is_removing:
                    continue
                if self._epoch >= replica.drain_epoch and self.hub.is_acknowledged(
                    replica.drain_epoch
                ):
                    replica.is_removing = True
                    self._spawn(self._placement.remove(replica.handle, DRAIN_SECONDS))

    def _watch_hangs(self) -> None:
        now = time.monotonic()
        for running in self._running.values():
            limit = running.desired.spec.limits.timeout_seconds or self._request_timeout_seconds
            for replica in running.replicas.values():
                if replica.is_removing:
                    continue
                silent = now - replica.last_heard
                is_hung = (
                    silent > (SILENT_SECONDS if replica.state == "ready" else LOAD_SECONDS)
                    or replica.busy_ms > (limit + HANG_GRACE_SECONDS) * 1000
                )
                if is_hung:
                    replica.detail = "it hung and was killed"
                    replica.is_removing = True
                    self._spawn(self._placement.kill(replica.handle))

    async def _hear_workers(self) -> None:
        async for event in self._placement.watch():
            try:
                self._hear(event)
            except Exception:
                log.exception("cannot handle a worker's event")

    def _hear(self, event: WorkerEvent) -> None:
        running, replica = self._find(event)
        if running is None or replica is None:
            return
        replica.last_heard = time.monotonic()
        report = event.report
        if event.kind == "ready" and report is not None:
            if replica.state == "starting":
                replica.state = "ready"
            replica.memory_mib = report.memory_mib or replica.memory_mib
            replica.calibration = report.calibration
            running.failures_of(replica.wanted.key).clear()
            self._note(running, replica, f"ready after {report.load_seconds:.2f} s")
            self.wake_up()
        elif event.kind == "alive" and report is not None:
            replica.busy_ms = report.busy_ms
            replica.memory_mib = report.memory_mib or replica.memory_mib
        elif event.kind == "starting" and report is not None and report.state == "failed":
            replica.detail = report.detail
            if report.hint:
                running.remedy = report.hint
        elif event.kind in ("exited", "lost"):
            self._bury(running, replica, event.status)
            self.wake_up()

    def _find(self, event: WorkerEvent) -> tuple[Running | None, Replica | None]:
        for running in self._running.values():
            replica = running.replicas.get(event.id)
            if replica is not None and replica.handle.generation == event.generation:
                return running, replica
        return None, None

    def _bury(self, running: Running, replica: Replica, status: int | None) -> None:
        del running.replicas[replica.handle.id]
        was_expected = replica.state == "draining"
        self._note(running, replica, f"ended with status {status}")
        if was_expected:
            return
        cause = replica.detail or describe_exit(status)
        failures = running.failures_of(replica.wanted.key)
        failures.note(time.monotonic(), cause, was_ready=replica.state == "ready")
        log.warning(
            "worker ended", deployment=running.desired.full_name, cause=cause, status=status
        )
        self._spawn(self._record_event(running, cause))

    def _note(self, running: Running, replica: Replica, text: str) -> None:
        worker = f"{replica.wanted.version.model}@{replica.wanted.version.number} #{replica.number}"
        self._logs.note(running.desired.full_name, worker, f"wherry: {text}")

    async def _record_event(self, running: Running, cause: str) -> None:
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

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ routes

    def wake(self, team_id: str, name: str) -> None:
        """Somebody waits for a deployment that is unloaded."""
        for running in self._running.values():
            desired = running.desired
            if desired.team_id == team_id and desired.spec.name == name and not running.is_awake:
                running.is_awake, running.last_used = True, time.monotonic()
                self.wake_up()

    def _publish(self) -> None:
        routes = tuple(
            self._route_of(running)
            for running in self._running.values()
            if not self._is_forgotten(running)
        )
        if routes != self._published:
            self._published = routes
            self._epoch += 1
            self.hub.broadcast(Snapshot(self._epoch, routes))

    def _route_of(self, running: Running) -> DeploymentRoute:
        desired, spec = running.desired, running.desired.spec
        state, cause, _ = self.state_of(running)
        keys = running.routed or [each.key for each in running.wanted]
        limits = spec.limits
        return DeploymentRoute(
            team_id=desired.team_id,
            team=desired.team,
            name=spec.name,
            state=state,  # type: ignore[arg-type]
            cause=cause,
            retry_after_seconds=self._estimate_load_seconds(running),
            created_at=desired.created_at,
            versions=tuple(self._version_route(running, running.known[key]) for key in keys),
            concurrency=limits.concurrency,
            queue_seconds=limits.queue_seconds,
            body_bytes=limits.body_bytes,
            tokens=limits.tokens,
            timeout_seconds=limits.timeout_seconds,
        )

    def _version_route(self, running: Running, wanted: Wanted) -> VersionRoute:
        version = wanted.version
        inputs, outputs = signature_of(version)
        workers = tuple(
            WorkerRoute(
                replica.handle.id,
                replica.handle.generation,
                replica.handle.address,
                replica.handle.spec.token,
            )
            for replica in running.replicas.values()
            if replica.wanted.key == wanted.key and replica.state == "ready"
        )
        return VersionRoute(
            version.model,
            version.number,
            version.digest,
            version.manifest.task,
            version.manifest.runtime,
            wanted.weight,
            version.manifest.idempotent,
            workers,
            inputs,
            outputs,
        )

    def _estimate_load_seconds(self, running: Running) -> float:
        measured = [each.version.load_seconds for each in running.wanted]
        waits = [
            failures.not_before - time.monotonic()
            for key, failures in running.failures.items()
            if any(each.key == key for each in running.wanted)
        ]
        return round(max([1.0, *measured]) + max([0.0, *waits]))

    def state_of(self, running: Running) -> tuple[str, str, str]:
        """State, its cause in a sentence, and the command that mends it."""
        spec = running.desired.spec
        name = spec.name
        if spec.stopped:
            return "stopped", "stopped by an operator", f"wherry scale {name} 1"
        if running.cause:
            return "failing", running.cause, running.remedy
        ready = running.ready_by_version()
        target = count_replicas(spec, is_awake=running.is_awake, autoscaled=running.scaler.replicas)
        if target == 0:
            return "idle", "unloaded; wakes on request", ""
        counts = [ready.get(each.key, 0) for each in running.wanted]
        if all(count >= target for count in counts):
            return "ready", "", ""
        failed = [
            running.failures_of(each.key)
            for each in running.wanted
            if running.failures_of(each.key).load_failures
            or time.monotonic() < running.failures_of(each.key).not_before
        ]
        if any(running.ready_by_version().get(key) for key in running.routed):
            cause = failed[0].cause if failed else "workers are starting"
            return "degraded" if failed else "ready", cause if failed else "", ""
        if failed:
            return "failing", failed[0].cause, running.remedy or f"wherry logs {name}"
        return "starting", "loading", ""

    # ------------------------------------------------------------------ what others ask

    def describe(self, team_id: str) -> list[Deployment]:
        """A team's deployments as they are."""
        found = [
            self._describe(running)
            for running in self._running.values()
            if running.desired.team_id == team_id and not self._is_forgotten(running)
        ]
        return sorted(found, key=lambda each: each.name)

    def _describe(self, running: Running) -> Deployment:
        desired = running.desired
        state, cause, remedy = self.state_of(running)
        total = sum(each.weight for each in running.wanted) or 1
        return Deployment(
            name=desired.spec.name,
            team=desired.team,
            task=running.wanted[0].version.manifest.task if running.wanted else "",
            state=state,  # type: ignore[arg-type]
            cause=cause,
            remedy=remedy,
            spec=msgspec.structs.replace(
                desired.spec, secrets=dict.fromkeys(desired.spec.secrets, "***")
            ),
            versions={
                f"{each.version.model}@{each.version.number}": each.weight * 100 // total
                for each in running.wanted
            },
            replicas_ready=sum(running.ready_by_version().values()),
            created_at=desired.created_at,
            updated_at=desired.updated_at,
        )

    def workers(self, team_id: str) -> list[WorkerInfo]:
        """A team's workers."""
        return [
            WorkerInfo(
                id=replica.handle.id,
                deployment=running.desired.spec.name,
                model=replica.wanted.version.model,
                version=replica.wanted.version.number,
                pid=replica.handle.pid,
                state=replica.state,  # type: ignore[arg-type]
                memory_mib=replica.memory_mib,
                started_at=replica.started_at,
                detail=replica.detail,
            )
            for running in self._running.values()
            if running.desired.team_id == team_id
            for replica in running.replicas.values()
        ]

    def calibrations(self, team_id: str) -> dict[str, Any]:
        """What runtimes chose at load (threads, batch sizes), by `model@number`."""
        return {
            f"{each.wanted.version.model}@{each.wanted.version.number}": each.calibration
            for running in self._running.values()
            if running.desired.team_id == team_id
            for each in running.replicas.values()
            if each.calibration
        }

    def memory_used_mib(self) -> int:
        """Of all workers together."""
        return sum(mib for _, mib in self._memory_used())

    async def close(self) -> None:
        """Stop taking turns; workers are ended by the placement."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def signature_of(version: ResolvedVersion) -> tuple[Any, Any]:
    """Tensors of a version, as the import wrote them into its manifest."""
    signature = version.manifest.signature
    return describe_tensors(signature.inputs), describe_tensors(signature.outputs)


def describe_exit(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "it was lost"
    if status < 0:
        import signal

        try:
            return f"it was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"it was killed by signal {-status}"
    return f"it exited with status {status}"
