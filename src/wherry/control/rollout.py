"""Which workers a deployment should have, and which of them take traffic: pure decisions.

Surge first: new versions load beside the old ones, traffic moves when each of them has all its
workers ready, then the old ones drain. Only where memory does not allow both are the old ones
stopped first, one after another; requests may then wait in the gateways' queues.
"""

from __future__ import annotations

import msgspec

from wherry.client.schema import DeploymentSpec
from wherry.models.registry.registry import ResolvedVersion

WINDOW_SECONDS = 60.0
MAX_BACKOFF_SECONDS = 30.0
FREE_CRASHES = 3
"""Crashes within the window that are answered by an immediate restart."""
MAX_CRASH_BACKOFF_SECONDS = 1.0
"""A worker that was ready can load: its crash is an input's fault, and other inputs wait."""


class Failures:
    """How often a version failed lately, and how long to wait before the next attempt.

    Only failed loads make a deployment `failing`. Crashes by an input are its fault alone: the
    gateways refuse it (`wherry.gateway.quarantine`). Kills from outside are not counted at all.
    """

    def __init__(self) -> None:
        self._at: list[float] = []
        self.load_failures = 0
        self.crashes: list[float] = []
        """When ready workers ended lately."""
        self.not_before = 0.0
        self.cause = ""

    def note(self, now: float, cause: str, *, was_ready: bool) -> None:
        """A worker ended that should not have."""
        self.cause = cause
        if was_ready:
            self.crashes = [at for at in self.crashes if now - at < WINDOW_SECONDS] + [now]
        self._at = [at for at in self._at if now - at < WINDOW_SECONDS] + [now]
        if was_ready:
            count, longest = len(self._at) - FREE_CRASHES, MAX_CRASH_BACKOFF_SECONDS
        else:
            self.load_failures += 1
            count, longest = self.load_failures, MAX_BACKOFF_SECONDS
        delay = min(longest, 0.5 * 2 ** min(count - 1, 10)) if count > 0 else 0.0
        self.not_before = now + delay

    def clear(self) -> None:
        """A worker became ready: loading works."""
        self.load_failures = 0
        if len(self._at) <= FREE_CRASHES:
            self.not_before = 0.0


class Wanted(msgspec.Struct, frozen=True):
    """A version that should be served, and its share."""

    version: ResolvedVersion
    weight: int

    @property
    def key(self) -> str:
        """Distinguishes versions, also when a model is removed and made again."""
        return f"{self.version.model}@{self.version.number}:{self.version.digest}"


def choose_routed(
    wanted: list[str], routed: list[str], ready: dict[str, int], targets: dict[str, int]
) -> list[str]:
    """Keys of the versions that take traffic now.

    Args:
        wanted: what the spec asks for.
        routed: what takes traffic so far.
        ready: ready workers by version.
        targets: workers that each wanted version should have. An old version is not left before
            all of them are ready: the new one must carry the whole load.
    """
    still = [key for key in routed if ready.get(key)]
    is_leaving = any(key not in wanted for key in still)
    if all(ready.get(key, 0) >= (targets[key] if is_leaving else 1) for key in wanted):
        return wanted
    return still or wanted


def count_replicas(spec: DeploymentSpec, *, is_awake: bool, autoscaled: int) -> int:
    """How many workers each version should have."""
    if spec.stopped:
        return 0
    if spec.replicas.min == 0 and not is_awake:
        return 0
    return max(1, spec.replicas.min, min(spec.replicas.max, autoscaled))
