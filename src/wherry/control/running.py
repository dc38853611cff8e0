"""One deployment as it runs: its workers, what failed, and the state that follows from both."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import msgspec

from wherry.client.schema import Rollout
from wherry.control.autoscale import Autoscaler, WorkMeter
from wherry.control.memory import memory_of
from wherry.control.placement.placement import WorkerHandle
from wherry.control.rollout import Failures, Wanted, count_replicas
from wherry.control.store import Desired
from wherry.control.versions import Note, Picks, Versions, picks_of, planned, share_of
from wherry.gateway.tally import VersionLoad
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
        self.ready_at = 0.0
        """Monotonic."""
        self.last_heard = time.monotonic()
        self.memory_mib = memory_of(wanted.version)
        self.busy_ms = 0
        self.in_flight = 0
        self.waiting = 0
        """Requests in the worker that it has not begun."""
        self.busy_seconds = 0.0
        """Of work since it began, as last reported."""
        self.busy_reported_at = 0.0
        self.busy_share = 0.0
        """Of the time between its last two reports."""
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

    def note_busy(self, now: float, busy_seconds: float) -> float:
        """Its worker reports how long it has worked; the seconds since the last report."""
        worked = max(0.0, busy_seconds - self.busy_seconds)
        passed = now - self.busy_reported_at if self.busy_reported_at else 0.0
        self.busy_seconds, self.busy_reported_at = busy_seconds, now
        if passed <= 0:
            return 0.0
        self.busy_share = min(1.0, worked / passed)
        return worked


class Order:
    """What an operator told the controller to do; done in its next turn."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Running:
    """One deployment as it runs."""

    def __init__(self, desired: Desired, versions: Versions | None = None) -> None:
        self.desired = desired
        self.is_deleted = False
        self.meaning: list[Wanted] = []
        """What the spec means now; kept while it cannot be resolved."""
        self.wanted: list[Wanted] = []
        """What should be served now: that, or what serves instead of it or beside it."""
        self.shadows: list[tuple[Wanted, float]] = []
        """Versions that get copies, and of which share of the requests."""
        self.versions = versions or Versions()
        self.saved_versions = self.versions
        self.saved_at = 0.0
        self.notes: list[Note] = []
        """Events that are not in the database yet."""
        self.orders: list[Order] = []
        self.warm_until = 0.0
        """Monotonic: until then the previous version stays loaded."""
        self.known: dict[str, Wanted] = {}
        self.routed: list[str] = []
        self.replicas: dict[str, Replica] = {}
        self.failures: dict[str, Failures] = {}
        self.scalers: dict[str, Autoscaler] = {}
        self.meters: dict[str, WorkMeter] = {}
        self.waiting: dict[str, int] = {}
        """Requests in gateways' queues, by version."""
        self.counts: dict[tuple[str, str], VersionLoad] = {}
        """What each gateway process last told of each version."""
        self.last_used = time.monotonic()
        self.in_flight = 0
        """Requests that gateways hold for it: running and waiting."""
        self.wait_seconds = 0.0
        """How long a request that comes now would wait, at the worst gateway."""
        self.is_awake = desired.spec.replicas.min > 0
        self.unloaded: tuple[str, float] = ("", 0.0)
        """For whom it was unloaded, and when (Unix seconds)."""
        self.unresolved = NO_TROUBLE
        """Cause and remedy, if the spec names what is not there."""
        self.obstacle = NO_TROUBLE
        """Cause and remedy, if the last turn could not place a worker."""
        self.delay = ""
        """Why a worker is not placed yet though it will be."""
        self.canary_words = ""
        """What the canary waits for."""
        self.remedy = ""
        """What the last worker that failed to load advised."""

    # ------------------------------------------------------------------ what should run

    @property
    def name(self) -> str:
        """Within its team."""
        return self.desired.spec.name

    @property
    def rules(self) -> Rollout:
        """How its versions change."""
        return self.desired.spec.rollout

    @property
    def picks(self) -> Picks:
        """What the spec means, in the form that is kept."""
        return picks_of(self.meaning)

    def plan(self) -> None:
        """Work out which versions should be served now, with their weights."""
        picks = () if self.is_deleted else planned(self.versions, self.picks, self.rules)
        if picks == self.picks:
            self.wanted = list(self.meaning)
        else:
            self.wanted = [
                msgspec.structs.replace(self.known[each.key], weight=each.weight)
                for each in picks
                if each.key in self.known
            ]
        self.known.update({each.key: each for each in self.wanted})

    @property
    def candidate(self) -> str:
        """Key of the version on trial; empty if there is none."""
        canary = self.versions.canary
        return canary.candidate.key if canary is not None else ""

    @property
    def shadow_shares(self) -> dict[str, float]:
        """Keys of versions that get copies of requests → of which share of them."""
        shares = {wanted.key: share for wanted, share in self.shadows}
        if self.candidate and self.rules.agreement:
            shares[self.candidate] = self.rules.agreement_share
        return shares

    @property
    def warm(self) -> list[str]:
        """Keys of the previous version while it stays loaded for a roll-back."""
        if not self.is_loaded or time.monotonic() >= self.warm_until:
            return []
        return [each.key for each in self.versions.previous if each.key in self.known]

    @property
    def is_loaded(self) -> bool:
        """Whether it should have any worker now."""
        return self.count_of(1) > 0

    def count_of(self, autoscaled: int) -> int:
        """Workers that a version should have if its load asks for so many."""
        spec = self.desired.spec
        return count_replicas(spec, is_awake=self.is_awake, autoscaled=autoscaled)

    def target_of(self, key: str) -> int:
        """Workers that a version should have."""
        full = self.count_of(self.scaler_of(key).replicas)
        canary = self.versions.canary
        if canary is None or key != canary.candidate.key or not full:
            return full
        others = [self.scaler_of(each.key).replicas for each in self.versions.serving]
        share = share_of(canary, self.rules) / 100
        shared = math.ceil(self.count_of(max(others, default=1)) * share)
        return max(1, shared, self.scaler_of(key).replicas)

    @property
    def targets(self) -> dict[str, int]:
        """Workers that each wanted version should have."""
        return {each.key: self.target_of(each.key) for each in self.wanted}

    def scaler_of(self, key: str) -> Autoscaler:
        """The autoscaler of a version; a new one that takes over begins with as many workers."""
        found = self.scalers.get(key)
        if found is None:
            before = [self.scalers[each].replicas for each in self.routed if each in self.scalers]
            is_trial = key == self.candidate
            found = Autoscaler(1 if is_trial else max(before, default=1))
            self.scalers[key] = found
        return found

    def take_over(self, key: str) -> None:
        """A version that was on trial gets all the traffic: as many workers as the one before."""
        before = [self.scalers[each].replicas for each in self.routed if each in self.scalers]
        scaler = self.scaler_of(key)
        scaler.replicas = max([scaler.replicas, *before])

    def scale(self, now: float) -> None:
        """Let each version have as many workers as its work asks for."""
        replicas = self.desired.spec.replicas
        for wanted in self.wanted:
            scaler = self.scaler_of(wanted.key)
            workers = [each for each in self.replicas_of(wanted) if each.state == "ready"]
            # before the first is ready nothing is known of the work that waits
            if replicas.max > 1 and workers:
                waiting = self.waiting.get(wanted.key, 0) + sum(each.waiting for each in workers)
                meter = self.meters.setdefault(wanted.key, WorkMeter())
                scaler.observe(
                    now,
                    sum(each.busy_share for each in workers),
                    waiting * meter.seconds_per_request,
                    target=replicas.target,
                    most=replicas.max,
                )
            is_trial = wanted.key == self.candidate
            scaler.clamp(1 if is_trial else replicas.min, replicas.max)

    # ------------------------------------------------------------------ workers

    def replicas_of(self, wanted: Wanted) -> list[Replica]:
        """Live workers of a version: ready ones first, of those the busiest, then by number."""
        found = [
            replica
            for replica in self.replicas.values()
            if replica.wanted.key == wanted.key and replica.is_live
        ]
        return sorted(
            found, key=lambda each: (each.state != "ready", not each.in_flight, each.number)
        )

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
        self.scalers.clear()

    def wake(self) -> None:
        """Load, and count as used now."""
        self.is_awake, self.last_used = True, time.monotonic()
        self.unloaded = ("", 0.0)

    def forget_old_versions(self) -> None:
        """Drop what is known of versions that are not wanted, routed or running any more."""
        kept = {each.key for each in self.wanted} | set(self.routed)
        kept |= {each.key for each in self.meaning} | {each.key for each, _ in self.shadows}
        kept |= {each.key for each in (*self.versions.serving, *self.versions.previous)}
        kept |= {replica.wanted.key for replica in self.replicas.values()}
        for kind in (self.known, self.failures, self.scalers, self.meters, self.waiting):
            for key in [each for each in kind if each not in kept]:
                del kind[key]

    # ------------------------------------------------------------------ what gateways tell

    def take_counts(self, now: float, gateway: str, load: VersionLoad) -> None:
        """What a gateway counted since it last told: for the canary, and to learn what work is."""
        key = f"{load.model}@{load.number}:{load.digest}"
        before = self.counts.get((gateway, key)) or VersionLoad(
            load.deployment, load.model, load.number, load.digest
        )
        self.counts[gateway, key] = load
        self.waiting[key] = self.waiting.get(key, 0) + load.waiting
        if load.answered < before.answered or load.failed < before.failed:
            before = VersionLoad(load.deployment, load.model, load.number, load.digest)
        answered, failed = load.answered - before.answered, load.failed - before.failed
        if answered or failed:
            self.meters.setdefault(key, WorkMeter()).add(now, 0.0, answered + failed)
        canary = self.versions.canary
        if canary is None:
            return
        latency = {
            bucket: count - before.latency.get(bucket, 0)
            for bucket, count in load.latency.items()
            if count > before.latency.get(bucket, 0)
        }
        trial = canary.trial
        if key == canary.candidate.key:
            trial.new.add(answered, failed, latency)
            agreed = load.agreed - before.agreed
            others = load.differed + load.shadow_failed - before.differed - before.shadow_failed
            trial.agreed += agreed
            trial.compared += agreed + others
        elif any(each.key == key for each in self.versions.serving):
            trial.old.add(answered, failed, latency)

    def forget_gateways(self, present: set[str]) -> None:
        """Gateway processes that ended tell nothing more."""
        for place in [each for each in self.counts if each[0] not in present]:
            del self.counts[place]

    # ------------------------------------------------------------------ how it is

    def state(self) -> tuple[str, str, str]:
        """State, its cause in a sentence, and the command that mends it."""
        name = self.desired.spec.name
        if self.desired.spec.stopped:
            return "stopped", "stopped by an operator", f"wherry scale {name} 1"
        if self.desired.spec.steps:
            return "ready", "", ""  # it has no workers: its steps' deployments do
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
        if not self.is_loaded:
            return "idle", self._why_idle(), ""
        return "starting", self.delay or "loading", ""

    def _why_idle(self) -> str:
        for_whom, at = self.unloaded
        if not for_whom:
            return "unloaded; wakes on request"
        ago = max(0, round(time.time() - at))
        return f"unloaded {ago} s ago to make room for {for_whom}; wakes on request"

    def _trouble(self) -> tuple[str, str]:
        """Why workers are missing and do not come by themselves soon, and what mends it."""
        if self.obstacle[0] or not self.is_loaded:
            return self.obstacle
        ready = self.ready_by_version()
        for each in self.wanted:
            failures = self.failures_of(each.key)
            if failures.load_failures and ready.get(each.key, 0) < self.target_of(each.key):
                return failures.cause, self.remedy or f"wherry logs {self.desired.spec.name}"
        return NO_TROUBLE
