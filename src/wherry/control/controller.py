"""Makes what runs agree with what should run: level-triggered, restartable at any line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from wherry import errors
from wherry.client.schema import Deployment, WorkerInfo
from wherry.control.change import decide, settle
from wherry.control.deployments import Deployments
from wherry.control.describe import describe_deployment, describe_worker
from wherry.control.hub import Hub
from wherry.control.logs import WorkerLogs
from wherry.control.memory import MemoryBudget
from wherry.control.placement.local import LocalPlacement
from wherry.control.replicas import Replicas
from wherry.control.rollout import Wanted, choose_routed
from wherry.control.routes import route_of
from wherry.control.running import NO_TROUBLE, Order, Running
from wherry.control.store import Desired
from wherry.control.versions import Versions
from wherry.gateway.route import DeploymentRoute, Snapshot
from wherry.storage.database import Database
from wherry.telemetry import get_logger
from wherry.worker.sandbox.sandbox import Confinement

log = get_logger("controller")

TURN_SECONDS = 0.5
SETTLE_SECONDS = 3.0
EVIDENCE_SECONDS = 5.0
"""At most so much of what a canary showed is lost when the server is killed."""


class _Found:
    """A deployment as the database has it."""

    def __init__(self, desired: Desired) -> None:
        self.desired = desired
        self.meaning: list[Wanted] = []
        self.shadows: list[tuple[Wanted, float]] = []
        self.error: errors.WherryError | None = None
        self.kept = Versions()
        self.known: list[Wanted] = []


class Controller:
    """Owns the workers. One runs at a time; all its methods run on its loop.

    Args:
        database: desired state, for the poll of its revision.
        deployments: desired state.
        placement: where workers run.
        budget: how much memory they may use.
        logs: where their output goes.
        runtime_options: the operator's settings that runtimes must know.
        resolve_secret: the value behind a reference in a spec's secrets.
        request_timeout_seconds: the longest a request may take where a spec does not say.
        confinement: what holds workers.
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
        resolve_secret: Callable[[str], str],
        request_timeout_seconds: float,
        confinement: Confinement,
    ) -> None:
        self._database = database
        self._deployments = deployments
        self._running: dict[str, Running] = {}
        self._replicas = Replicas(
            self._running,
            database=database,
            placement=placement,
            budget=budget,
            logs=logs,
            runtime_options=runtime_options,
            resolve_secret=resolve_secret,
            request_timeout_seconds=request_timeout_seconds,
            on_change=self.wake_up,
            confinement=confinement,
            on_end=self._tell_ended,
        )
        self._revisions: tuple[int, int] | None = None
        """Of the desired state that is acted on; None before any was read."""
        self._epoch = 0
        self._turns_begun = 0
        self._turns_done = 0
        self._published: tuple[DeploymentRoute, ...] | None = None
        self._changed = asyncio.Event()
        self.hub: Hub

    # ------------------------------------------------------------------ the loop

    def wake_up(self) -> None:
        """Something happened: take a turn now."""
        self._changed.set()

    def _tell_ended(self, worker: str, is_crash: bool) -> None:
        self.hub.tell_ended(worker, is_crash=is_crash)

    def kill_hung(self, worker: str, why: str) -> None:
        """A gateway waits in vain for a worker: end it, another one follows."""
        self._replicas.kill_worker(worker, why)

    def nudge(self) -> None:
        """Desired state changed in the database."""
        self._changed.set()

    async def run(self) -> None:
        """Take turns until cancelled."""
        loop = asyncio.get_running_loop()
        self._replicas.start()
        while True:
            timer = loop.call_later(TURN_SECONDS, self._changed.set)
            await self._changed.wait()
            timer.cancel()
            self._changed.clear()
            try:
                await self._turn()
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
        try:
            await self._read_desired()
        except errors.Unavailable as error:
            log.warning("database is away, serving what runs", error=error.message)
        if self._revisions is not None:
            self._read_loads()
            for running in list(self._running.values()):
                await self._reconcile_alone(running)
            self._publish()
            await self._save_changes()
        self._turns_done = turn
        self.hub.drop_silent()
        self._replicas.finish_drains(self.hub.is_acknowledged)
        self._replicas.kill_hung()

    async def _read_desired(self) -> None:
        def read() -> tuple[tuple[int, int], list[_Found]] | None:
            revisions = self._database.revisions()
            seen = (revisions.get("deployments", 0), revisions.get("models", 0))
            if seen == self._revisions:
                return None
            return seen, [self._look_up(each) for each in self._deployments.load()]

        found = await asyncio.to_thread(read)
        if found is None:
            return
        self._revisions, all_found = found
        for each in all_found:
            self._take_desired(each)
        wanted = {each.desired.id for each in all_found}
        for running_id, running in self._running.items():
            if running_id not in wanted:
                running.is_deleted, running.meaning, running.shadows = True, [], []

    def _look_up(self, desired: Desired) -> _Found:
        """What a spec means now, and for one that is new here also what it served before."""
        found = _Found(desired)
        if desired.id not in self._running:
            found.kept, found.known = self._deployments.load_versions(desired)
        try:
            for version, target in self._deployments.resolve(desired):
                if target.shadow:
                    found.shadows.append((Wanted(version, 0), target.shadow))
                else:
                    found.meaning.append(Wanted(version, target.weight))
        except errors.Unavailable:
            raise
        except errors.WherryError as error:
            found.error = error
        return found

    def _take_desired(self, found: _Found) -> None:
        desired = found.desired
        running = self._running.get(desired.id)
        if running is None:
            running = self._running[desired.id] = Running(desired, found.kept)
            running.known.update({each.key: each for each in found.known})
        was_stopped = running.desired.spec.stopped
        running.desired = desired
        if was_stopped and not desired.spec.stopped:
            running.wake()
            running.failures.clear()
        if found.error is not None:
            running.unresolved = (found.error.message, found.error.hint)
            return
        running.unresolved = NO_TROUBLE
        running.meaning, running.shadows = found.meaning, found.shadows
        shadows = [wanted for wanted, _ in found.shadows]
        running.known.update({each.key: each for each in (*found.meaning, *shadows)})

    def _read_loads(self) -> None:
        now = time.monotonic()
        by_name = {each.desired.full_name: each for each in self._running.values()}
        for running in self._running.values():
            running.in_flight, running.wait_seconds = 0, 0.0
            running.waiting.clear()
            if not running.is_deleted:
                by_name[running.desired.full_name] = running  # not one that was deleted before
        present = {f"{line.name} {line.pid}" for line in self.hub.lines}
        for line in self.hub.lines:
            if line.load is None:
                continue
            for load in line.load.versions:
                running = by_name.get(load.deployment)
                if running is not None:
                    running.take_counts(now, f"{line.name} {line.pid}", load)
            for name, running in by_name.items():
                in_flight, queued, wait = line.load.loads.get(name, (0, 0, 0.0))
                running.in_flight += in_flight
                running.wait_seconds = max(running.wait_seconds, wait)
                if in_flight or queued:
                    running.last_used = now
                elif name in line.load.last_used:
                    used = now - line.load.last_used[name]
                    running.last_used = max(running.last_used, used)
        for running in self._running.values():
            running.forget_gateways(present)
            running.scale(now)
            spec = running.desired.spec
            idle = now - running.last_used
            if spec.replicas.min == 0 and spec.idle_seconds and idle > spec.idle_seconds:
                running.sleep()

    # ------------------------------------------------------------------ one deployment

    async def _reconcile_alone(self, running: Running) -> None:
        """Reconcile a deployment so that its fault is its own: the others go on."""
        running.obstacle, running.delay = NO_TROUBLE, ""
        try:
            await self._reconcile(running)
        except Exception:
            running.obstacle = ("the controller cannot handle it; the server's log says why", "")
            log.exception("cannot reconcile", deployment=running.desired.full_name)

    async def _reconcile(self, running: Running) -> None:
        if running.desired.spec.replicas.min > 0:
            running.is_awake = True
        decide(running)
        running.plan()
        wanted_keys = [each.key for each in running.wanted] if running.is_loaded else []
        for wanted in running.wanted:
            await self._replicas.adjust(running, wanted, running.target_of(wanted.key))
        shadows = [] if running.is_deleted else running.shadows
        for wanted, _ in shadows:
            if wanted.key not in wanted_keys:
                await self._replicas.adjust(running, wanted, int(running.is_loaded))
        running.routed = choose_routed(
            wanted_keys, running.routed, running.ready_by_version(), running.targets
        )
        settle(running)
        kept = {*wanted_keys, *running.routed, *running.warm, *(each.key for each, _ in shadows)}
        for replica in running.replicas.values():
            if replica.wanted.key not in kept:
                replica.drain()
        running.forget_old_versions()
        if running.is_deleted and not running.replicas:
            del self._running[running.desired.id]

    # ------------------------------------------------------------------ routes

    def wake(self, team_id: str, name: str) -> None:
        """Somebody waits for a deployment that is unloaded."""
        for running in self._running.values():
            desired = running.desired
            if desired.team_id == team_id and desired.spec.name == name and not running.is_awake:
                running.wake()
                self.wake_up()

    async def order(self, team_id: str, name: str, what: Literal["rollback", "promote"]) -> None:
        """Carry out an operator's word about versions; in force everywhere when it returns.

        Raises:
            ModelNotFound: no such deployment.
            Conflict: there is nothing to go back to, or to promote.
            Unavailable: it is in force, but could not be recorded.
        """
        running = next((each for each in self._of_team(team_id) if each.name == name), None)
        if running is None:
            raise errors.ModelNotFound(f"no deployment {name!r}", hint="wherry ps")
        order = Order(what)
        running.orders.append(order)
        await self.settle()
        if not order.done.done():
            raise errors.Unavailable("the controller is busy", hint="it will be done in a moment")
        await order.done
        if running.versions is not running.saved_versions:
            raise errors.Unavailable(
                "it is done, but the database cannot record it: a restart would undo it",
                hint="see `wherry doctor`",
            )

    async def _save_changes(self) -> None:
        """Keep what was decided; what cannot be kept now is tried again in the next turn."""
        now = time.monotonic()
        for running in list(self._running.values()):
            # the evidence of a canary grows all the time
            is_old = running.candidate and now - running.saved_at > EVIDENCE_SECONDS
            is_new = running.versions is not running.saved_versions or running.notes
            if running.is_deleted or not (is_new or is_old):
                continue
            versions, notes = running.versions, running.notes
            text = msgspec.json.encode(versions).decode()
            told = [(each.what, {"reason": each.reason}) for each in notes]
            try:
                await asyncio.to_thread(
                    self._deployments.save_versions, running.desired, text, told
                )
            except errors.Unavailable as error:
                log.warning("cannot record versions now", error=error.message)
                return
            running.saved_versions, running.saved_at = versions, now
            running.notes = running.notes[len(told) :]

    def _publish(self) -> None:
        routes = tuple(
            route_of(running) for running in self._running.values() if not running.is_deleted
        )
        if routes != self._published:
            self._published = routes
            self._epoch += 1
            self.hub.broadcast(Snapshot(self._epoch, routes))
        self._replicas.note_published(self._epoch)

    # ------------------------------------------------------------------ what others ask

    def _of_team(self, team_id: str) -> list[Running]:
        return [
            running
            for running in self._running.values()
            if running.desired.team_id == team_id and not running.is_deleted
        ]

    def describe(self, team_id: str) -> list[Deployment]:
        """A team's deployments as they are."""
        found = [describe_deployment(running) for running in self._of_team(team_id)]
        return sorted(found, key=lambda each: each.name)

    def workers(self, team_id: str) -> list[WorkerInfo]:
        """A team's workers, also those of deployments that were just deleted."""
        return [
            describe_worker(running, replica)
            for running in self._running.values()
            if running.desired.team_id == team_id
            for replica in running.replicas.values()
        ]

    def calibrations(self, team_id: str) -> dict[str, Any]:
        """What runtimes chose at load (threads, batch sizes), by `model@number`."""
        return {
            f"{each.wanted.version.model}@{each.wanted.version.number}": each.calibration
            for running in self._of_team(team_id)
            for each in running.replicas.values()
            if each.calibration
        }

    def memory_used_mib(self) -> int:
        """Of all workers together."""
        return sum(mib for _, mib in self._replicas.memory_used())

    async def close(self) -> None:
        """Let go of the workers, which are ended by the placement."""
        await self._replicas.close()
