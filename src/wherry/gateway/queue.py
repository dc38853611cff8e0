"""Requests that wait for one version of one deployment, and the workers that pull them."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable

from wherry import errors
from wherry.gateway.exchange import Exchange
from wherry.gateway.link import WorkerLink
from wherry.gateway.route import DeploymentRoute, VersionRoute, WorkerRoute

MAX_WAITING = 10_000
MAX_ATTEMPTS = 2
"""Times that a request may be executed: the first, and once more if its worker died."""
MAX_SENDS = 5
"""Times that it may be sent to a worker that turned out to be stopping."""
RECONNECT_SECONDS = 0.2
SMOOTHING = 0.1


class VersionQueue:
    """Earliest deadline first; workers take as many as they gave credits for.

    Args:
        deployment: whose requests these are.
        version: the version that answers them.
        gateway: our name.
    """

    def __init__(self, deployment: DeploymentRoute, version: VersionRoute, gateway: str) -> None:
        self.deployment = deployment
        self.version = version
        self.links: dict[str, WorkerLink] = {}
        self._gateway = gateway
        self._waiting: list[tuple[float, int, Exchange]] = []
        self._live = 0
        self._seconds_per_answer = 0.0
        self._last_answer = 0.0

    # ------------------------------------------------------------------ in and out

    def put(self, exchange: Exchange) -> None:
        """Let a request wait for a worker; it is sent at once if one has room.

        Raises:
            Overloaded: it would wait longer than it may, or too many wait.
        """
        self._refuse_if_doomed(exchange)
        exchange.queue = self
        self._push(exchange)
        self.dispatch()

    def _push(self, exchange: Exchange) -> None:
        heapq.heappush(self._waiting, (exchange.deadline, exchange.number, exchange))

    def dispatch(self) -> None:
        """Send what waits to workers that have room."""
        while self._waiting:
            exchange = self._waiting[0][2]
            if exchange.is_done:
                heapq.heappop(self._waiting)
                continue
            link = self._choose_link(exchange.size)
            if link is None:
                return
            heapq.heappop(self._waiting)
            link.send(exchange)

    def _choose_link(self, size: int) -> WorkerLink | None:
        best = None
        for link in self.links.values():
            if link.has_room(size) and (best is None or link.load < best.load):
                best = link
        return best

    def take_back(self, lost: list[Exchange]) -> None:
        """Requests whose worker is gone: send again what is safe, fail the rest."""
        for exchange in lost:
            if exchange.is_done:
                continue
            if not exchange.was_started:
                is_safe = exchange.attempts < MAX_SENDS
            else:
                is_safe = (
                    self.version.idempotent
                    and not exchange.has_begun
                    and not exchange.call.stream
                    and exchange.attempts < MAX_ATTEMPTS
                )
            if is_safe:
                exchange.link = None
                self._push(exchange)
            else:
                exchange.fail(_worker_lost(exchange))
        self.dispatch()

    def drain_waiting(self) -> list[Exchange]:
        """Take out everything that waits."""
        waiting = [entry[2] for entry in sorted(self._waiting) if not entry[2].is_done]
        self._waiting.clear()
        return waiting

    @property
    def waiting(self) -> int:
        """Requests that wait (a few of them may have been cancelled)."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Requests that workers have."""
        return sum(link.load for link in self.links.values())

    # ------------------------------------------------------------------ time

    def note_answer(self) -> None:
        """Learn from an answer how fast answers come while there is work."""
        now = time.monotonic()
        if self._last_answer and (self._waiting or self.in_flight):
            passed = min(now - self._last_answer, 60.0)
            self._seconds_per_answer += SMOOTHING * (passed - self._seconds_per_answer)
        self._last_answer = now

    def estimate_wait_seconds(self) -> float:
        """How long a request that comes now would wait before it is sent."""
        return len(self._waiting) * self._seconds_per_answer

    def _refuse_if_doomed(self, exchange: Exchange) -> None:
        estimate = self.estimate_wait_seconds()
        allowed = exchange.deadline - time.monotonic()
        if self.deployment.queue_seconds:
            allowed = min(allowed, self.deployment.queue_seconds)
        if estimate > allowed or len(self._waiting) >= MAX_WAITING:
            raise errors.Overloaded(
                f"deployment {self.deployment.name!r} has {len(self._waiting)} requests waiting, "
                f"about {estimate:.1f} s of work",
                hint="repeat later, or ask the operator for more replicas",
                retry_after_seconds=max(1.0, estimate - allowed),
            )

    # ------------------------------------------------------------------ workers

    def update(self, deployment: DeploymentRoute, version: VersionRoute) -> None:
        """Follow a newer snapshot."""
        self.deployment, self.version = deployment, version
        wanted = {worker.id: worker for worker in version.workers}
        for worker_id, link in list(self.links.items()):
            if wanted.get(worker_id) != link.route:
                del self.links[worker_id]
                link.retire()
        for worker_id, worker in wanted.items():
            if worker_id not in self.links:
                self._link(worker)

    def close(self, on_moved: Callable[[list[Exchange]], None]) -> None:
        """The version is not served any more: what waits is handed on, what runs may end."""
        for link in self.links.values():
            link.retire()
        self.links.clear()
        moved = self.drain_waiting()
        if moved:
            on_moved(moved)

    def _link(self, worker: WorkerRoute) -> None:
        self.links[worker.id] = WorkerLink(worker, self._gateway, self.dispatch, self._on_lost)

    def _on_lost(self, link: WorkerLink, lost: list[Exchange]) -> None:
        if self.links.get(link.route.id) is link:
            del self.links[link.route.id]
            # if it lives (a broken connection, not a death), the snapshot still lists it
            loop = asyncio.get_running_loop()
            loop.call_later(RECONNECT_SECONDS, self._reconnect, link.route)
        if lost:
            self.take_back(lost)

    def _reconnect(self, worker: WorkerRoute) -> None:
        if worker in self.version.workers and worker.id not in self.links:
            self._link(worker)


def _worker_lost(exchange: Exchange) -> errors.WherryError:
    if exchange.was_started:
        return errors.WorkerLost(
            "the model's worker died while it had the request, and it was not repeated",
            hint="repeat it if the model may answer twice; the log has the cause",
        )
    return errors.NotReady(
        "the model's workers are stopping", hint="repeat in a moment", retry_after_seconds=1.0
    )
