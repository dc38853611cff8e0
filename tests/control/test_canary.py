"""The judge of canaries: how often it is wrong, and how soon it is right."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.client.schema import Rollout
from wherry.control.canary import Evidence, Trial, judge
from wherry.control.sequential import UNBOUNDED, bound_quantile, bound_rate
from wherry.gateway.tally import bucket_of

RULES = Rollout(strategy="canary", steps=(50.0,), min_requests=100)
TRIALS = 40
BASE_SECONDS = 0.03


class Worlds:
    """Requests of two versions with given error rates and speeds, in lots of fifty each."""

    def __init__(self, old_errors: float, new_errors: float, slower: float, agrees: float = 1.0):
        self._versions = (("old", old_errors, 1.0), ("new", new_errors, slower))
        self._agrees = agrees

    def play(self, rules: Rollout, seed: int, most: int = 2500, step: int = 0) -> tuple[str, int]:
        """What the judge does, looking after every lot, and after how many requests of each."""
        random = np.random.default_rng(seed)
        trial = Trial()
        for seen in range(50, most + 1, 50):
            for name, errors, factor in self._versions:
                failed = int((random.random(50) < errors).sum())
                latency = Counter(
                    bucket_of(each)
                    for each in random.lognormal(np.log(BASE_SECONDS * factor), 0.5, 50 - failed)
                )
                getattr(trial, name).add(50 - failed, failed, latency)
            trial.compared += 10
            trial.agreed += int((random.random(10) < self._agrees).sum())
            verdict = judge(trial, rules, step)
            if verdict.action != "wait":
                return verdict.action, seen
        return "wait", most

    def play_many(self, rules: Rollout = RULES, **options: int) -> tuple[Counter[str], float]:
        """How often each verdict came, and the median of the requests that it took."""
        played = [self.play(rules, seed, **options) for seed in range(TRIALS)]
        return Counter(verdict for verdict, _ in played), float(np.median([n for _, n in played]))


def test_an_equal_version_is_promoted_and_hardly_ever_rolled_back():
    verdicts, requests = Worlds(0.01, 0.01, 1.0).play_many()
    # by the bound at most 5 % are wrong; three standard deviations of 40 trials above that
    assert verdicts["roll back"] <= 6
    assert verdicts["promote"] >= 30
    assert requests < 2500


def test_a_version_without_errors_needs_some_hundred_requests():
    verdicts, requests = Worlds(0.0, 0.0, 1.0).play_many()
    assert verdicts == {"promote": TRIALS}
    assert requests <= 800


@pytest.mark.parametrize(
    ("errors", "slower"),
    [(0.031, 1.0), (0.05, 1.0), (0.01, 1.65), (0.01, 2.0)],
    ids=["errors just over the margin", "many errors", "just too slow", "twice as slow"],
)
def test_a_worse_version_is_hardly_ever_promoted(errors: float, slower: float):
    verdicts, _ = Worlds(0.01, errors, slower).play_many()
    assert verdicts["promote"] <= 6


def test_a_broken_version_is_rolled_back_before_many_clients_meet_it():
    for world in (Worlds(0.01, 0.9, 1.0), Worlds(0.01, 0.01, 10.0)):
        verdicts, requests = world.play_many()
        assert verdicts == {"roll back": TRIALS}
        assert requests <= 100, "two lots, which is fewer than the least for a promotion"


def test_a_version_that_only_answers_otherwise_is_rolled_back():
    rules = msgspec.structs.replace(RULES, agreement=0.95)
    verdicts, _ = Worlds(0.0, 0.0, 1.0, agrees=0.7).play_many(rules)
    assert verdicts == {"roll back": TRIALS}
    verdicts, _ = Worlds(0.0, 0.0, 1.0, agrees=1.0).play_many(rules)
    assert verdicts == {"promote": TRIALS}


def test_a_small_step_is_left_after_its_minimum_and_the_last_needs_proof():
    rules = Rollout(strategy="canary", steps=(5.0, 50.0), min_requests=100)
    world = Worlds(0.01, 0.01, 1.0)
    verdicts, requests = world.play_many(rules, step=0)
    assert verdicts["step"] >= TRIALS - 6
    assert requests == 100
    assert "promote" not in verdicts


def test_a_few_milliseconds_more_are_never_held_against_it():
    trial = Trial()
    for evidence, seconds in ((trial.old, 0.0005), (trial.new, 0.003)):
        evidence.add(5000, 0, {bucket_of(seconds): 5000})
    assert judge(trial, RULES, 0).action == "promote"


def test_what_it_waits_for_is_said():
    assert "100 more requests" in judge(Trial(), RULES, 0).reason
    trial = Trial(old=Evidence(200, 0), new=Evidence(190, 10))
    assert "errors 10 of 200, before 0 of 200" in judge(trial, RULES, 0).reason


# ------------------------------------------------------------------------------ the bounds


@pytest.mark.parametrize("chance", [0.001, 0.05, 0.5])
def test_the_bounds_of_a_rate_hold_at_all_times_together(chance: float):
    random = np.random.default_rng(7)
    broken = 0
    for _ in range(200):
        throws = np.cumsum(random.random(3000) < chance)
        for total in (1, 2, 5, 10, 30, 100, 300, 1000, 2000, 3000):
            low, high = bound_rate(int(throws[total - 1]), total, 0.1)
            if not low <= chance <= high:
                broken += 1
                break
    assert broken <= 33, "at most 10 % of 200, and three standard deviations"


def test_the_bounds_of_a_quantile_hold_at_all_times_together():
    random = np.random.default_rng(8)
    truth = bucket_of(BASE_SECONDS * float(np.exp(0.5 * 1.2815515655)))  # the 90 % quantile
    broken = 0
    for _ in range(100):
        counts: Counter[int] = Counter()
        for _ in range(30):
            counts.update(bucket_of(each) for each in random.lognormal(np.log(0.03), 0.5, 60))
            low, high = bound_quantile(counts, 0.9, 0.1)
            if not low < truth <= high:
                broken += 1
                break
    assert broken <= 19


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.001, 0.5))
def test_bounds_enclose_what_was_seen_and_narrow_with_less_certainty(
    successes: int, failures: int, alpha: float
):
    total = successes + failures
    low, high = bound_rate(successes, total, alpha)
    seen = successes / total if total else 0.5
    assert 0 <= low <= seen <= high <= 1
    wide_low, wide_high = bound_rate(successes, total, alpha / 10)
    assert wide_low <= low + 1e-9
    assert wide_high >= high - 1e-9


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.integers(0, 200), st.integers(1, 50), max_size=20))
def test_the_bounds_of_a_quantile_are_in_order(counts: dict[int, int]):
    low, high = bound_quantile(counts, 0.9, 0.05)
    assert low < high
    assert low == -1 or low in counts
    assert high == UNBOUNDED or high in counts
