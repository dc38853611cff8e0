"""What one version of a deployment did at this gateway: counted without locks, told upwards."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import msgspec

STEPS_PER_DOUBLING = 8
"""Latencies are kept in buckets whose bounds grow by 2^(1/8), about nine per cent."""
LEAST_SECONDS = 1e-5


class VersionTally:
    """Counts since this gateway began; they only grow."""

    __slots__ = ("agreed", "answered", "differed", "dropped", "failed", "latency", "shadow_failed")

    def __init__(self) -> None:
        self.answered = 0
        self.failed = 0
        """Those that clients caused too: a new version that refuses what the old one took is
        worse, and both see the same mix of clients."""
        self.latency: dict[int, int] = {}
        """`bucket_of` the seconds of each answer → how many."""
        self.agreed = 0
        self.differed = 0
        self.shadow_failed = 0
        self.dropped = 0
        """Shadow copies that were not sent, or given up, because something else needed room."""

    def count_answers(self, latencies: Sequence[float]) -> None:
        """Requests were answered, each after so many seconds; those of a batch are much alike."""
        self.answered += len(latencies)
        counts = self.latency
        bucket, least, most = 0, 0.0, 0.0
        for seconds in latencies:
            if not least <= seconds < most:
                bucket = bucket_of(seconds)
                if len(latencies) > 1:
                    least, most = upper_seconds(bucket - 1), upper_seconds(bucket)
            counts[bucket] = counts.get(bucket, 0) + 1

    def count_failure(self, code: str) -> None:
        """A request failed; one whose client left says nothing of the version."""
        if code != "cancelled":
            self.failed += 1


class VersionLoad(msgspec.Struct, array_like=True):
    """One version at one gateway, as a load report carries it."""

    deployment: str
    """`team/name`."""
    model: str
    number: int
    digest: str
    waiting: int = 0
    running: int = 0
    answered: int = 0
    failed: int = 0
    latency: dict[int, int] = {}
    agreed: int = 0
    differed: int = 0
    shadow_failed: int = 0
    dropped: int = 0

    def add_tally(self, tally: VersionTally) -> None:
        """Take the counts over."""
        self.answered, self.failed = tally.answered, tally.failed
        self.latency = dict(tally.latency)
        self.agreed, self.differed = tally.agreed, tally.differed
        self.shadow_failed, self.dropped = tally.shadow_failed, tally.dropped


def bucket_of(seconds: float) -> int:
    """Number of the bucket that a latency falls into."""
    if seconds <= LEAST_SECONDS:
        return 0
    return int(log2(seconds / LEAST_SECONDS) * STEPS_PER_DOUBLING) + 1


def upper_seconds(bucket: int) -> float:
    """The longest latency of a bucket."""
    return LEAST_SECONDS * 2 ** (bucket / STEPS_PER_DOUBLING)
