"""Requests that wait for one version of one deployment, and the workers that pull them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from wherry import errors
from wherry.gateway.exchange import Exchange
from wherry.gateway.link import WorkerLink
from wherry.gateway.quarantine import Deaths, Quarantine, digest_of, quarantined
from wherry.gateway.route import DeploymentRoute, VersionRoute, WorkerRoute
from wherry.gateway.waiting import WaitingLine

MAX_WAITING = 10_000
"""When so many wait, keys with more than their share are refused; at twice as many, all are."""
MAX_CRASHES = 2
"""Workers that may end while they run a request, before it is taken for the cause."""
MAX_SENDS = 8
"""Times that a request may be sent to a worker that is stopping or is killed from outside."""
RECONNECT_SECONDS = 0.2
SMOOTHING = 0.1
USUAL_RUN_FACTOR = 8.0
MIN_HANG_SECONDS = 2.0
MAX_PACE_SECONDS = 60.0
FORGETTING = 0.999
"""How slowly the longest run is forgotten, per answer."""


class VersionQueue:
    """Keys take turns; workers take as many requests as they gave credits for.

    Args:
        deployment: whose requests these are.
        version: the version that answers them.
        gateway: our name.
        move: takes requests that this queue cannot serve any more.
        settle: accounts for answers of one batch on one track.
        flush: writes what is to be recorded.
        quarantine: inputs that are refused.
        deaths: tells how workers ended.
    """

    def __init__(
        self,
        deployment: DeploymentRoute,
        version: VersionRoute,
        gateway: str,
        move: Callable[[list[Exchange]], None],
        settle: Callable[[list[Exchange], float], None],
        flush: Callable[[], None],
        quarantine: Quarantine,
        deaths: Deaths,
    ) -> None:
        self.deployment = deployment
        self.version = version
        self.links: dict[str, WorkerLink] = {}
        self.is_closed = False
        self._gateway = gateway
        self._move = move
        self._settle = settle
        self._flush = flush
        self._quarantine = quarantine
        self._deaths = deaths
        self._waiting = WaitingLine()
        self._background: deque[asyncio.Future[None]] = deque()
        """Requests of batches, which are not in line before there is room for them."""
        self._seconds_per_answer = 0.0
        self._longest_run_seconds = 0.0
        self._last_answer = 0.0

    # ------------------------------------------------------------------ in and out

    def put(self, exchange: Exchange, now: float) -> None:
        """Let a request wait for a worker; it is sent at once if one has room.

        Raises:
            Overloaded: it would wait longer than it may, or too many wait.
            Quarantined: its input ended workers lately.
        """
        if self._quarantine.banned:
            self._quarantine.check(exchange)
        exchange.queue = self
        if not self._waiting.count:
            link = self._choose_link(exchange.size)
            if link is not None:
                self._send(link, exchange, now)
                return
        self._refuse_if_doomed(exchange)
        self._waiting.push(exchange)
        self.dispatch()

    def put_many(self, exchanges: list[Exchange], now: float) -> None:
        """As `put` for several of one track; one that is refused fails."""
        link = next(iter(self.links.values())) if len(self.links) == 1 else None
        if (
            link is not None
            and not self._waiting.count
            and not self._quarantine.banned
            and link.has_room_for(exchanges)
        ):
            if not link.outstanding:
                self._last_answer = now
            for exchange in exchanges:
                exchange.queue = self
            link.send_many(exchanges, now)
            return
        for exchange in exchanges:
            try:
                self.put(exchange, now)
            except errors.WherryError as refusal:
                exchange.fail(refusal)

    def dispatch(self) -> None:
        """Send what waits to workers that have room."""
        while self._waiting:
            exchange = self._waiting.first()
            if exchange is None:
                return
            link = self._choose_link(exchange.size)
            if link is None:
                return
            self._waiting.pop()
            self._send(link, exchange, time.monotonic())

    def _send(self, link: WorkerLink, exchange: Exchange, now: float) -> None:
        if not link.outstanding and not self._has_work():
            self._last_answer = now  # workers were idle until now
        link.send(exchange, now)

    def _has_work(self) -> bool:
        """Whether a worker has a request."""
        for link in self.links.values():  # noqa: SIM110 - asked twice a request: any() is dear
            if link.outstanding:
                return True
        return False

    def _choose_link(self, size: int) -> WorkerLink | None:
        best, least = None, 0
        for link in self.links.values():
            load = len(link.outstanding)
            if (best is None or load < least) and link.has_room(size):
                best, least = link, load
        return best

    def take_back(self, lost: list[Exchange]) -> None:
        """Requests that their worker did not begin: another one gets them."""
        again: list[Exchange] = []
        for exchange in lost:
            if exchange.is_done:
                continue
            if exchange.attempts >= MAX_SENDS:
                exchange.fail(_no_worker())
                continue
            exchange.link = None
            again.append(exchange)
        if self.is_closed:
            self._move(again)
            return
        for exchange in again:
            self._waiting.push(exchange)
        self.dispatch()

    def _take_back_from_the_dead(self, worker: str, lost: list[Exchange]) -> None:
        """Repeat what is safe to repeat, each alone: one of them may be why the worker died."""
        begun = [exchange for exchange in lost if exchange.was_started and not exchange.is_done]
        repeated = [exchange for exchange in lost if not exchange.was_started]
        for exchange in begun:
            if not self.version.idempotent or exchange.call.stream:
                if len(begun) == 1:
                    self._accuse(worker, exchange)
                exchange.fail(_worker_lost())
                continue
            exchange.change_call(alone=True)
            exchange.crashes += 1
            if exchange.crashes < MAX_CRASHES:
                repeated.append(exchange)
            else:
                self._judge(worker, exchange)
        self.take_back(repeated)

    def _accuse(self, worker: str, exchange: Exchange) -> None:
        digest, quarantine = digest_of(exchange), self._quarantine
        self._deaths.ask(worker, lambda is_crash: quarantine.accuse(digest) if is_crash else None)

    def _judge(self, worker: str, exchange: Exchange) -> None:
        """Once more if the worker was killed from outside, else never again."""

        def decide(is_crash: bool) -> None:
            if exchange.is_done:
                return
            if is_crash:
                self._quarantine.ban(digest_of(exchange))
                exchange.fail(quarantined(exchange))
            else:
                exchange.crashes -= 1
                self.take_back([exchange])

        self._deaths.ask(worker, decide)

    def note_end(self, exchange: Exchange, now: float) -> None:
        """One of this queue's requests has ended by itself, wherever it was."""
        if exchange.lane is not None:
            self._waiting.note_end(exchange)
        elif exchange.outcome is not None:
            self._learn_pace(exchange.outcome.run_us / 1e6, now, 1)

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker."""
        return len(self._waiting)

    @property
    def is_waited_for(self) -> bool:
        """Whether anything at all waits for a worker."""
        return bool(self._waiting or self._background)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits here, and a worker has nothing to do."""
        links = self.links.values()
        return not self.waiting and any(link.is_ready and not link.load for link in links)

    @property
    def in_flight(self) -> int:
        """Requests that workers have."""
        return sum(link.load for link in self.links.values())

    # ------------------------------------------------------------------ background work

    def has_spare_room(self) -> bool:
        """Whether nothing waits, and a worker has room that live requests hardly need."""
        return self._spare_room() > 0

    def _spare_room(self) -> int:
        if self._waiting:
            return 0
        return sum(max(0, link.spare_credits) for link in self.links.values())

    async def wait_for_change(self) -> None:
        """Return when there may be spare room, in the order of those who wait; or at the end."""
        if self.is_closed:
            return
        changed = asyncio.get_running_loop().create_future()
        self._background.append(changed)
        try:
            await changed
        finally:
            if not changed.done():
                self._background.remove(changed)

    def wake_background(self) -> None:
        """Let as many go on as there is room for; one that did not use its turn has kept others."""
        if self._background:
            self._wake_background(self._spare_room())

    def _wake_background(self, most: int) -> None:
        for _ in range(min(most, len(self._background))):
            changed = self._background.popleft()
            if not changed.done():
                changed.set_result(None)

    # ------------------------------------------------------------------ time

    def _learn_pace(self, run_seconds: float, now: float, answers: int) -> None:
        """Learn from answers how fast answers come while there is work, and how long they run."""
        longest = self._longest_run_seconds * FORGETTING
        self._longest_run_seconds = run_seconds if run_seconds > longest else longest
        if self._has_work() or self._waiting:
            passed = min(now - self._last_answer, MAX_PACE_SECONDS) / answers
            weight = 1 - (1 - SMOOTHING) ** answers
            self._seconds_per_answer += weight * (passed - self._seconds_per_answer)
        self._last_answer = now

    def estimate_wait_seconds(self) -> float:
        """How long a request that comes now would wait before it is sent."""
        return self.waiting * self._seconds_per_answer

    def hang_seconds(self, limit_seconds: float) -> float:
        """How long a worker must have run a request before it counts as hung.

        A caller that waits shorter than the model usually runs must not get its worker killed.
        """
        if not self._longest_run_seconds:
            return limit_seconds
        usual = USUAL_RUN_FACTOR * self._longest_run_seconds
        return min(limit_seconds, max(MIN_HANG_SECONDS, usual))

    def _refuse_if_doomed(self, exchange: Exchange) -> None:
        waiting = len(self._waiting)
        if not waiting:
            return
        key = exchange.principal.key_id
        estimate = self._waiting.ahead_of(key) * self._seconds_per_answer
        allowed = exchange.deadline - time.monotonic()
        if self.deployment.queue_seconds:
            allowed = min(allowed, self.deployment.queue_seconds)
        if estimate > allowed or (waiting >= MAX_WAITING and self._is_full_for(key)):
            raise errors.Overloaded(
                f"deployment {self.deployment.name!r} has {waiting} requests waiting, "
                f"about {estimate:.1f} s of work",
                hint="repeat later, or ask the operator for more replicas",
                retry_after_seconds=max(1.0, estimate - allowed),
            )

    def _is_full_for(self, key: str) -> bool:
        waiting = len(self._waiting)
        return waiting >= 2 * MAX_WAITING or self._waiting.has_its_share(key, MAX_WAITING)

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
        self._move(self._waiting.clear())
        self._wake_background(len(self._background))

    def _link(self, worker: WorkerRoute) -> None:
        self.links[worker.id] = WorkerLink(
            worker, self._gateway, self._on_answers, self._on_news, self._on_lost
        )

    def _on_answers(self, exchanges: list[Exchange], run_us: int) -> None:
        now = time.monotonic()
        self._learn_pace(run_us / 1e6, now, len(exchanges))
        self._settle(exchanges, now)

    def _on_news(self) -> None:
        self._flush()  # the records of what has ended: its answers wait for them
        if self._waiting:
            self.dispatch()
        self.wake_background()

    def _on_lost(self, link: WorkerLink, lost: list[Exchange]) -> None:
        if self.links.get(link.route.id) is link and not self.is_closed:
            del self.links[link.route.id]
            # if it lives (a broken connection, not a death), the snapshot still lists it
            loop = asyncio.get_running_loop()
            loop.call_later(RECONNECT_SECONDS, self._reconnect, link.route)
        if lost:
            self._take_back_from_the_dead(link.route.id, lost)

    def _reconnect(self, worker: WorkerRoute) -> None:
        is_wanted = worker in self.version.workers and not self.is_closed
        if is_wanted and worker.id not in self.links:
            self._link(worker)


def _worker_lost() -> errors.WorkerLost:
    return errors.WorkerLost(
        "the model's worker died while it had the request, and it was not repeated",
        hint="repeat it if the model may answer twice; the log has the cause",
    )


def _no_worker() -> errors.NotReady:
    return errors.NotReady(
        "the model's workers are stopping", hint="repeat in a moment", retry_after_seconds=1.0
    )
