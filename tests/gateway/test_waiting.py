"""The line of waiting requests: conserving, fair, bounded, whatever comes in what order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from wherry.gateway.waiting import WaitingLine


def request(number: int, key: str = "a", deadline: float = 0.0, attempts: int = 0) -> Any:
    return SimpleNamespace(
        number=number,
        deadline=deadline or number,
        attempts=attempts,
        is_done=False,
        lane=None,
        principal=SimpleNamespace(key_id=key),
    )


def take(line: WaitingLine) -> Any:
    exchange = line.first()
    if exchange is not None:
        line.pop()
    return exchange


def take_all(line: WaitingLine) -> list[Any]:
    taken = []
    while (exchange := take(line)) is not None:
        taken.append(exchange)
    return taken


def test_one_key_is_served_by_deadline():
    line = WaitingLine()
    for number, deadline in enumerate([3.0, 1.0, 2.0]):
        line.push(request(number, deadline=deadline))
    assert [each.deadline for each in take_all(line)] == [1.0, 2.0, 3.0]


def test_keys_take_turns_whatever_they_have_in_line():
    line = WaitingLine()
    for number in range(100):
        line.push(request(number, "flood"))
    assert [take(line).principal.key_id for _ in range(3)] == ["flood"] * 3
    for number in range(100, 103):
        line.push(request(number, "quiet"))
    order = [each.principal.key_id for each in take_all(line)]
    assert order[:6].count("quiet") == 3


def test_a_key_with_one_at_a_time_gets_half_not_all():
    line = WaitingLine()
    for number in range(100):
        line.push(request(number, "flood"))
    served = []
    for number in range(100, 140):
        line.push(request(number, "single"))
        while True:
            exchange = take(line)
            served.append(exchange.principal.key_id)
            if exchange.principal.key_id == "single":
                break
    assert 35 <= served.count("flood") <= 45


def test_what_came_back_goes_first():
    line = WaitingLine()
    line.push(request(1))
    line.push(request(2, "b", attempts=1, deadline=9.0))
    assert [each.number for each in take_all(line)] == [2, 1]


def test_the_estimate_of_a_quiet_key_does_not_count_the_flood():
    line = WaitingLine()
    for number in range(1000):
        line.push(request(number, "flood"))
    assert line.ahead_of("flood") == 1000
    assert line.ahead_of("quiet") == 1
    assert line.has_its_share("flood", 1000)
    assert not line.has_its_share("quiet", 1000)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.sampled_from("abc"), st.integers(1, 9), st.booleans()),
            st.tuples(st.just("end"), st.integers(0, 30)),
            st.tuples(st.just("take")),
        ),
        max_size=80,
    )
)
def test_every_request_comes_out_once_unless_it_ended(steps: list[tuple[Any, ...]]):
    line = WaitingLine()
    pushed: list[Any] = []
    out: list[int] = []
    for step in steps:
        if step[0] == "push":
            each = request(len(pushed), step[1], float(step[2]), int(step[3]))
            pushed.append(each)
            line.push(each)
        elif step[0] == "end" and step[1] < len(pushed):
            each = pushed[step[1]]
            if not each.is_done and each.lane is not None:
                each.is_done = True
                line.note_end(each)
        elif step[0] == "take":
            taken = take(line)
            if taken is not None:
                out.append(taken.number)
        waiting = [each for each in pushed if each.lane is not None]
        assert len(line) == len(waiting)
    out += [each.number for each in take_all(line)]
    assert sorted(out) == [each.number for each in pushed if not each.is_done]
    assert len(line) == 0
