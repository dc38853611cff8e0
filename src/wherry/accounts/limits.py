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
NO_LIMITS = KeyLimits()


class Bucket:
    """A level that refills to its capacity within a minute. Debt makes it negative."""

    __slots__ = ("capacity", "filled_at", "level", "rate")

    def __init__(self, limit_per_minute: float, now: float) -> None:
        self.rate = limit_per_minute / MINUTE_SECONDS
        # A share below one would never admit anything.
        self.capacity = max(1.0, limit_per_minute)
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
    """What one key has used lately."""

    __slots__ = ("concurrency", "in_flight", "limits", "requests", "tokens")

    def __init__(self, limits: KeyLimits, share: float, now: float) -> None:
        self.limits = limits
        self.requests = _make_bucket(limits.requests_per_minute, share, now)
        self.tokens = _make_bucket(limits.tokens_per_minute, share, now)
        self.concurrency = math.ceil(limits.concurrency * share)
        self.in_flight = 0

    def refill(self, now: float) -> None:
        """Bring both buckets up to date."""
        if self.requests is not None:
            self.requests.refill(now)
        if self.tokens is not None:
            self.tokens.refill(now)

    def is_idle(self) -> bool:
        """Whether a new meter would be the same."""
        return self.in_flight == 0 and all(
            bucket is None or bucket.level >= bucket.capacity
            for bucket in (self.requests, self.tokens)
        )


class Admission:
    """A request's hold on its key's limits, until it is settled."""

    __slots__ = ("bound", "is_settled", "meter", "reserved")

    def __init__(self, meter: KeyMeter | None, bound: int, reserved: float) -> None:
        self.meter = meter
        self.bound = bound
        self.reserved = reserved
        self.is_settled = meter is None


_UNLIMITED = Admission(None, 0, 0.0)


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

    def admit(self, principal: Principal, tokens_bound: int = 0) -> Admission:
        """Let a request through, or say when to try again. Settle what it returns.

        Args:
            principal: whose limits count.
            tokens_bound: most tokens the request can use; above the limit itself it needs a full
                bucket, and what it uses beyond is owed.

        Raises:
            QuotaExceeded: a limit is reached; nothing was taken.
        """
        meter = self._find_meter(principal)
        if meter is None:
            return _UNLIMITED
        meter.refill(self._clock())
        requests, tokens = meter.requests, meter.tokens
        reserved = min(float(tokens_bound), tokens.capacity) if tokens else 0.0
        if meter.concurrency and meter.in_flight >= meter.concurrency:
            raise _exceeded(
                f"{meter.limits.concurrency} requests at once", CONCURRENCY_RETRY_SECONDS
            )
        if requests and requests.level < 1.0:
            raise _exceeded(
                f"{meter.limits.requests_per_minute} requests a minute", requests.seconds_until(1.0)
            )
        # A request of unknown size passes only without debt.
        if tokens and (tokens.level < reserved or tokens.level < 0):
            raise _exceeded(
                f"{meter.limits.tokens_per_minute} tokens a minute", tokens.seconds_until(reserved)
            )
        meter.in_flight += 1
        if requests:
            requests.level -= 1.0
        if tokens:
            tokens.level -= reserved
        return Admission(meter, tokens_bound, reserved)

    def settle(self, admission: Admission, tokens_used: int = 0) -> None:
        """End a request: give back what it did not use. A second call does nothing.

        More than the bound is never charged: a worker that counts wrong cannot ruin a key.
        """
        if admission.is_settled or admission.meter is None:
            return
        admission.is_settled = True
        meter = admission.meter
        meter.in_flight -= 1
        if meter.tokens is not None:
            meter.tokens.refill(self._clock())
            used = min(max(0, tokens_used), admission.bound)
            level = meter.tokens.level + admission.reserved - used
            meter.tokens.level = min(level, meter.tokens.capacity)

    def headers(self, principal: Principal) -> dict[str, str]:
        """`x-ratelimit-*` as OpenAI sends them; empty for a key without such limits."""
        meter = self._find_meter(principal)
        if meter is None:
            return {}
        meter.refill(self._clock())
        found: dict[str, str] = {}
        for what, limit, bucket in (
            ("requests", meter.limits.requests_per_minute, meter.requests),
            ("tokens", meter.limits.tokens_per_minute, meter.tokens),
        ):
            if bucket is not None:
                found[f"x-ratelimit-limit-{what}"] = str(limit)
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.level)))
                found[f"x-ratelimit-reset-{what}"] = format_duration(
                    bucket.seconds_until(bucket.capacity)
                )
        return found

    def _find_meter(self, principal: Principal) -> KeyMeter | None:
        limits = principal.limits
        if limits is NO_LIMITS or limits == NO_LIMITS:
            return None
        meter = self._meters.get(principal.key_id)
        if meter is None or (meter.limits is not limits and meter.limits != limits):
            meter = self._meters[principal.key_id] = KeyMeter(limits, self._share, self._clock())
            if len(self._meters) > self._max_meters:
                self._forget_one()
        return meter

    def _forget_one(self) -> None:
        """Forget an idle meter, looking at a few of the oldest; if none is idle, the very oldest.

        A meter in use works on without us: its admissions hold it.
        """
        now = self._clock()
        oldest = next(iter(self._meters))
        for _ in range(min(64, len(self._meters) - 1)):
            key_id = next(iter(self._meters))
            meter = self._meters.pop(key_id)
            meter.refill(now)
            if meter.is_idle():
                return
            self._meters[key_id] = meter
        self._meters.pop(oldest, None)


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
    return Bucket(limit * share, now) if limit else None


def _exceeded(limit: str, retry_after_seconds: float) -> QuotaExceeded:
    return QuotaExceeded(
        f"this key's limit of {limit} is reached",
        hint=f"try again in {format_duration(retry_after_seconds)}",
        retry_after_seconds=retry_after_seconds,
    )
