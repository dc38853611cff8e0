"""Inputs that end their workers: told from accidents, and kept away from the next worker.

A worker that dies says nothing of why. What it had begun is repeated alone; what ends a second
worker by itself is poison and refused for a while. A worker that somebody killed from outside
proves nothing against its requests: the controller, which sees how each one ended, tells.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable

from wherry import errors
from wherry.gateway.exchange import Exchange

BAN_SECONDS = 60.0
MAX_BANS = 1000
MAX_ACCUSED = 1000
VERDICT_SECONDS = 1.0
"""How long to wait for the controller; a death that it does not explain is a crash."""
MAX_VERDICTS = 256


def digest_of(exchange: Exchange) -> bytes:
    """What identifies an input to a version; its body must still be there."""
    about = f"{exchange.version.digest} {exchange.call.codec} "
    fingerprint = hashlib.blake2b(about.encode(), digest_size=16)
    body = exchange.body
    for piece in body if isinstance(body, tuple) else (body,):
        fingerprint.update(piece)
    return fingerprint.digest()


class Quarantine:
    """The inputs that are refused now. Nothing is hashed while there are none."""

    def __init__(self) -> None:
        self.banned: dict[bytes, float] = {}
        """Digest → until when, monotonic."""
        self._accused: dict[bytes, float] = {}
        self.tell_others: Callable[[bytes], None] = lambda digest: None
        """Makes other gateways refuse an input too."""

    def check(self, exchange: Exchange) -> None:
        """Refuse a request whose input is poison.

        Raises:
            Quarantined: it ended workers of this version lately.
        """
        until = self.banned.get(digest_of(exchange))
        now = time.monotonic()
        if until is not None and until > now:
            raise quarantined(exchange)
        self.banned = {digest: end for digest, end in self.banned.items() if end > now}

    def accuse(self, digest: bytes) -> None:
        """A worker ended with this input as the only one in it; the second time is proof."""
        now = time.monotonic()
        self._accused = {each: end for each, end in self._accused.items() if end > now}
        if self._accused.pop(digest, None) is not None:
            self.ban(digest)
        elif len(self._accused) < MAX_ACCUSED:
            self._accused[digest] = now + BAN_SECONDS

    def ban(self, digest: bytes) -> None:
        """Refuse this input for a while, here and in the other gateways."""
        self.learn(digest)
        self.tell_others(digest)

    def learn(self, digest: bytes) -> None:
        """Refuse this input for a while."""
        if len(self.banned) >= MAX_BANS:
            del self.banned[min(self.banned, key=self.banned.__getitem__)]
        self.banned[digest] = time.monotonic() + BAN_SECONDS


def quarantined(exchange: Exchange) -> errors.Quarantined:
    """What the sender of a poisonous input is told."""
    return errors.Quarantined(
        f"this input ended workers of deployment {exchange.deployment.name!r}; it is refused "
        f"for {BAN_SECONDS:.0f} s",
        hint=f"send another input; wherry logs {exchange.deployment.name} has the cause",
    )


class Deaths:
    """How workers ended, as the controller tells it."""

    def __init__(self) -> None:
        self._told: dict[str, bool] = {}
        self._asked: dict[str, list[Callable[[bool], None]]] = {}

    def note(self, worker: str, is_crash: bool) -> None:
        """The controller tells how a worker ended."""
        self._told[worker] = is_crash
        if len(self._told) > MAX_VERDICTS:
            del self._told[next(iter(self._told))]
        self._answer(worker, is_crash)

    def ask(self, worker: str, then: Callable[[bool], None]) -> None:
        """Call `then(is_crash)`: now, or when it is told, or when nobody tells."""
        told = self._told.get(worker)
        if told is not None:
            then(told)
            return
        if worker not in self._asked:
            loop = asyncio.get_running_loop()
            loop.call_later(VERDICT_SECONDS, self._answer, worker, True)
        self._asked.setdefault(worker, []).append(then)

    def _answer(self, worker: str, is_crash: bool) -> None:
        for then in self._asked.pop(worker, ()):
            then(is_crash)
