"""The controller's pure decisions: rollout, back-off, scaling, memory."""

from __future__ import annotations

import pytest

from wherry.client.schema import DeploymentSpec, Replicas
from wherry.control.memory import MemoryBudget
from wherry.control.rollout import (
    FREE_CRASHES,
    MAX_CRASH_BACKOFF_SECONDS,
    Failures,
    choose_routed,
    count_replicas,
)
from wherry.errors import DoesNotFit


def test_traffic_moves_only_when_every_wanted_version_is_ready():
    assert choose_routed(["new"], ["old"], {"old": 1}, {"new": 1}) == ["old"]
    assert choose_routed(["a", "b"], ["old"], {"old": 1, "a": 1}, {"a": 1, "b": 1}) == ["old"]
    assert choose_routed(["a", "b"], ["old"], {"old": 1, "a": 1, "b": 1}, {"a": 1, "b": 1}) == [
        "a",
        "b",
    ]


def test_an_old_version_is_left_only_for_as_many_workers_as_it_should_have():
    assert choose_routed(["new"], ["old"], {"old": 3, "new": 2}, {"new": 3}) == ["old"]
    assert choose_routed(["new"], ["old"], {"old": 3, "new": 3}, {"new": 3}) == ["new"]
    assert choose_routed(["new"], ["old"], {"new": 1}, {"new": 3}) == ["new"], (
        "the old one has none left"
    )
    assert choose_routed(["a", "b"], ["b"], {"a": 1, "b": 3}, {"a": 3, "b": 3}) == ["a", "b"]


def test_requests_wait_for_the_wanted_version_when_nothing_is_ready():
    assert choose_routed(["new"], ["old"], {}, {"new": 1}) == ["new"]
    assert choose_routed(["new"], [], {}, {"new": 1}) == ["new"]


@pytest.mark.parametrize(
    ("replicas", "awake", "autoscaled", "expected"),
    [
        (Replicas(1, 1), True, 1, 1),
        (Replicas(2, 4), True, 1, 2),
        (Replicas(1, 4), True, 3, 3),
        (Replicas(1, 2), True, 9, 2),
        (Replicas(0, 2), False, 1, 0),
        (Replicas(0, 2), True, 1, 1),
    ],
)
def test_replicas_follow_spec_load_and_sleep(replicas, awake, autoscaled, expected):
    spec = DeploymentSpec(name="m", model="m", replicas=replicas)
    assert count_replicas(spec, is_awake=awake, autoscaled=autoscaled) == expected


def test_a_stopped_deployment_has_no_workers_even_under_load():
    spec = DeploymentSpec(name="m", model="m", stopped=True)
    assert count_replicas(spec, is_awake=True, autoscaled=5) == 0


def test_a_crash_is_answered_at_once_but_a_crash_loop_waits():
    failures = Failures()
    for _ in range(FREE_CRASHES):
        failures.note(100.0, "killed", was_ready=True)
        assert failures.not_before <= 100.0
    for _ in range(50):
        failures.note(100.0, "killed", was_ready=True)
    assert 100.0 < failures.not_before <= 100.0 + MAX_CRASH_BACKOFF_SECONDS
    assert failures.load_failures == 0, "what can load is not failing, whatever input ends it"


def test_failed_loads_back_off_up_to_half_a_minute_and_are_forgiven():
    failures = Failures()
    waits = []
    for _ in range(10):
        failures.note(0.0, "no weights", was_ready=False)
        waits.append(failures.not_before)
    assert waits[0] == 0.5
    assert waits == sorted(waits)
    assert waits[-1] == 30.0
    failures.load_failures = 1
    failures.clear()
    assert failures.load_failures == 0


def test_what_does_not_fit_is_refused_with_the_sum():
    budget = MemoryBudget(1000)
    budget.check("small", 300, [("chat", 600)])
    with pytest.raises(DoesNotFit) as refused:
        budget.check("big", 500, [("chat", 600), ("idle", 0)])
    text = refused.value.text
    assert "needs 500 MiB" in text
    assert "chat 600" in text
    assert "400 MiB free" in text


def test_the_default_budget_is_a_share_of_the_machine():
    import psutil

    total_mib = psutil.virtual_memory().total >> 20
    assert 0.5 * total_mib < MemoryBudget().limit_mib < total_mib
