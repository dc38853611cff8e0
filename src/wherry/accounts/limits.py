"""Limits of keys: requests and tokens a minute, and requests at once, counted in one gateway.

Requests are taken one by one from a bucket that refills over a minute. Tokens are reserved by an
upper bound before the work and settled by what was used after it, so that racing requests cannot
exceed the limit together. With several gateways each enforces its share, so together they admit
at most one request each more than the limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from wherry.accounts.keys import Principal
from wherry.client.schema import KeyLimits
from wherry.errors import QuotaExceeded

MAX_METERS = 100_000
"""More keys than a gateway's cache of keys holds."""
MINUTE_SECONDS = 60.0
CONCURRENCY_RETRY_SECONDS = 1.0
SAID_SECONDS = 0.01
"""Answers that leave together say the same of what the key has left."""
NO_LIMITS = KeyLimits()
_LINES = (
    b"x-ratelimit-limit-%(name)b: %(limit)d\r\n"
    b"x-ratelimit-remaining-%(name)b: %%d\r\n"
    b"x-ratelimit-reset-%(name)b: %%b\r\n"
)


class Bucket:
    """A level that refills to its capacity within a minute. Debt makes it negative."""

    __slots__ = ("capacity", "filled_at", "level", "rate")

    def __init__(self, limit: int, share: float, now: float) -> None:
        self.rate = limit * share / MINUTE_SECONDS
        # A share below one would never admit anything.
        self.capacity = max(1.0, limit * share)
        self.level = self.capacity
        self.filled_at = now

    def refill(self, now: float) -> None:
        """Add what flowed in since the last time."""
        level = self.level + (now - self.filled_at) * self.rate
        self.level = level if level < self.capacity else self.capacity
        self.filled_at = now

    def seconds_until(self, level: float) -> float:
        """How long until it has risen to `level`."""
        return max(0.0, (level - self.level) / self.rate)


class KeyMeter:
    """What one key has used lately, and may use."""

    __slots__ = (
        "_buckets",
        "_said",
        "_said_at",
        "concurrency",
        "in_flight",
        "is_forgotten",
        "limits",
        "requests",
        "tokens",
    )

    def __init__(self, limits: KeyLimits, share: float, now: float) -> None:
        self.limits = limits
        self.requests = _make_bucket(limits.requests_per_minute, share, now)
        self.tokens = _make_bucket(limits.tokens_per_minute, share, now)
        self.concurrency = math.ceil(limits.concurrency * share)
        self.in_flight = 0
        self._said, self._said_at = b"", -math.inf
        self.is_forgotten = False
        """Whether the key has another meter by now, or none."""
        self._buckets = [
            (bucket, _LINES % {b"name": name, b"limit": limit})
            for name, limit, bucket in (
                (b"requests", limits.requests_per_minute, self.requests),
                (b"tokens", limits.tokens_per_minute, self.tokens),
            )
            if bucket is not None
        ]

    def admit(self, tokens_bound: int, now: float) -> float:
        """Let a request through, or say when to try again. Settle it with what is returned.

        Args:
            tokens_bound: most tokens the request can use; above the limit itself it needs a full
                bucket, and what it uses beyond is owed.
            now: seconds that never go back.

        Returns:
            The tokens that are held for it.

        Raises:
            QuotaExceeded: a limit is reached; nothing was taken.
        """
        requests, tokens = self.requests, self.tokens
        reserved = 0.0
        if self.concurrency and self.in_flight >= self.concurrency:
            raise _exceeded(
                f"{self.limits.concurrency} requests at once", CONCURRENCY_RETRY_SECONDS
            )
        if requests is not None:
            requests.refill(now)
            if requests.level < 1.0:
                raise _exceeded(
                    f"{self.limits.requests_per_minute} requests a minute",
                    requests.seconds_until(1.0),
                )
        if tokens is not None and (tokens_bound or tokens.level < 0):
            tokens.refill(now)
            reserved = min(float(tokens_bound), tokens.capacity)
            # A request of unknown size passes only without debt.
            if tokens.level < reserved or tokens.level < 0:
                raise _exceeded(
                    f"{self.limits.tokens_per_minute} tokens a minute",
                    tokens.seconds_until(reserved),
                )
            tokens.level -= reserved
        if requests is not None:
            requests.level -= 1.0
        self.in_flight += 1
        self._said_at = -math.inf
        return reserved

    def admit_free(self, requests: int, now: float) -> bool:
        """Let requests through that cost no tokens; False, and nothing is taken, if any may not."""
        bucket = self.requests
        if self.concurrency and self.in_flight + requests > self.concurrency:
            return False
        if self.tokens is not None and self.tokens.level < 0:
            return False  # in debt, unless it has been paid meanwhile
        if bucket is not None:
            bucket.refill(now)
            if bucket.level < requests:
                return False
            bucket.level -= requests
        self.in_flight += requests
        self._said_at = -math.inf
        return True

    def settle(self, tokens_bound: int, reserved: float, tokens_used: int, now: float) -> None:
        """End a request, once: give back what it did not use.

        More than the bound is never charged: a worker that counts wrong cannot ruin a key.
        """
        self.in_flight -= 1
        tokens = self.tokens
        if tokens is not None and (reserved or tokens_bound):
            tokens.refill(now)
            used = min(max(0, tokens_used), tokens_bound)
            tokens.level = min(tokens.level + reserved - used, tokens.capacity)
            self._said_at = -math.inf

    def settle_free(self, requests: int) -> None:
        """End requests that held no tokens."""
        self.in_flight -= requests

    def lines(self, now: float) -> bytes:
        """What the key has left, as header lines in OpenAI's names; none for what has no limit."""
        if now - self._said_at < SAID_SECONDS:
            return self._said
        found = b""
        for bucket, template in self._buckets:
            level, capacity = bucket.level + (now - bucket.filled_at) * bucket.rate, bucket.capacity
            if level >= capacity:
                found += template % (capacity, b"0s")
            else:
                reset = format_duration((capacity - level) / bucket.rate).encode()
                found += template % (level if level > 0.0 else 0, reset)
        self._said, self._said_at = found, now
        return found

    def is_idle(self, now: float) -> bool:
        """Whether a new meter would be the same."""
        buckets = [bucket for bucket, _ in self._buckets]
        for bucket in buckets:
            bucket.refill(now)
        return self.in_flight == 0 and all(each.level >= each.capacity for each in buckets)


class KeyMeters:
    """The meters of all keys with limits that call one gateway; for its loop's thread."""

    def __init__(
        self,
        share: float = 1.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_meters: int = MAX_METERS,
    ) -> None:
        """Count from nothing.

        Args:
            share: the part of each limit that this gateway may give out, 1 / gateways.
            clock: seconds that never go back, so that a changed clock gives no new quota.
            max_meters: most keys remembered.
        """
        self._share = share
        self._clock = clock
        self._max_meters = max_meters
        self._meters: dict[str, KeyMeter] = {}

    def find_meter(self, principal: Principal) -> KeyMeter | None:
        """The meter of a key, made on first use; None for a key without limits."""
        limits = principal.limits
        if limits is NO_LIMITS or limits == NO_LIMITS:
            return None
        meter = self._meters.get(principal.key_id)
        if meter is None or (meter.limits is not limits and meter.limits != limits):
            if meter is not None:
                meter.is_forgotten = True
            meter = self._meters[principal.key_id] = KeyMeter(limits, self._share, self._clock())
            if len(self._meters) > self._max_meters:
                self._forget_one()
        return meter

    def headers(self, principal: Principal) -> dict[str, str]:
        """`x-ratelimit-*` as OpenAI sends them; empty for a key without such limits."""
        meter = self.find_meter(principal)
        lines = meter.lines(self._clock()).decode() if meter is not None else ""
        return dict(line.split(": ", 1) for line in lines.splitlines())

    def _forget_one(self) -> None:
        """Forget an idle meter, looking at a few of the oldest; if none is idle, the very oldest.

        A meter in use works on without us: its requests hold it.
        """
        now = self._clock()
        oldest = next(iter(self._meters))
        for _ in range(min(64, len(self._meters) - 1)):
            key_id = next(iter(self._meters))
            meter = self._meters.pop(key_id)
            if meter.is_idle(now):
                meter.is_forgotten = True
                return
            self._meters[key_id] = meter
        self._meters.pop(oldest).is_forgotten = True


def format_duration(seconds: float) -> str:
    """A duration as OpenAI (and Go) writes it: `6m0s`, `1s`, `120ms`, `1h2m3s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _make_bucket(limit: int, share: float, now: float) -> Bucket | None:
    return Bucket(limit, share, now) if limit else None


def _exceeded(limit: str, retry_after_seconds: float) -> QuotaExceeded:
    return QuotaExceeded(
        f"this key's limit of {limit} is reached",
        hint=f"try again in {format_duration(retry_after_seconds)}",
        retry_after_seconds=retry_after_seconds,
    )
