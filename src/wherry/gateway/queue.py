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
MAX_EXECUTIONS = 2
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
        move: takes requests that this queue cannot serve any more.
    """

    def __init__(
        self,
        deployment: DeploymentRoute,
        version: VersionRoute,
        gateway: str,
        move: Callable[[list[Exchange]], None],
    ) -> None:
        self.deployment = deployment
        self.version = version
        self.links: dict[str, WorkerLink] = {}
        self.is_closed = False
        self._gateway = gateway
        self._move = move
        self._waiting: list[tuple[float, int, Exchange]] = []
        self._ended = 0
        """How many of those have ended meanwhile: cancelled, or out of time."""
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
                self._ended -= 1
                continue
            link = self._choose_link(exchange.size)
            if link is None:
                return
            heapq.heappop(self._waiting)
            if not self.in_flight:
                self._last_answer = time.monotonic()  # workers were idle until now
            link.send(exchange)

    def _choose_link(self, size: int) -> WorkerLink | None:
        best = None
        for link in self.links.values():
            if link.has_room(size) and (best is None or link.load < best.load):
                best = link
        return best

    def take_back(self, lost: list[Exchange]) -> None:
        """Requests whose worker is gone: send again what is safe, fail the rest."""
        again: list[Exchange] = []
        for exchange in lost:
            if exchange.is_done:
                continue
            if self._may_send_again(exchange):
                exchange.link = None
                again.append(exchange)
            else:
                exchange.fail(_worker_lost(exchange))
        if self.is_closed:
            self._move(again)
            return
        for exchange in again:
            self._push(exchange)
        self.dispatch()

    def _may_send_again(self, exchange: Exchange) -> bool:
        if exchange.attempts >= MAX_SENDS:
            return False
        return not exchange.was_started or (
            self.version.idempotent
            and not exchange.call.stream
            and exchange.executions < MAX_EXECUTIONS
        )

    def note_end(self, exchange: Exchange) -> None:
        """One of this queue's requests has ended, wherever it was."""
        if exchange.link is None:
            self._ended += 1
            if self._ended > len(self._waiting) // 2:
                self._waiting = [entry for entry in self._waiting if not entry[2].is_done]
                heapq.heapify(self._waiting)
                self._ended = 0
        elif exchange.outcome is not None:
            self._learn_pace()

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker."""
        return len(self._waiting) - self._ended

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits here, and a worker has nothing to do."""
        links = self.links.values()
        return not self.waiting and any(link.is_ready and not link.load for link in links)

    @property
    def in_flight(self) -> int:
        """Requests that workers have."""
        return sum(link.load for link in self.links.values())

    # ------------------------------------------------------------------ time

    def _learn_pace(self) -> None:
        """Learn from an answer how fast answers come while there is work."""
        now = time.monotonic()
        if self._waiting or self.in_flight:
            passed = min(now - self._last_answer, 60.0)
            self._seconds_per_answer += SMOOTHING * (passed - self._seconds_per_answer)
        self._last_answer = now

    def estimate_wait_seconds(self) -> float:
        """How long a request that comes now would wait before it is sent."""
        return self.waiting * self._seconds_per_answer

    def _refuse_if_doomed(self, exchange: Exchange) -> None:
        estimate = self.estimate_wait_seconds()
        allowed = exchange.deadline - time.monotonic()
        if self.deployment.queue_seconds:
            allowed = min(allowed, self.deployment.queue_seconds)
        if estimate > allowed or self.waiting >= MAX_WAITING:
            raise errors.Overloaded(
                f"deployment {self.deployment.name!r} has {self.waiting} requests waiting, "
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

    def close(self) -> None:
        """The version is not served any more: what waits is moved, what runs may end."""
        self.is_closed = True
        for link in self.links.values():
            link.retire()
        self.links.clear()
        waiting = [entry[2] for entry in sorted(self._waiting) if not entry[2].is_done]
        self._waiting.clear()
        self._ended = 0
        self._move(waiting)

    def _link(self, worker: WorkerRoute) -> None:
        self.links[worker.id] = WorkerLink(worker, self._gateway, self.dispatch, self._on_lost)

    def _on_lost(self, link: WorkerLink, lost: list[Exchange]) -> None:
        if self.links.get(link.route.id) is link and not self.is_closed:
            del self.links[link.route.id]
            # if it lives (a broken connection, not a death), the snapshot still lists it
            loop = asyncio.get_running_loop()
            loop.call_later(RECONNECT_SECONDS, self._reconnect, link.route)
        if lost:
            self.take_back(lost)

    def _reconnect(self, worker: WorkerRoute) -> None:
        is_wanted = worker in self.version.workers and not self.is_closed
        if is_wanted and worker.id not in self.links:
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
