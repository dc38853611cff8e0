"""The path of one request through a gateway; `Gateway.predict` is the story, top to bottom.

A door has read the envelope and authenticated the caller. Then: find → admit → route → queue →
the worker decodes, prepares, batches, runs, encodes → settle → reply. The body passes as it came.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.frames import Payload, size_of
from wherry.gateway.admit import Inbound, LoadGuard, find_deployment, timeout_of
from wherry.gateway.exchange import Exchange, OnEnd
from wherry.gateway.link import WorkerLink
from wherry.gateway.quarantine import Deaths, Quarantine
from wherry.gateway.queue import VersionQueue
from wherry.gateway.route import (
    DeploymentRoute,
    Routes,
    ShadowRoute,
    Snapshot,
    VersionRoute,
    choose_version,
    not_ready,
    sticky_of,
)
from wherry.gateway.settle import Settler
from wherry.gateway.shadow import Shadows
from wherry.gateway.tally import VersionLoad
from wherry.gateway.track import Track
from wherry.settings import Settings
from wherry.storage.segment import MAX_ANSWERS
from wherry.telemetry import get_logger

log = get_logger("gateway")

Asked = tuple[str, bytes, OnEnd]
"""A request on a track: its id, its body, and who is told its end."""
QueueKey = tuple[str, str, int, str]
TICK_SECONDS = 0.05
"""Deadlines within it are looked after together."""
PING_SECONDS = 1.0
STUCK_SECONDS = 5.0
LOOK_SECONDS = 0.25
PAUSE_SECONDS = 2.0


class Gateway:
    """One gateway process's part of the data plane; knows no HTTP.

    Args:
        name: `gateway 0`.
        settings: the server's.
        settler: meters, journals and counts what ends.
        wake: asks the controller to load an idle deployment.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        settler: Settler,
        wake: Callable[[DeploymentRoute], None],
    ) -> None:
        self.name = name
        self.settings = settings
        self.settler = settler
        self.routes = Routes()
        self.guard = LoadGuard(settings.max_in_flight_bytes, 1 / settings.gateways)
        self.quarantine = Quarantine()
        self.deaths = Deaths()
        self._wake = wake
        self.tell_hung: Callable[[str, str], None] = lambda worker, why: None
        """Tells the controller which worker hangs, and why we think so."""
        self._queues: dict[QueueKey, VersionQueue] = {}
        self._numbers = itertools.count(1)
        self._shadows = Shadows(
            self._find_queue,
            settler.tally_of,
            lambda: 2 * self.guard.held_bytes < settings.max_in_flight_bytes,
            lambda: next(self._numbers),
        )
        self._wheel: dict[int, set[Exchange]] = {}
        """Requests by the tick in which their deadlines have passed."""
        self._ticks: list[int] = []
        """A heap of the wheel's."""
        self._alarm: asyncio.TimerHandle | None = None
        """For the first of them in which something may have to end."""
        self._alarm_tick = 0

    # ------------------------------------------------------------------ the story

    def predict(self, inbound: Inbound, on_end: OnEnd | None = None) -> Exchange:
        """Admit a request and let it run; the exchange yields its answer or its error.

        Args:
            inbound: the request.
            on_end: told the answer or the error, later, instead of a coroutine that waits.

        Raises:
            WherryError: it was refused at once; nothing was executed or recorded.
        """
        track = self.find_track(inbound)
        return self.follow(track, inbound.request_id, inbound.body, on_end)

    async def wait_for_spare_room(self, inbound: Inbound) -> None:
        """Return when a request can be sent at once, and no live one would wait for it.

        Its deadline begins only then. Follow it by `predict` without waiting in between.

        Raises:
            WherryError: it cannot be served.
        """
        while True:
            track = self.find_track(inbound)
            if not track.version.workers:
                self._wake(track.deployment)
            if track.queue.has_spare_room():
                return
            await track.queue.wait_for_change()

    def find_track(self, inbound: Inbound) -> Track:
        """Where a request goes; the next one may `follow` the same track while it `is_current`.

        Raises:
            WherryError: it cannot be served.
        """
        deployment, version = find_deployment(self.routes, inbound.principal, inbound.deployment)
        if deployment.steps:
            raise errors.InvalidInput(
                f"{deployment.name!r} is a pipeline", hint=f"call it by /predict/{deployment.name}"
            )
        if not deployment.is_servable:
            raise not_ready(deployment)
        pinned, who = inbound.version or version, inbound.principal
        sticky = sticky_of(deployment, inbound.sticky, who.team_id, who.key_id, inbound.request_id)
        route = choose_version(deployment, pinned, sticky)
        self._refuse_if_impatient(inbound, deployment, route)
        track = Track(inbound, deployment, pinned, route)
        track.snapshot = self.routes.snapshot
        track.seconds = timeout_of(inbound, deployment, self.settings)
        track.call.max_body_bytes = self.settings.max_body_bytes
        track.load = self.guard.load_of(deployment.full_name)
        track.queue = self._queue(deployment, route)
        self.settler.bind(track)
        return track

    def is_pipeline(self, principal: Principal, name: str) -> bool:
        """Whether a name means a pipeline to this key's team."""
        found = self.routes.find(principal.team_id, principal.team, name)
        return found is not None and bool(found.steps)

    def is_current(self, track: Track, principal: Principal) -> bool:
        """Whether a track that was found earlier still holds, for this caller."""
        meter = track.meter
        return (
            track.snapshot is self.routes.snapshot
            and track.principal is principal
            and (meter is None or not meter.is_forgotten)
        )

    def follow(
        self, track: Track, request_id: str, body: Payload, on_end: OnEnd | None = None
    ) -> Exchange:
        """As `predict`, for one whose track is known."""
        now = time.monotonic()
        size = len(body) if body.__class__ is bytes else size_of(body)
        reserved = self.settler.reserve(track, now)
        try:
            self.guard.enter(track.load, track.deployment, size)
        except errors.WherryError:
            self.settler.release(track, reserved, now)
            raise
        number = next(self._numbers)
        exchange = Exchange(number, request_id, track, body, size, now, self._settle, on_end)
        exchange.reserved = reserved
        tick = int(exchange.deadline / TICK_SECONDS) + 1
        slot = self._wheel.get(tick)
        if slot is None:
            slot = self._open_slot(tick)
        slot.add(exchange)  # so that it ends by its deadline
        exchange.slot = slot
        if track.deployment.shadows:
            self._shadows.choose(exchange)
        try:
            track.queue.put(exchange, now)
        except errors.WherryError as refusal:
            exchange.fail(refusal)
            return exchange
        if not track.version.workers:
            self._wake(track.deployment)
        return exchange

    def follow_many(self, track: Track, asked: Sequence[Asked]) -> list[Exchange] | None:
        """As `follow` for requests that came at once; None, and none is admitted, if any may be refused."""
        now = time.monotonic()
        size = sum([len(body) for _, body, _ in asked])
        if track.deployment.shadows or not self.guard.has_room(
            track.load, track.deployment, len(asked), size
        ):
            return None
        if not self.settler.reserve_many(track, len(asked), now):
            return None
        self.guard.enter_many(track.load, len(asked), size)
        tick = int((now + track.seconds) / TICK_SECONDS) + 1
        slot = self._wheel.get(tick)
        if slot is None:
            slot = self._open_slot(tick)
        numbers, settle = self._numbers, self._settle
        exchanges = [
            Exchange(next(numbers), request_id, track, body, len(body), now, settle, on_end)
            for request_id, body, on_end in asked
        ]
        slot.update(exchanges)
        for exchange in exchanges:
            exchange.slot = slot
        track.queue.put_many(exchanges, now)
        if not track.version.workers:
            self._wake(track.deployment)
        return exchanges

    def cancel(self, exchange: Exchange) -> None:
        """The client went away: stop the work, keep the record."""
        if exchange.is_done:
            return
        if exchange.link is not None:
            exchange.link.cancel(exchange)
        exchange.fail(errors.Cancelled("the client went away"))

    def _refuse_if_impatient(
        self, inbound: Inbound, deployment: DeploymentRoute, route: VersionRoute
    ) -> None:
        if route.workers or inbound.wait_seconds is None:
            return
        if inbound.wait_seconds < max(1.0, deployment.retry_after_seconds):
            self._wake(deployment)
            raise not_ready(deployment)

    def _settle(self, exchange: Exchange, kept: Callable[[Exception | None], None]) -> None:
        self.guard.leave(exchange.track.load, exchange.size)
        if exchange.slot is not None:
            exchange.slot.discard(exchange)
        now = time.monotonic()
        if exchange.queue is not None:
            exchange.queue.note_end(exchange, now)
        if exchange.copy is not None:
            kept = self._shadows.follow(exchange, kept)
        self.settler.settle(exchange, kept, now)

    def _settle_answers(self, exchanges: list[Exchange], now: float) -> None:
        """As `_settle`, for answers of one batch on one track."""
        track, size = exchanges[0].track, 0
        for exchange in exchanges:
            size += exchange.size
            if exchange.slot is not None:
                exchange.slot.discard(exchange)
        self.guard.leave(track.load, size, len(exchanges))
        for start in range(0, len(exchanges), MAX_ANSWERS):
            some = exchanges[start : start + MAX_ANSWERS]
            self.settler.settle_answers(track, track.version, some, partial(tell_all, some), now)

    # ------------------------------------------------------------------ routes and queues

    def replace_routes(self, snapshot: Snapshot) -> None:
        """Follow the controller: new queues, moved requests, closed links."""
        self.routes.replace(snapshot)
        wanted: dict[QueueKey, tuple[DeploymentRoute, VersionRoute]] = {}
        for deployment in snapshot.deployments:
            if deployment.is_servable:
                for route in deployment.versions:
                    wanted[_queue_key(deployment, route)] = (deployment, route)
        for deployment, route in wanted.values():
            self._queue(deployment, route).update(deployment, route)
        for key in [key for key in self._queues if key not in wanted]:
            self._queues.pop(key).close()
        self._wake_what_is_waited_for()
        self.guard.keep({each.full_name for each in snapshot.deployments})
        self.settler.keep(
            {
                each.full_name: {version.digest for version in each.versions}
                for each in snapshot.deployments
            }
        )

    def _queue(self, deployment: DeploymentRoute, route: VersionRoute) -> VersionQueue:
        key = _queue_key(deployment, route)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = VersionQueue(
                deployment,
                route,
                self.name,
                self._move,
                self._settle_answers,
                self.settler.flush,
                self.quarantine,
                self.deaths,
            )
        return queue

    def _find_queue(
        self, deployment: DeploymentRoute, version: VersionRoute | ShadowRoute
    ) -> VersionQueue | None:
        return self._queues.get(_queue_key(deployment, version))

    def _move(self, exchanges: list[Exchange]) -> None:
        """Requests whose version left before they were sent go to what is served now."""
        for exchange in exchanges:
            old = exchange.deployment
            now = self.routes.find(old.team_id, old.team, old.name)
            try:
                if now is None or not now.is_servable:
                    raise not_ready(now or old)
                track = exchange.track
                route = choose_version(now, track.pinned, track.sticky(exchange.request_id))
                exchange.version = route
                exchange.change_call(version=str(route.number))
                self._queue(now, route).put(exchange, time.monotonic())
            except errors.WherryError as refusal:
                exchange.fail(refusal)

    def _wake_what_is_waited_for(self) -> None:
        """A model may be unloaded while a request for it is on its way; a wake may be lost."""
        for queue in self._queues.values():
            if queue.is_waited_for and not queue.version.workers:
                self._wake(queue.deployment)

    # ------------------------------------------------------------------ time

    async def run(self) -> None:
        """Pings and hung workers, until cancelled."""
        next_ping = last = 0.0
        while True:
            # what begins only then is hardly overdue (`OVERDUE_SECONDS`) at the next look
            is_idle = not any(link.outstanding for link in self._links())
            await asyncio.sleep(PING_SECONDS if is_idle else LOOK_SECONDS)
            now = time.monotonic()
            if last and now - last > PAUSE_SECONDS:
                for link in self._links():
                    link.forgive_silence()
            last = now
            self._look_for_hangs(now)
            for queue in self._queues.values():
                queue.wake_background()
            if is_idle or now >= next_ping:
                next_ping = now + PING_SECONDS
                self._wake_what_is_waited_for()
                for link in self._links():
                    link.ping()

    def _links(self) -> list[WorkerLink]:
        return [link for queue in self._queues.values() for link in queue.links.values()]

    def _look_for_hangs(self, now: float) -> None:
        for queue in self._queues.values():
            limit = queue.deployment.timeout_seconds or self.settings.request_timeout_seconds
            patience = queue.hang_seconds(limit)
            for link in queue.links.values():
                why = link.find_hang(now, patience)
                if why:
                    self.tell_hung(link.route.id, why)

    def _open_slot(self, tick: int) -> set[Exchange]:
        slot = self._wheel[tick] = set()
        heapq.heappush(self._ticks, tick)
        if self._alarm is None or tick < self._alarm_tick:
            self._set_alarm(tick)
        return slot

    def _set_alarm(self, tick: int) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        seconds = tick * TICK_SECONDS - time.monotonic() + 0.001  # timers may ring a little early
        self._alarm = asyncio.get_running_loop().call_later(max(0.0, seconds), self._expire)
        self._alarm_tick = tick

    def _expire(self) -> None:
        """End what is out of time; then look again only when something else may be."""
        self._alarm = None
        now = int(time.monotonic() / TICK_SECONDS)
        try:
            while self._ticks and (self._ticks[0] <= now or not self._wheel[self._ticks[0]]):
                for exchange in list(self._wheel.pop(heapq.heappop(self._ticks))):
                    self._time_out(exchange)
        finally:
            if self._ticks:
                self._set_alarm(self._ticks[0])

    def _time_out(self, exchange: Exchange) -> None:
        if exchange.is_done:
            return
        if exchange.link is not None:
            exchange.link.cancel(exchange)
        exchange.fail(
            errors.TimedOut(
                f"no answer from deployment {exchange.deployment.name!r} in time",
                hint="raise the timeout, or send less at once",
            )
        )

    # ------------------------------------------------------------------ how it is

    def stuck_workers(self) -> list[str]:
        """Workers that do not answer pings: their executors may hang."""
        now = time.monotonic()
        return [
            link.route.id
            for link in self._links()
            if link.is_ready and now - link.last_pong > STUCK_SECONDS
        ]

    def loads(self) -> dict[str, tuple[int, int, float]]:
        """By `team/name`: requests running, waiting, and the estimated wait in seconds."""
        running = self.guard.running()
        loads: dict[str, tuple[int, int, float]] = {
            name: (count, 0, 0.0) for name, count in running.items()
        }
        for queue in self._queues.values():
            name = queue.deployment.full_name
            count, waiting, wait = loads.get(name, (0, 0, 0.0))
            loads[name] = (
                count,
                waiting + queue.waiting,
                max(wait, queue.estimate_wait_seconds()),
            )
        return loads

    def version_loads(self) -> list[VersionLoad]:
        """What waits for, runs in and was answered by each version."""
        found: list[VersionLoad] = []
        for queue in self._queues.values():
            name, version = queue.deployment.full_name, queue.version
            load = VersionLoad(name, version.model, version.number, version.digest)
            load.waiting, load.running = queue.waiting, queue.in_flight
            load.add_tally(
                self.settler.tally_of(name, version.model, version.number, version.digest)
            )
            found.append(load)
        return found

    def close(self) -> None:
        """End all links; what is in flight fails, and is recorded."""
        self._shadows.close()
        if self._alarm is not None:
            self._alarm.cancel()
        for exchange in [each for slot in self._wheel.values() for each in slot]:
            exchange.fail(errors.Unavailable("the gateway is stopping", hint="repeat in a moment"))
        for queue in self._queues.values():
            queue.is_closed = True
            for link in list(queue.links.values()):
                link.close()


def tell_all(exchanges: Sequence[Exchange], failure: Exception | None) -> None:
    """Their records are safe, or cannot be made."""
    for exchange in exchanges:
        try:
            exchange.on_kept(failure)
        except Exception:  # one reply that fails must not hold back the others
            log.exception("a reply failed", request_id=exchange.request_id)


def _queue_key(deployment: DeploymentRoute, route: VersionRoute | ShadowRoute) -> QueueKey:
    return deployment.full_name, route.model, route.number, route.digest
