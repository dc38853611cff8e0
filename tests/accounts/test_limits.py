"""Tests of the limits of keys, on a settable clock."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.accounts.keys import Principal
from wherry.accounts.limits import KeyMeter, KeyMeters, format_duration
from wherry.client.schema import KeyLimits
from wherry.errors import QuotaExceeded


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_principal(key_id: str = "key_1", **limits: int) -> Principal:
    return Principal(key_id, "team_1", "default", frozenset({"invoke"}), limits=KeyLimits(**limits))


class Admission(NamedTuple):
    """A request that was let through."""

    meter: KeyMeter
    bound: int
    reserved: float


def admit(meters: KeyMeters, principal: Principal, bound: int = 0) -> Admission:
    meter = meters.find_meter(principal)
    assert meter is not None
    return Admission(meter, bound, meter.admit(bound, meters._clock()))


def settle(meters: KeyMeters, admission: Admission, used: int = 0) -> None:
    admission.meter.settle(admission.bound, admission.reserved, used, meters._clock())


def admit_many(
    meters: KeyMeters, principal: Principal, count: int, bound: int = 0
) -> list[Admission]:
    admitted: list[Admission] = []
    for _ in range(count):
        try:
            admitted.append(admit(meters, principal, bound))
        except QuotaExceeded:
            pass
    return admitted


def test_a_key_without_limits_needs_no_meter() -> None:
    meters = KeyMeters()
    principal = make_principal()
    assert meters.find_meter(principal) is None
    assert meters.headers(principal) == {}
    assert meters._meters == {}


def test_requests_a_minute_are_counted_and_refill() -> None:
    clock = Clock()
    meters = KeyMeters(clock=clock)
    principal = make_principal(requests_per_minute=60)
    assert len(admit_many(meters, principal, 100)) == 60
    with pytest.raises(QuotaExceeded) as refused:
        admit(meters, principal)
    assert 0 < refused.value.retry_after_seconds <= 1.0
    clock.now += refused.value.retry_after_seconds
    assert len(admit_many(meters, principal, 100)) == 1
    clock.now += 10
    assert len(admit_many(meters, principal, 100)) == 10
    clock.now += 3600
    assert len(admit_many(meters, principal, 100)) == 60


def test_keys_do_not_share_limits() -> None:
    meters = KeyMeters(clock=Clock())
    assert len(admit_many(meters, make_principal("a", requests_per_minute=5), 9)) == 5
    assert len(admit_many(meters, make_principal("b", requests_per_minute=5), 9)) == 5


def test_concurrency_is_held_until_settled_and_given_back() -> None:
    meters = KeyMeters(clock=Clock())
    principal = make_principal(concurrency=2)
    first, _second = admit_many(meters, principal, 5)
    with pytest.raises(QuotaExceeded, match="2 requests at once"):
        admit(meters, principal)
    settle(meters, first)
    assert len(admit_many(meters, principal, 5)) == 1


def test_racing_requests_cannot_exceed_the_tokens() -> None:
    meters = KeyMeters(clock=Clock())
    principal = make_principal(tokens_per_minute=1000)
    assert len(admit_many(meters, principal, 50, 100)) == 10


def test_what_was_not_used_is_given_back() -> None:
    meters = KeyMeters(clock=Clock())
    principal = make_principal(tokens_per_minute=1000)
    for admission in admit_many(meters, principal, 10, 100):
        settle(meters, admission, 30)
    assert meters.headers(principal)["x-ratelimit-remaining-tokens"] == "700"


def test_more_than_the_bound_is_never_charged() -> None:
    meters = KeyMeters(clock=Clock())
    principal = make_principal(tokens_per_minute=1000)
    settle(meters, admit(meters, principal, 100), 10**12)
    assert meters.headers(principal)["x-ratelimit-remaining-tokens"] == "900"
    settle(meters, admit(meters, principal, 100), -(10**12))
    assert meters.headers(principal)["x-ratelimit-remaining-tokens"] == "900"


def test_a_request_above_the_limit_needs_a_full_bucket_and_owes_the_rest() -> None:
    clock = Clock()
    meters = KeyMeters(clock=clock)
    principal = make_principal(tokens_per_minute=600)
    admission = admit(meters, principal, 1800)
    settle(meters, admission, 1800)
    with pytest.raises(QuotaExceeded) as refused:
        admit(meters, principal)  # in debt, even a request of unknown size waits
    assert refused.value.retry_after_seconds == pytest.approx(120)
    clock.now += 120
    admit(meters, principal)
    with pytest.raises(QuotaExceeded):
        admit(meters, principal, 1800)
    clock.now += 60
    admit(meters, principal, 1800)


def test_a_refusal_takes_nothing() -> None:
    meters = KeyMeters(clock=Clock())
    principal = make_principal(requests_per_minute=10, tokens_per_minute=100, concurrency=3)
    admit(meters, principal, 100)
    before = meters.headers(principal)
    assert admit_many(meters, principal, 50, 1) == []
    assert meters.headers(principal) == before
    assert before["x-ratelimit-remaining-requests"] == "9"


def test_each_gateway_enforces_its_share() -> None:
    clock = Clock()
    principal = make_principal(requests_per_minute=100)
    gateways = [KeyMeters(share=1 / 4, clock=clock) for _ in range(4)]
    admitted = sum(len(admit_many(gateway, principal, 125)) for gateway in gateways)
    assert 100 <= admitted <= 104
    tiny = make_principal("tiny", requests_per_minute=1, concurrency=1)
    assert [len(admit_many(gateway, tiny, 5)) for gateway in gateways] == [1, 1, 1, 1]
    clock.now += 60  # one a minute together means one in four minutes each
    assert [len(admit_many(gateway, tiny, 5)) for gateway in gateways] == [0, 0, 0, 0]


def test_headers_are_as_openai_sends_them() -> None:
    meters = KeyMeters(clock=Clock())
    principal = make_principal(requests_per_minute=60, tokens_per_minute=6000)
    admit(meters, principal, 6000)
    assert meters.headers(principal) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m0s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.012, "12ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"), (3723, "1h2m3s")],
)
def test_durations_read_like_gos(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_changed_limits_count_at_once() -> None:
    meters = KeyMeters(clock=Clock())
    assert len(admit_many(meters, make_principal(requests_per_minute=2), 9)) == 2
    assert len(admit_many(meters, make_principal(requests_per_minute=5), 9)) == 5


def test_meters_are_bounded_and_busy_ones_are_the_last_to_go() -> None:
    clock = Clock()
    meters = KeyMeters(clock=clock, max_meters=10)
    busy = make_principal("busy", requests_per_minute=1, concurrency=1)
    admission = admit(meters, busy)
    for number in range(200):
        other = make_principal(f"other-{number}", concurrency=5)
        settle(meters, admit(meters, other))
        assert len(meters._meters) <= 10
    with pytest.raises(QuotaExceeded):
        admit(meters, busy)
    settle(meters, admission)


def test_when_all_meters_are_busy_they_are_bounded_still() -> None:
    meters = KeyMeters(clock=Clock(), max_meters=10)
    held = [admit(meters, make_principal(f"k{n}", concurrency=1)) for n in range(50)]
    assert len(meters._meters) <= 10
    for admission in held:
        settle(meters, admission)


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 400), st.integers(0, 500)), max_size=60))
def test_over_any_time_no_more_is_used_than_limit_and_refill(
    steps: list[tuple[float, int, int]],
) -> None:
    clock = Clock()
    meters = KeyMeters(clock=clock)
    principal = make_principal(requests_per_minute=20, tokens_per_minute=600)
    requests = tokens = 0
    for pause, bound, used in steps:
        clock.now += pause
        try:
            admission = admit(meters, principal, bound)
        except QuotaExceeded:
            continue
        requests += 1
        tokens += min(bound, used)
        settle(meters, admission, used)
    elapsed = clock.now - 1000.0
    assert requests <= 20 + elapsed * 20 / 60 + 1e-6
    assert tokens <= 600 + elapsed * 600 / 60 + 1e-6


def test_a_clock_set_back_gives_no_new_quota(monkeypatch: Any) -> None:
    import time

    meters = KeyMeters()  # the real, monotonic clock
    principal = make_principal(requests_per_minute=3)
    assert len(admit_many(meters, principal, 9)) == 3
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert len(admit_many(meters, principal, 9)) == 0
