"""Whether a new version is as good as the one that serves: a pure decision over what both did."""

from __future__ import annotations

from typing import Literal

import msgspec

from wherry.client.schema import Rollout
from wherry.control.sequential import UNBOUNDED, bound_quantile, bound_rate
from wherry.gateway.tally import upper_seconds

UNFELT_SECONDS = 0.005
"""A new version may always be so much slower: beside the network nobody feels it."""


class Evidence(msgspec.Struct):
    """What one version did since a step of the canary began."""

    answered: int = 0
    failed: int = 0
    latency: dict[int, int] = {}
    """Bucket (see `wherry.gateway.tally`) → answers."""

    @property
    def requests(self) -> int:
        """All that ended."""
        return self.answered + self.failed

    def add(self, answered: int, failed: int, latency: dict[int, int]) -> None:
        """More of it."""
        self.answered += answered
        self.failed += failed
        for bucket, count in latency.items():
            self.latency[bucket] = self.latency.get(bucket, 0) + count


class Trial(msgspec.Struct):
    """What the old and the new version did side by side in one step."""

    old: Evidence = msgspec.field(default_factory=Evidence)
    new: Evidence = msgspec.field(default_factory=Evidence)
    agreed: int = 0
    compared: int = 0


class Verdict(msgspec.Struct, frozen=True):
    """What to do, and why in a sentence."""

    action: Literal["wait", "step", "promote", "roll back"]
    reason: str


class _Finding(msgspec.Struct, frozen=True):
    """One measure: proved worse than allowed, proved good, or neither yet."""

    is_worse: bool
    is_good: bool
    words: str


def judge(trial: Trial, rules: Rollout, step: int) -> Verdict:
    """Look at a canary; may be called as often as one likes.

    The new version is rolled back as soon as one measure is proved to be worse than its margin
    allows, and is promoted when all are proved to be within it; until then it waits. With chance
    `confidence` neither happens wrongly over the whole roll-out: the chance of error is shared out
    over what could go wrong (measures and steps for a roll-back; a promotion needs every measure
    in the last step, so each measure alone guards it).
    """
    alpha = 1 - rules.confidence
    measures = 3 if rules.agreement else 2
    strict = alpha / measures / len(rules.steps)
    for finding in _find(trial, rules, strict):
        if finding.is_worse:
            return Verdict("roll back", finding.words)
    is_last = step >= len(rules.steps) - 1
    missing = rules.min_requests - min(trial.new.requests, trial.old.requests)
    if missing > 0:
        return Verdict("wait", f"{missing} more requests are needed")
    if not is_last:
        words = _find(trial, rules, alpha)[0].words
        return Verdict("step", f"nothing speaks against it: {words}")
    found = _find(trial, rules, alpha)
    words = "; ".join(each.words for each in found)
    open_ones = [each.words for each in found if not each.is_good]
    if open_ones:
        return Verdict("wait", "not proved yet: " + "; ".join(open_ones))
    return Verdict("promote", words)


def _find(trial: Trial, rules: Rollout, alpha: float) -> list[_Finding]:
    found = [_compare_errors(trial, rules, alpha), _compare_latency(trial, rules, alpha)]
    if rules.agreement:
        found.append(_compare_answers(trial, rules, alpha))
    return found


def _compare_errors(trial: Trial, rules: Rollout, alpha: float) -> _Finding:
    old, new = trial.old, trial.new
    # both sequences hold together with chance 1 - alpha
    old_least, old_most = bound_rate(old.failed, old.requests, alpha / 2)
    new_least, new_most = bound_rate(new.failed, new.requests, alpha / 2)
    return _Finding(
        new_least - old_most > rules.error_margin,
        new_most - old_least <= rules.error_margin,
        f"errors {new.failed} of {new.requests}, before {old.failed} of {old.requests}",
    )


def _compare_latency(trial: Trial, rules: Rollout, alpha: float) -> _Finding:
    quantile = rules.latency_quantile
    old_least, old_most = bound_quantile(trial.old.latency, quantile, alpha / 2)
    new_least, new_most = bound_quantile(trial.new.latency, quantile, alpha / 2)
    return _Finding(
        old_most != UNBOUNDED and _at_least(new_least) > _allowed(upper_seconds(old_most), rules),
        new_most != UNBOUNDED and upper_seconds(new_most) <= _allowed(_at_least(old_least), rules),
        f"p{quantile * 100:g} {_milliseconds(trial.new, quantile)}, "
        f"before {_milliseconds(trial.old, quantile)}",
    )


def _at_least(bucket: int) -> float:
    return upper_seconds(bucket) if bucket >= 0 else 0.0


def _allowed(seconds: float, rules: Rollout) -> float:
    return max(seconds * (1 + rules.latency_margin), seconds + UNFELT_SECONDS)


def _milliseconds(evidence: Evidence, quantile: float) -> str:
    rank, below = quantile * evidence.answered, 0
    for bucket in sorted(evidence.latency):
        below += evidence.latency[bucket]
        if below >= rank:
            return f"{upper_seconds(bucket) * 1000:.3g} ms"
    return "unknown"


def _compare_answers(trial: Trial, rules: Rollout, alpha: float) -> _Finding:
    least, most = bound_rate(trial.agreed, trial.compared, alpha)
    return _Finding(
        most < rules.agreement,
        least >= rules.agreement,
        f"{trial.agreed} of {trial.compared} answers agree",
    )
