"""Where workers run: the contract of every placement."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol

import msgspec

from wherry.worker.spec import Report, WorkerSpec


class WorkerHandle(msgspec.Struct, frozen=True):
    """A worker as its placement knows it."""

    id: str
    generation: int
    address: str
    """Path of its Unix socket, or `tcp://host:port`."""
    pid: int
    spec: WorkerSpec


class WorkerEvent(msgspec.Struct, frozen=True):
    """Something happened to a worker."""

    id: str
    generation: int
    kind: Literal["starting", "ready", "alive", "exited", "lost", "unreachable"]
    """exited = proved dead; lost = may still run, fence it; unreachable = cannot be asked."""
    report: Report | None = None
    status: int | None = None
    """Exit status; negative = killed by that signal."""


def describe_exit(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "it was lost"
    if status >= 0:
        return f"it exited with status {status}"
    try:
        return f"it was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"it was killed by signal {-status}"


class Placement(Protocol):
    """Starts and ends workers; knows nothing of users, keys or databases."""

    async def place(self, spec: WorkerSpec) -> WorkerHandle:
        """Start a worker; idempotent by id and generation."""
        ...

    async def adopt(self) -> Sequence[WorkerHandle]:
        """What still runs after a restart of the controller."""
        ...

    async def remove(self, worker: WorkerHandle, grace_seconds: float) -> None:
        """Let it finish what it has, at most so long, then end it."""
        ...

    def watch(self) -> AsyncIterator[WorkerEvent]:
        """Events of all workers, in order for each."""
        ...
