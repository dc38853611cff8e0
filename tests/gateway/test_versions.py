"""Which version answers a request, who sticks to it, and what copies a version gets unseen."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data_plane import PRINCIPAL, DataPlane, data_plane, version_route, write_model

from wherry import errors, telemetry
from wherry.client.schema import KeyLimits
from wherry.doors.fast_lane import FastLane, Known, Passage
from wherry.doors.inference import INFER
from wherry.gateway.route import (
    DeploymentRoute,
    ShadowRoute,
    Snapshot,
    choose_version,
    sticky_of,
)
from wherry.gateway.tally import VersionLoad, bucket_of, upper_seconds

KEYS = [f"key-{number}" for number in range(2000)]

TIMES = """
class Model:
    def predict(self, batch):
        return [{{"X": item["X"] * {factor}}} for item in batch]
"""
KEEPS_COUNT = """
import os, time
class Model:
    def predict(self, batch):
        for item in batch:
            time.sleep({seconds})
            with open({file!r}, "a") as file:
                file.write("x")
            if {fails}:
                raise RuntimeError("shadows fail")
        return [{{"X": item["X"] * {factor}}} for item in batch]
"""


def deployment(*weights: int, name: str = "model", split: Any = "key") -> DeploymentRoute:
    return DeploymentRoute(
        "team-1", "default", name, "ready", "", 1.0, 0.0,
        tuple(version_route(number=at + 1, weight=weight) for at, weight in enumerate(weights)),
        split=split,
    )  # fmt: skip


def share_out(route: DeploymentRoute) -> list[int]:
    return [choose_version(route, "", key).number for key in KEYS]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=5))
def test_versions_get_their_shares_of_the_keys(weights: list[int]):
    counts = Counter(share_out(deployment(*weights)))
    for number, weight in enumerate(weights, 1):
        share = weight / sum(weights)
        # 5 standard deviations of a share of 2000 keys
        allowed = 5 * (share * (1 - share) / len(KEYS)) ** 0.5 + 0.001
        assert abs(counts[number] / len(KEYS) - share) < allowed


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 100), st.integers(1, 100))
def test_keys_move_only_to_a_version_that_grows(first: int, second: int, third: int, more: int):
    before = share_out(deployment(first, second, third))
    after = share_out(deployment(first, second, third + more))
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {new for _, new in moved} <= {3}
    total = first + second + third
    expected = (third + more) / (total + more) - third / total
    assert len(moved) / len(KEYS) < expected + 0.06


def test_two_deployments_do_not_give_their_rare_version_to_the_same_keys():
    one = {
        key for key, number in zip(KEYS, share_out(deployment(90, 10)), strict=True) if number > 1
    }
    rare = share_out(deployment(90, 10, name="other"))
    other = {key for key, number in zip(KEYS, rare, strict=True) if number > 1}
    assert len(one & other) < len(one) / 2


def test_a_version_without_weight_answers_only_who_asks_for_it():
    route = deployment(100, 0)
    assert set(share_out(route)) == {1}
    assert choose_version(route, "2", "anyone").number == 2
    with pytest.raises(errors.ModelNotFound):
        choose_version(route, "3", "anyone")


def test_a_clients_own_word_counts_within_its_team():
    route = deployment(50, 50)
    word = sticky_of(route, "user-7", "team-1", "key-1", "req-1")
    assert word == sticky_of(route, "user-7", "team-1", "key-2", "req-2")
    assert word != sticky_of(route, "user-7", "team-2", "key-1", "req-1")
    assert sticky_of(route, "", "team-1", "key-1", "req-1") == "key-1"


def test_a_canarys_share_is_of_requests_so_that_one_key_can_try_it():
    route = deployment(90, 10, split="request")
    chosen = Counter(
        choose_version(route, "", sticky_of(route, "", "team-1", "key-1", f"req-{each}")).number
        for each in range(2000)
    )
    assert 120 < chosen[2] < 280
    stuck = {
        choose_version(route, "", sticky_of(route, "me", "team-1", "key-1", f"req-{each}")).number
        for each in range(50)
    }
    assert len(stuck) == 1


@given(st.floats(1e-7, 1000))
def test_a_latency_is_in_a_bucket_whose_bound_is_at_most_a_tenth_above(seconds: float):
    bound = upper_seconds(bucket_of(seconds))
    assert bound >= min(seconds, 1e-5) * 0.999
    assert bound >= seconds * 0.999
    assert bound <= max(seconds, 1e-5) * 1.1


# ------------------------------------------------------------------------------ shadow copies


def play(folder: Path, story: Callable[[DataPlane], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with data_plane(folder) as plane:
            await story(plane)

    asyncio.run(run())


async def serve_with_shadow(
    plane: DataPlane, folder: Path, shadow_source: str, first: str = TIMES.format(factor=2)
) -> None:
    """Version 1 answers, version 2 gets a copy of everything."""
    # they may count in a file outside of their bundles
    one = await plane.start_worker(write_model(folder / "one", first), sandbox="off")
    two = await plane.start_worker(write_model(folder / "two", shadow_source), sandbox="off")
    plane.route(
        versions=(version_route(one, number=1), version_route(two, number=2, weight=0)),
        shadows=(ShadowRoute("model", 2, "sha256:2", 1.0),),
    )
    await plane.wait_for_links(2)


def shadow_load(plane: DataPlane) -> VersionLoad:
    return next(each for each in plane.gateway.version_loads() if each.number == 2)


async def wait_for_copies(plane: DataPlane, count: int) -> VersionLoad:
    for _ in range(1000):
        load = shadow_load(plane)
        if load.agreed + load.differed + load.shadow_failed + load.dropped >= count:
            return load
        await asyncio.sleep(0.01)
    raise AssertionError(f"fewer than {count} copies ended: {shadow_load(plane)}")


def test_a_copy_is_compared_and_leaves_no_record(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        await serve_with_shadow(plane, tmp_path, TIMES.format(factor=2.01))
        for value in range(1, 6):
            assert await plane.call(float(value)) == [2.0 * value]
            await wait_for_copies(plane, value)
        load = shadow_load(plane)
        assert (load.agreed, load.differed, load.shadow_failed) == (5, 0, 0), "within 5 %"
        assert load.answered == load.failed == 0, "no client was answered by it"
        records = await plane.records()
        assert len(records) == 5
        assert {record.version for record in records} == {1}
        assert plane.gateway.guard.held_bytes == 0

    play(tmp_path / "data", story)


def test_answers_that_differ_are_counted(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        await serve_with_shadow(plane, tmp_path, TIMES.format(factor=3))
        for value in range(1, 4):
            await plane.call(float(value))
            await wait_for_copies(plane, value)
        assert shadow_load(plane).differed == 3

    play(tmp_path / "data", story)


def test_a_shadow_that_fails_slowly_is_not_felt(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        marks = tmp_path / "marks"
        source = KEEPS_COUNT.format(file=str(marks), seconds=1.0, fails=True, factor=1)
        await serve_with_shadow(plane, tmp_path, source)
        begun = time.monotonic()
        for value in range(1, 20):
            assert await plane.call(float(value)) == [2.0 * value]
        assert time.monotonic() - begun < 10, "nineteen copies would take nineteen seconds"
        load = await wait_for_copies(plane, 19)
        assert load.dropped, "while one copy ran, others were dropped"
        assert load.shadow_failed == len(marks.read_text())
        assert load.dropped + load.shadow_failed == 19

    play(tmp_path / "data", story)


def test_copies_are_dropped_while_clients_wait(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        slow = KEEPS_COUNT.format(file=str(tmp_path / "ones"), seconds=0.05, fails=False, factor=2)
        marks = tmp_path / "marks"
        source = KEEPS_COUNT.format(file=str(marks), seconds=0.0, fails=False, factor=2)
        await serve_with_shadow(plane, tmp_path, source, first=slow)
        calls = [plane.call(float(each)) for each in range(150)]  # more than the worker's credits
        await asyncio.gather(*calls)
        load = await wait_for_copies(plane, 150)
        assert load.dropped > 75

    play(tmp_path / "data", story)


def test_a_shadows_death_is_nobodys_error(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        source = "import os\nclass Model:\n    def predict(self, batch):\n        os._exit(1)\n"
        await serve_with_shadow(plane, tmp_path, source)
        for value in range(1, 4):
            assert await plane.call(float(value)) == [2.0 * value]
        load = await wait_for_copies(plane, 3)
        assert load.agreed == load.differed == 0
        assert {record.code for record in await plane.records()} == {""}

    play(tmp_path / "data", story)


def test_a_pinned_request_and_a_stream_are_not_copied(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        await serve_with_shadow(plane, tmp_path, TIMES.format(factor=3))
        assert await plane.call(1.0, deployment="model@1") == [2.0]
        assert await plane.call(1.0, deployment="model@2") == [3.0]
        await asyncio.sleep(0.2)
        load = shadow_load(plane)
        assert load.agreed + load.differed + load.dropped + load.shadow_failed == 0

    play(tmp_path / "data", story)


def test_while_a_canary_is_judged_each_request_of_the_fast_lane_draws_its_version(
    tmp_path: Path,
) -> None:
    async def story(plane: DataPlane) -> None:
        plane.gateway.replace_routes(Snapshot(1, (deployment(50, 50, split="request"),)))
        lane = FastLane(cast("Any", None), plane.gateway, cast("Any", None), telemetry.Counter())
        passage = Passage(cast("Any", None), INFER, "model", "")
        known = Known(passage, b"", {})
        tracks = [lane.find_track(known, PRINCIPAL, f"req-{n}") for n in range(40)]
        assert {track.version.number for track in tracks} == {1, 2}
        plane.gateway.replace_routes(Snapshot(2, (deployment(100, 0),)))
        kept = lane.find_track(known, PRINCIPAL, "req-1")
        assert lane.find_track(known, PRINCIPAL, "req-2") is kept
        plane.gateway.replace_routes(Snapshot(3, (deployment(0, 100),)))
        assert lane.find_track(known, PRINCIPAL, "req-3").version.number == 2
        changed = msgspec.structs.replace(PRINCIPAL, limits=KeyLimits(concurrency=1))
        other = lane.find_track(known, changed, "req-4")
        assert other.principal is changed
        assert other.meter is not None

    async def run() -> None:
        async with data_plane(tmp_path) as plane:
            await story(plane)

    asyncio.run(run())
