"""Bounds that hold at every moment of an experiment, so that it may be looked at all the time.

A classical interval is right once, at a size of sample fixed in advance; who looks after every
request and stops when it pleases is wrong far more often than promised. These bounds are a
confidence *sequence*: with probability 1 - alpha the truth is inside at all times together.

The sequence is the mixture of likelihood ratios of Robbins ("Statistical methods related to the law
of the iterated logarithm", Ann. Math. Statist. 41, 1970) for coin throws with a Beta(1/2, 1/2)
mixture: for the true p the ratio of the mixture's likelihood to p's is a non-negative martingale
that begins at 1, so by Ville's inequality it ever reaches 1/alpha with probability at most alpha
(Howard, Ramdas, McAuliffe, Sekhon: "Time-uniform, nonparametric, nonasymptotic confidence
sequences", Ann. Statist. 49, 2021, section 3.3). It is exact at any size, also for rates near 0.

A quantile is bounded by the same ratio: the answers that are faster than the true quantile q are
coin throws of chance q (Howard, Ramdas: "Sequential estimation of quantiles with applications to
A/B testing and best-arm identification", Bernoulli 28, 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

BISECTIONS = 40


def log_ratio(successes: int, failures: int, chance: float) -> float:
    """Logarithm of the mixture's likelihood over that of one chance."""
    mixture = (
        math.lgamma(successes + 0.5)
        + math.lgamma(failures + 0.5)
        - math.lgamma(successes + failures + 1)
        - math.log(math.pi)  # B(1/2, 1/2)
    )
    if (successes and chance <= 0) or (failures and chance >= 1):
        return math.inf
    likelihood = successes * math.log(chance) if successes else 0.0
    return mixture - likelihood - (failures * math.log1p(-chance) if failures else 0.0)


def bound_rate(successes: int, total: int, alpha: float) -> tuple[float, float]:
    """The least and the greatest chance that the throws so far leave possible."""
    if not total:
        return 0.0, 1.0
    failures, limit = total - successes, -math.log(alpha)
    seen = successes / total

    def edge(inside: float, outside: float) -> float:
        for _ in range(BISECTIONS):
            middle = (inside + outside) / 2
            if log_ratio(successes, failures, middle) < limit:
                inside = middle
            else:
                outside = middle
        return outside

    return edge(seen, 0.0) if successes else 0.0, edge(seen, 1.0) if failures else 1.0


def bound_quantile(counts: Mapping[int, int], quantile: float, alpha: float) -> tuple[int, int]:
    """The lowest and the highest bucket that may hold a quantile.

    Args:
        counts: bucket → how many; buckets are ordered by their numbers.
        quantile: between 0 and 1.
        alpha: chance that the bounds ever fail.

    Returns:
        Bucket numbers; the quantile lies above the lower bound of the first and below the upper
        bound of the second. -1 and a number beyond all that were seen = unbounded.
    """
    total, limit = sum(counts.values()), -math.log(alpha)
    lowest, below = -1, 0
    for bucket in sorted(counts):
        # all of this bucket and those below it are at most its upper bound
        below += counts[bucket]
        if log_ratio(below, total - below, quantile) < limit:
            continue
        if below > quantile * total:
            return lowest, bucket
        lowest = bucket
    return lowest, UNBOUNDED


UNBOUNDED = 1 << 30
