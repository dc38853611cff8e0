"""Shadow copies: a version answers what another one was asked, and nobody sees it.

A copy leaves after the client's answer is out, is not metered, billed or journaled, and is dropped
as soon as anything else could want what it takes: it is no one's request.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from copy import copy as copy_of

import msgspec

from wherry import errors
from wherry.frames import Payload, size_of
from wherry.gateway.exchange import Exchange
from wherry.gateway.queue import MAX_SENDS, VersionQueue
from wherry.gateway.route import DeploymentRoute, ShadowRoute
from wherry.gateway.tally import VersionTally
from wherry.models.tasks.gist import agree

DELAY_SECONDS = 0.002
"""So that the client's answer has left the process."""
DEADLINE_SECONDS = 30.0
"""Later than nearly all clients': workers take the earliest deadline first."""
MAX_BYTES = 8 << 20
"""Of all bodies that are kept for copies or on their way as copies."""
MAX_COPIES = 32

FindQueue = Callable[[DeploymentRoute, ShadowRoute], VersionQueue | None]
FindTally = Callable[[str, str, int, str], VersionTally]


class Copy:
    """What is kept of a request that was chosen, until its answer is out."""

    __slots__ = ("body", "target")

    def __init__(self, target: ShadowRoute, body: Payload) -> None:
        self.target = target
        self.body = body


class Shadows:
    """All copies of one gateway.

    Args:
        find_queue: the queue of a shadow version, if it is served now.
        find_tally: where a version's counts are kept (`team/name`, model, number, digest).
        has_room: whether this gateway holds so little that bodies may be kept a little longer.
        number: gives each copy a number that no request has.
    """

    def __init__(
        self,
        find_queue: FindQueue,
        find_tally: FindTally,
        has_room: Callable[[], bool],
        number: Callable[[], int],
    ) -> None:
        self._find_queue = find_queue
        self._find_tally = find_tally
        self._has_room = has_room
        self._number = number
        self._held_bytes = 0
        self._copies = 0
        self._timers: set[asyncio.TimerHandle] = set()
        self._under_way: set[Exchange] = set()

    def choose(self, exchange: Exchange) -> None:
        """Decide, before it is sent, whether a request will be copied: its gist is made with it."""
        track, version = exchange.track, exchange.version
        if track.stream or track.pinned:
            return
        for target in exchange.deployment.shadows:
            is_itself = target.number == version.number and target.model == version.model
            if is_itself or random.random() >= target.share:  # noqa: S311 - a sample, no secret
                continue
            is_full = self._held_bytes + exchange.size > MAX_BYTES or self._copies >= MAX_COPIES
            if is_full or not self._has_room():
                self._tally(exchange.deployment, target).dropped += 1
                return
            self._held_bytes += exchange.size
            self._copies += 1
            exchange.copy = Copy(target, exchange.body)
            exchange.change_call(wants_gist=True)
            return

    def follow(
        self, exchange: Exchange, kept: Callable[[Exception | None], None]
    ) -> Callable[[Exception | None], None]:
        """The client's request has ended: let its answer out, then send the copy."""
        copy = exchange.copy
        assert copy is not None

        def then(error: Exception | None) -> None:
            kept(error)
            if error is not None or exchange.code != "ok":
                self._forget(copy)
                return
            self._later(DELAY_SECONDS, lambda: self._send(exchange, copy))

        return then

    def _send(self, original: Exchange, copy: Copy) -> None:
        deployment, target = original.deployment, copy.target
        queue = self._find_queue(deployment, target)
        asked = original.queue
        is_busy = isinstance(asked, VersionQueue) and asked.waiting
        if queue is None or is_busy or not queue.is_idle:
            self._tally(deployment, target).dropped += 1
            self._forget(copy)
            return
        gist = original.outcome.gist if original.outcome is not None else b""

        def ended(exchange: Exchange, kept: Callable[[Exception | None], None]) -> None:
            self._under_way.discard(exchange)
            timer.cancel()
            self._timers.discard(timer)
            self._forget(copy)
            if exchange.queue is not None:
                exchange.queue.note_end(exchange, time.monotonic())
            self._judge(exchange, target, gist)
            kept(None)

        track = copy_of(original.track)
        track.version, track.pinned = queue.version, str(target.number)
        track.seconds = DEADLINE_SECONDS
        number, request_id = self._number(), f"shadow-{original.request_id}"
        now = time.monotonic()
        exchange = Exchange(number, request_id, track, copy.body, original.size, now, ended)
        exchange.call = msgspec.structs.replace(
            original.call, request_id=request_id, version=track.pinned
        )
        self._under_way.add(exchange)
        timer = self._later(DEADLINE_SECONDS, lambda: self._give_up(exchange))
        exchange.attempts = MAX_SENDS  # a copy is never sent again
        try:
            queue.put(exchange, now)
        except errors.WherryError as refusal:
            exchange.fail(refusal)

    def _judge(self, exchange: Exchange, target: ShadowRoute, gist: bytes) -> None:
        tally = self._tally(exchange.deployment, target)
        if exchange.outcome is None:
            if exchange.code in ("overloaded", "not_ready", "cancelled", "model_not_found"):
                tally.dropped += 1  # it says nothing of the version
            else:
                tally.shadow_failed += 1
        elif agree(gist, exchange.outcome.gist):
            tally.agreed += 1
        else:
            tally.differed += 1

    def _give_up(self, exchange: Exchange) -> None:
        if exchange.link is not None:
            exchange.link.cancel(exchange)
        exchange.fail(errors.TimedOut("the shadow copy was not answered in time"))

    def _tally(self, deployment: DeploymentRoute, target: ShadowRoute) -> VersionTally:
        return self._find_tally(deployment.full_name, target.model, target.number, target.digest)

    def _forget(self, copy: Copy) -> None:
        self._held_bytes -= size_of(copy.body)
        self._copies -= 1
        copy.body = b""

    def _later(self, seconds: float, work: Callable[[], None]) -> asyncio.TimerHandle:
        def run() -> None:
            self._timers.discard(timer)
            work()

        timer = asyncio.get_running_loop().call_later(seconds, run)
        self._timers.add(timer)
        return timer

    def close(self) -> None:
        """Give up all copies."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for exchange in list(self._under_way):
            exchange.fail(errors.Cancelled("the gateway is stopping"))
