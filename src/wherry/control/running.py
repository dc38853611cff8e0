"""One deployment as it runs: its workers, what failed, and the state that follows from both."""

from __future__ import annotations

import time
from typing import Any

from wherry.control.autoscale import Autoscaler
from wherry.control.memory import memory_of
from wherry.control.placement.placement import WorkerHandle
from wherry.control.rollout import Failures, Wanted, count_replicas
from wherry.control.store import Desired
from wherry.worker.sandbox.sandbox import Sandbox

NO_TROUBLE: tuple[str, str] = ("", "")


class Replica:
    """One worker that this controller placed."""

    def __init__(self, wanted: Wanted, handle: WorkerHandle, number: int) -> None:
        self.wanted = wanted
        self.handle = handle
        self.number = number
        self.state = "starting"
        """`starting`, `ready` or `draining`."""
        self.started_at = time.time()
        self.last_heard = time.monotonic()
        self.memory_mib = memory_of(wanted.version)
        self.busy_ms = 0
        self.in_flight = 0
        self.detail = ""
        self.drain_epoch: int | None = None
        """Of the first routes without it; None until they are published."""
        self.is_removing = False
        self.calibration: dict[str, Any] = {}
        self.sandbox: Sandbox | None = None
        """What holds it, once its launcher has told."""

    @property
    def is_live(self) -> bool:
        """Whether it serves, or will."""
        return self.state != "draining"

    def drain(self) -> None:
        """Take it out of the next routes; it is removed when every gateway follows them."""
        self.state = "draining"


class Running:
    """One deployment as it runs."""

    def __init__(self, desired: Desired) -> None:
        self.desired = desired
        self.is_deleted = False
        self.wanted: list[Wanted] = []
        """What the spec means now; kept while it cannot be resolved."""
        self.known: dict[str, Wanted] = {}
        self.routed: list[str] = []
        self.replicas: dict[str, Replica] = {}
        self.failures: dict[str, Failures] = {}
        self.scaler = Autoscaler()
        self.last_used = time.monotonic()
        self.is_awake = desired.spec.replicas.min > 0
        self.unresolved = NO_TROUBLE
        """Cause and remedy, if the spec names what is not there."""
        self.obstacle = NO_TROUBLE
        """Cause and remedy, if the last turn could not place a worker."""
        self.remedy = ""
        """What the last worker that failed to load advised."""

    @property
    def target(self) -> int:
        """Workers that each wanted version should have."""
        spec = self.desired.spec
        return count_replicas(spec, is_awake=self.is_awake, autoscaled=self.scaler.replicas)

    def replicas_of(self, wanted: Wanted) -> list[Replica]:
        """Live workers of a version: ready ones first, then by number."""
        found = [
            replica
            for replica in self.replicas.values()
            if replica.wanted.key == wanted.key and replica.is_live
        ]
        return sorted(found, key=lambda each: (each.state != "ready", each.number))

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

    def sleep(self) -> None:
        """Unload until somebody calls; one worker is enough to begin with then."""
        self.is_awake = False
        self.scaler = Autoscaler()

    def wake(self) -> None:
        """Load, and count as used now."""
        self.is_awake, self.last_used = True, time.monotonic()

    def forget_old_versions(self) -> None:
        """Drop what is known of versions that are not wanted, routed or running any more."""
        kept = {each.key for each in self.wanted} | set(self.routed)
        kept |= {replica.wanted.key for replica in self.replicas.values()}
        self.known = {key: wanted for key, wanted in self.known.items() if key in kept}
        self.failures = {key: each for key, each in self.failures.items() if key in kept}

    # ------------------------------------------------------------------ how it is

    def state(self) -> tuple[str, str, str]:
        """State, its cause in a sentence, and the command that mends it."""
        name = self.desired.spec.name
        if self.desired.spec.stopped:
            return "stopped", "stopped by an operator", f"wherry scale {name} 1"
        cause, remedy = self._trouble()
        ready = self.ready_by_version()
        if any(ready.get(key) for key in self.routed):
            cause, remedy = (cause, remedy) if cause else self.unresolved
            if cause:
                return "degraded", cause, remedy
            wanted_keys = [each.key for each in self.wanted]
            is_old_serving = any(ready.get(key) for key in self.routed if key not in wanted_keys)
            is_complete = is_old_serving or all(ready.get(key) for key in wanted_keys)
            return ("ready", "", "") if is_complete else ("starting", "loading", "")
        if cause:
            return "failing", cause, remedy
        if self.unresolved[0]:  # what was meant before goes on, if there is such
            return "degraded" if self.wanted else "failing", *self.unresolved
        if self.target == 0:
            return "idle", "unloaded; wakes on request", ""
        return "starting", "loading", ""

    def _trouble(self) -> tuple[str, str]:
        """Why workers are missing and do not come by themselves soon, and what mends it."""
        if self.obstacle[0] or self.target == 0:
            return self.obstacle
        ready = self.ready_by_version()
        for each in self.wanted:
            failures = self.failures_of(each.key)
            if failures.load_failures and ready.get(each.key, 0) < self.target:
                return failures.cause, self.remedy or f"wherry logs {self.desired.spec.name}"
        return NO_TROUBLE
