"""How many workers load asks for, on recorded and made-up loads; and who makes room for whom."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.control.autoscale import DOWN_AFTER_SECONDS, UP_AFTER_SECONDS, Autoscaler, WorkMeter
from wherry.control.evict import MIN_RESIDENCY_SECONDS, Resident, choose_victims, will_make_room

TURN_SECONDS = 0.5
TARGET = 0.75


class Farm:
    """Workers that are as fast as they are many, a queue, and a scaler that watches them."""

    def __init__(self, load_seconds: float = 3.0, most: int = 8) -> None:
        self.scaler = Autoscaler()
        self.load_seconds = load_seconds
        self.most = most
        self.ready = 1
        self.backlog = 0.0
        self._loading: list[float] = []
        self.now = 0.0
        self.history: list[tuple[float, int, float]] = []
        """Time, workers that should run, seconds of work that wait."""

    def turn(self, offered: float) -> None:
        """Half a second in which so many workers' work comes in."""
        self.now += TURN_SECONDS
        self.ready += sum(at <= self.now for at in self._loading)
        self._loading = [at for at in self._loading if at > self.now]
        work = self.backlog + offered * TURN_SECONDS
        done = min(work, self.ready * TURN_SECONDS)
        self.backlog = work - done
        wanted = self.scaler.observe(
            self.now, done / TURN_SECONDS, self.backlog, target=TARGET, most=self.most
        )
        for _ in range(wanted - self.ready - len(self._loading)):
            self._loading.append(self.now + self.load_seconds)
        self.ready = min(self.ready, wanted)
        self.history.append((self.now, wanted, self.backlog))

    def play(self, load: Callable[[float], float], seconds: float) -> Farm:
        """Go through a load, a function of time."""
        end = self.now + seconds
        while self.now < end:
            self.turn(load(self.now))
        return self

    @property
    def counts(self) -> list[int]:
        """How many workers should run, turn by turn."""
        return [each for _, each, _ in self.history]

    def changes(self) -> list[int]:
        """+1 and -1 (or more) for each change of that number."""
        pairs = zip(self.counts, self.counts[1:], strict=False)
        return [after - before for before, after in pairs if after != before]


@pytest.mark.parametrize("offered", [1.5, 2.5, 5.0])
def test_a_sudden_load_is_answered_within_five_seconds_and_a_load(offered: float):
    farm = Farm(load_seconds=3.0).play(lambda _: 0.2, 30).play(lambda _: offered, 60)
    first = next(at for at, count, _ in farm.history if count > 1)
    assert first - 30 <= 5
    assert farm.history[-1][1] >= offered / TARGET - 0.1
    assert farm.history[-1][2] < 0.5, "nothing waits in the end"


def test_a_short_peak_is_not_worth_a_worker():
    farm = Farm().play(lambda at: 3.0 if at % 20 < 0.5 else 0.1, 120)
    assert set(farm.counts) == {1}


def test_a_busy_worker_is_not_taken_away_and_calm_goes_down_slowly_to_the_least():
    farm = Farm().play(lambda _: 4.0, 60)
    top = farm.counts[-1]
    assert top >= 5
    farm.play(lambda _: 0.1, DOWN_AFTER_SECONDS - 5)
    assert farm.counts[-1] == top, "a minute of calm is needed"
    farm.play(lambda _: 0.1, 400)
    assert farm.counts[-1] == 1
    assert all(change == -1 for change in farm.changes() if change < 0)


@pytest.mark.parametrize(
    "load",
    [
        lambda _: 1.5,  # exactly two workers' at the target
        lambda at: 1.5 + 0.2 * math.sin(at),
        lambda at: 2.0 + 1.0 * math.sin(at / 7),  # a wave of 44 s
        lambda at: 3.0 if int(at / 10) % 2 else 1.0,  # ten seconds up, ten down
    ],
    ids=["constant", "ripple", "wave", "square"],
)
def test_a_steady_load_makes_no_swinging(load: Callable[[float], float]):
    farm = Farm().play(load, 900)
    late = [count for at, count, _ in farm.history if at > 200]
    assert max(late) - min(late) <= 1
    falls = [change for change in farm.changes() if change < 0]
    assert len(falls) <= 2, farm.changes()


def test_noise_around_the_target_makes_no_swinging():
    source = random.Random(3)
    farm = Farm().play(lambda _: max(0.0, source.gauss(1.5, 0.5)), 1800)
    assert len([change for change in farm.changes() if change < 0]) <= 3


# a made-up day: requests a second of 0.1 s of work each, hour by hour, calm at night, with a rush
# after lunch and one in the evening
DAY = [2, 1, 1, 1, 2, 4, 8, 14, 18, 20, 22, 26, 34, 28, 22, 20, 22, 28, 36, 40, 30, 18, 9, 4]


def test_a_day_is_followed_with_few_changes_and_little_waiting():
    source = random.Random(5)
    hour = 300.0  # the day in two hours

    def load(at: float) -> float:
        return DAY[int(at / hour) % 24] * 0.1 * source.uniform(0.8, 1.2)

    farm = Farm(load_seconds=5.0).play(load, 24 * hour)
    assert max(farm.counts) <= math.ceil(4.0 * 1.2 / TARGET)
    assert farm.counts[-1] <= 3
    assert len(farm.changes()) < 40
    waits = sorted(backlog for _, _, backlog in farm.history)
    assert waits[int(len(waits) * 0.99)] < 2.0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 20), min_size=20, max_size=300), st.integers(1, 8))
def test_bounds_are_kept_whatever_the_load(loads: list[float], most: int):
    farm = Farm(most=most)
    for offered in loads:
        farm.turn(offered)
    assert all(1 <= count <= most for count in farm.counts)


def test_up_needs_the_whole_of_a_moment():
    scaler = Autoscaler()
    for now in (0.0, 0.5, 1.0):
        assert scaler.observe(now, 1.0, 10.0, target=TARGET, most=8) == 1
    assert scaler.observe(UP_AFTER_SECONDS, 1.0, 0.9, target=TARGET, most=8) == 2, "the least of it"


def test_one_long_answer_is_as_much_work_as_many_short_ones():
    short, long = WorkMeter(), WorkMeter()
    for second in range(10):
        short.add(float(second), 1.0, 100)
        long.add(float(second), 1.0, 1)
    assert short.seconds_per_request == pytest.approx(0.01, rel=0.01)
    assert long.seconds_per_request == pytest.approx(1.0, rel=0.1)
    fresh = WorkMeter()
    fresh.add(0.0, 3.0, 0)
    assert fresh.seconds_per_request == 3.0, "none has ended: it is at least so long"


def test_what_work_is_follows_a_change_of_the_requests():
    meter = WorkMeter()
    for second in range(300):
        meter.add(float(second), 1.0, 100)
    for second in range(300, 600):
        meter.add(float(second), 1.0, 10)
    assert 0.07 < meter.seconds_per_request < 0.1


# ------------------------------------------------------------------------------ room for others


def resident(name: str, idle: float, mib: int = 100, **changes: Any) -> Resident:
    fields: dict[str, Any] = {
        "id": name,
        "memory_mib": mib,
        "may_be_unloaded": True,
        "is_working": False,
        "loaded_seconds": 1000.0,
        "idle_seconds": idle,
    }
    return Resident(**(fields | changes))


def test_the_longest_unused_makes_room():
    residents = [resident("a", 5), resident("b", 50), resident("c", 20)]
    assert choose_victims(residents, 50) == ["b"]
    assert choose_victims(residents, 150) == ["b", "c"]


def test_no_more_is_unloaded_than_is_needed():
    residents = [resident("small", 90, mib=10), resident("big", 50, mib=500)]
    assert choose_victims(residents, 400) == ["big"]


@pytest.mark.parametrize(
    "change",
    [
        {"may_be_unloaded": False},
        {"is_working": True},
        {"loaded_seconds": MIN_RESIDENCY_SECONDS - 1},
        {"idle_seconds": 0.5},
    ],
    ids=["pinned", "working", "just loaded", "just used"],
)
def test_who_is_spared(change: dict[str, Any]):
    assert choose_victims([resident("a", 100.0, **change)], 50) == []


def test_nothing_is_unloaded_in_vain():
    residents = [resident("a", 50), resident("b", 60, is_working=True)]
    assert choose_victims(residents, 150) == []
    assert will_make_room(residents, 150), "once b is done"
    assert not will_make_room(residents, 250)


@given(
    st.lists(st.tuples(st.floats(1, 1e6), st.integers(1, 1000), st.booleans()), max_size=12),
    st.integers(1, 3000),
)
def test_victims_are_enough_and_each_of_them_is_needed(
    found: list[tuple[float, int, bool]], missing: int
):
    residents = [
        resident(str(at), idle, mib, is_working=is_working)
        for at, (idle, mib, is_working) in enumerate(found)
    ]
    victims = [each for each in residents if each.id in choose_victims(residents, missing)]
    if victims:
        freed = sum(each.memory_mib for each in victims)
        assert freed >= missing
        assert all(freed - each.memory_mib < missing for each in victims)
        assert not any(each.is_working for each in victims)
    else:
        free = sum(each.memory_mib for each in residents if not each.is_working)
        assert free < missing
