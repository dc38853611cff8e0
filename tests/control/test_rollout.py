"""Canaries, roll-backs, warm versions and evictions over real workers: nobody's request fails."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.control.control_plane import ControlPlane, play
from tests.control.test_controller import BROKEN, SLEEPER, TIMES

from wherry import errors
from wherry.client.schema import Event, Replicas, Rollout, Target
from wherry.control import evict
from wherry.control.store import load_events

QUICK = Rollout(
    strategy="canary",
    steps=(50.0,),
    min_requests=20,
    error_margin=0.4,
    latency_margin=20.0,
    latency_quantile=0.5,
    keep_warm_seconds=0.0,
)
"""Wide margins are proved by few requests."""
FAILS = """
class Model:
    def predict(self, batch):
        raise RuntimeError("not today")
"""
DIES = """
import os
class Model:
    def predict(self, batch):
        os._exit(1)
"""
DAWDLES = """
import time
class Model:
    def predict(self, batch):
        time.sleep(0.25)
        return [{"X": item["X"] * 3} for item in batch]
"""


class Callers:
    """Clients that call a deployment all the time."""

    def __init__(self, plane: ControlPlane, name: str = "m", count: int = 4, **changes: Any):
        self.answers: Counter[float] = Counter()
        self.failures: list[errors.WherryError] = []
        self._plane = plane
        self._is_over = False
        self._tasks = [asyncio.ensure_future(self._call_on(name, changes)) for _ in range(count)]

    async def _call_on(self, name: str, changes: dict[str, Any]) -> None:
        while not self._is_over:
            try:
                self.answers[await self._plane.call(name, **changes)] += 1
            except errors.WherryError as error:
                self.failures.append(error)
            await asyncio.sleep(0.002)

    async def stop(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)


def events(plane: ControlPlane) -> list[Event]:
    with plane.database.read() as connection:
        return load_events(connection, plane.team, 0, ["deployments"], 1000)


async def begin(plane: ControlPlane, second: str, rollout: Rollout = QUICK, **fields: Any) -> None:
    """Version 1 serves, version 2 was just deployed."""
    plane.add_model("m", TIMES.format(factor=2), memory_mib=fields.pop("memory_mib", 10))
    await plane.apply("m", model="m@1", rollout=rollout, **fields)
    await plane.wait_ready("m")
    plane.add_model("m", second)
    await plane.apply("m", model="m@2", rollout=rollout, **fields)


def test_a_good_canary_takes_over_by_itself_and_no_request_fails(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        callers = None
        rollout = msgspec.structs.replace(QUICK, steps=(20.0, 50.0))
        await begin(plane, TIMES.format(factor=3), rollout)
        callers = Callers(plane)
        await plane.wait(lambda: plane.see("m").rollout.phase == "canary")
        assert plane.see("m").rollout.candidate == "m@2"
        await plane.wait_serving("m", "m@2", 60)
        await plane.wait(lambda: {each.version for each in plane.workers()} == {2})
        await callers.stop()
        assert callers.failures == []
        assert set(callers.answers) == {2.0, 3.0}
        assert await plane.call("m") == 3.0
        seen = plane.see("m").rollout
        assert (seen.phase, seen.previous) == ("steady", ["m@1"])
        assert "errors 0 of" in seen.reason
        await plane.wait(lambda: "changed version" in [each.what for each in events(plane)])
        told = [each.what for each in events(plane)]
        assert [each for each in told if each.startswith("canary") or each == "promoted"] == [
            "canary begun",
            "canary step",
            "promoted",
        ]

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("second", "rule", "why"),
    [
        (FAILS, {}, "errors"),
        (DAWDLES, {"latency_margin": 0.5}, "p50"),
        (TIMES.format(factor=3), {"agreement": 0.9, "agreement_share": 1.0}, "answers agree"),
        (BROKEN, {}, "no such weights"),
        (DIES, {}, "crashed"),
    ],
    ids=["errors", "latency", "answers", "load", "crashes"],
)
def test_a_bad_canary_is_rolled_back_by_itself(
    tmp_path: Path, second: str, rule: dict[str, Any], why: str
):
    async def story(plane: ControlPlane) -> None:
        await begin(plane, second, msgspec.structs.replace(QUICK, steps=(30.0,), **rule))
        callers = Callers(plane)
        await plane.wait(lambda: plane.see("m").rollout.phase == "rolled_back", 60)
        await plane.wait(lambda: {each.version for each in plane.workers()} == {1})
        await plane.controller.catch_up()
        await callers.stop()
        assert why in plane.see("m").rollout.reason
        assert plane.see("m").state == "ready"
        assert {await plane.call("m") for _ in range(20)} == {2.0}
        await plane.wait(lambda: "rolled back" in [each.what for each in events(plane)])
        told = next(each for each in events(plane) if each.what == "rolled back")
        assert why in told.data["reason"]

    play(tmp_path, story)


def test_what_was_decided_survives_a_restart_and_an_operator_may_decide_otherwise(tmp_path: Path):
    async def before(plane: ControlPlane) -> None:
        await begin(plane, BROKEN)
        await plane.wait(lambda: plane.see("m").rollout.phase == "rolled_back", 60)
        await plane.controller.settle()

    async def after(plane: ControlPlane) -> None:
        await plane.wait_ready("m")
        assert plane.see("m").rollout.phase == "rolled_back"
        assert "no such weights" in plane.see("m").rollout.reason
        assert plane.see("m").versions == {"m@1": 100}
        assert await plane.call("m") == 2.0
        assert plane.deployments.users_of(plane.team, "m", 1) == ["m"], "it may not be removed"
        plane.add_model("m", TIMES.format(factor=5))
        await plane.apply("m", model="m@3")
        await plane.wait_serving("m", "m@3")
        assert await plane.call("m") == 5.0

    play(tmp_path, before)
    play(tmp_path, after)


def test_a_canary_goes_on_after_a_restart_with_what_it_has_shown(tmp_path: Path):
    patient = msgspec.structs.replace(QUICK, min_requests=1_000_000)

    async def before(plane: ControlPlane) -> None:
        await begin(plane, TIMES.format(factor=3), patient)
        callers = Callers(plane)
        await plane.wait(lambda: plane.see("m").rollout.requests > 30, 60)
        await asyncio.sleep(6)  # longer than evidence is kept in memory only
        await callers.stop()

    async def after(plane: ControlPlane) -> None:
        await plane.wait_ready("m", 2)
        seen = plane.see("m").rollout
        assert (seen.phase, seen.candidate) == ("canary", "m@2")
        assert seen.requests > 30
        await plane.controller.order(plane.team, "m", "promote")
        await plane.wait_serving("m", "m@2")
        assert await plane.call("m") == 3.0
        with pytest.raises(errors.Conflict):
            await plane.controller.order(plane.team, "m", "promote")

    play(tmp_path, before)
    play(tmp_path, after)


# ------------------------------------------------------------------------------ roll-back


def test_a_roll_back_to_a_warm_version_is_a_flip_of_routes(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        rollout = Rollout(keep_warm_seconds=60.0)
        await begin(plane, TIMES.format(factor=3), rollout)
        await plane.wait_serving("m", "m@2")
        assert 50 < plane.see("m").rollout.warm_seconds <= 60
        assert plane.see("m").replicas_ready == 1, "a warm one serves nobody"
        assert await plane.call("m") == 3.0
        assert await plane.call("m@1") == 2.0, "who asks for it by number still gets it"
        pids = {each.version: each.pid for each in plane.workers()}
        callers = Callers(plane)
        await asyncio.sleep(0.3)
        took = []
        for expected in (2.0, 3.0, 2.0):
            begun = time.monotonic()
            await plane.controller.order(plane.team, "m", "rollback")
            took.append(time.monotonic() - begun)
            assert await plane.call("m") == expected, "in force when it returns"
        await callers.stop()
        print(f"a flip took {[round(each * 1000) for each in took]} ms")
        assert min(took) < 1.0
        assert callers.failures == []
        assert {each.version: each.pid for each in plane.workers()} == pids, "nothing was loaded"
        assert plane.see("m").rollout.phase == "rolled_back"
        assert plane.see("m").spec.model == "m@2", "the spec is the operator's"

    play(tmp_path, story)


def test_a_roll_back_to_a_version_that_is_not_loaded_surges(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        await begin(plane, TIMES.format(factor=3), Rollout(keep_warm_seconds=0.0))
        await plane.wait(lambda: {each.version for each in plane.workers()} == {2})
        callers = Callers(plane)
        await plane.controller.order(plane.team, "m", "rollback")
        await plane.wait(lambda: {each.version for each in plane.workers()} == {1})
        await plane.controller.catch_up()
        await callers.stop()
        assert callers.failures == []
        assert set(callers.answers) == {2.0, 3.0}
        assert await plane.call("m") == 2.0

    play(tmp_path, story)


def test_there_must_be_something_to_go_back_to(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2))
        await plane.apply("m", model="m")
        await plane.wait_ready("m")
        with pytest.raises(errors.Conflict):
            await plane.controller.order(plane.team, "m", "rollback")
        with pytest.raises(errors.ModelNotFound):
            await plane.controller.order(plane.team, "ghost", "rollback")

    play(tmp_path, story)


def test_a_warm_version_ends_when_its_time_is_over_or_memory_is_needed(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        await begin(plane, TIMES.format(factor=3), Rollout(keep_warm_seconds=2.0))
        await plane.wait_serving("m", "m@2")
        assert len(plane.workers("ready")) == 2
        await plane.wait(lambda: {each.version for each in plane.workers()} == {2})
        await plane.change("m", model="m@1", rollout=Rollout(keep_warm_seconds=600.0))
        await plane.wait_serving("m", "m@1")
        used = max(each.memory_mib for each in plane.workers())
        room_for_one_and_a_half = 10_100 - used - used // 2
        plane.add_model("big", TIMES.format(factor=7), memory_mib=room_for_one_and_a_half)
        await plane.apply("big", model="big")
        assert await plane.call("big") == 7.0
        await plane.wait(lambda: len(plane.workers()) == 2)
        assert await plane.call("m") == 2.0

    play(tmp_path, story, limit_mib=10_100)


def test_an_old_version_that_memory_forced_out_comes_back_if_the_new_one_does_not_load(
    tmp_path: Path,
):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2), memory_mib=10_000)
        await plane.apply("m", model="m")
        await plane.wait_ready("m")
        plane.add_model("m", BROKEN, memory_mib=10_000)
        await plane.apply("m", model="m@2")
        await plane.wait(lambda: plane.see("m").rollout.phase == "rolled_back", 30)
        await plane.wait_ready("m")
        assert await plane.call("m") == 2.0
        assert "no such weights" in plane.see("m").rollout.reason

    play(tmp_path, story, limit_mib=10_010)


# ------------------------------------------------------------------------------ shadows


def test_a_shadow_target_gets_copies_and_no_clients(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2))
        plane.add_model("m", TIMES.format(factor=3))
        targets = [Target(model="m@1"), Target(model="m@2", shadow=1.0)]
        await plane.apply("m", targets=targets)
        await plane.wait(lambda: len(plane.workers("ready")) == 2)
        await plane.controller.catch_up()
        assert {await plane.call("m") for _ in range(30)} == {2.0}

        def compared() -> int:
            loads = [each for each in plane.gateway.version_loads() if each.number == 2]
            return sum(each.differed for each in loads)

        for _ in range(20):
            await plane.call("m")
            await asyncio.sleep(0.05)
        await plane.wait(lambda: compared() > 5)
        assert plane.see("m").versions == {"m@1": 100}
        await plane.change("m", targets=targets[:1])
        await plane.wait(lambda: len(plane.workers()) == 1)

    play(tmp_path, story)


def test_a_shadow_that_does_not_load_harms_nobody(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2))
        plane.add_model("m", BROKEN)
        targets = [Target(model="m@1"), Target(model="m@2", shadow=1.0)]
        await plane.apply("m", targets=targets)
        await plane.wait_ready("m")
        await asyncio.sleep(1.0)
        assert plane.see("m").state == "ready"
        assert await plane.call("m") == 2.0

    play(tmp_path, story)


# ------------------------------------------------------------------------------ scale and memory


def test_more_work_gets_more_workers_and_none_of_them_is_ended_busy(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", SLEEPER)
        await plane.apply("m", model="m", replicas=Replicas(1, 3))
        await plane.wait_ready("m")
        callers = Callers(plane, count=6, value=0.3)
        begun = time.monotonic()
        await plane.wait(lambda: len(plane.workers()) > 1)
        print(f"a second worker was started after {time.monotonic() - begun:.1f} s")
        await plane.wait(lambda: len(plane.workers("ready")) == 3)
        await asyncio.sleep(1.0)
        await plane.change("m", replicas=Replicas(1, 1))
        await plane.wait(lambda: len(plane.workers()) == 1)
        await callers.stop()
        assert callers.failures == []

    play(tmp_path, story)


def test_many_requests_for_an_unloaded_model_load_it_once(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        marks = tmp_path / "loads"
        source = f"""
class Model:
    def load(self, folder):
        open({str(marks)!r}, "a").write("x")
    def predict(self, batch):
        return batch
"""
        plane.add_model("m", source)
        await plane.apply("m", model="m", replicas=Replicas(0, 3), idle_seconds=60.0)
        assert plane.see("m").state == "idle"
        answers = await asyncio.gather(*(plane.call("m", float(each)) for each in range(100)))
        assert answers == [float(each) for each in range(100)]
        assert marks.read_text() == "x"

    play(tmp_path, story, sandbox="off")  # it counts its loads in a file


def idle_pair(plane: ControlPlane) -> None:
    for name, factor in (("a", 2), ("b", 3)):
        plane.add_model(name, TIMES.format(factor=factor), memory_mib=10_000)


def test_an_idle_deployment_makes_room_and_says_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evict, "MIN_RESIDENCY_SECONDS", 0.0)

    async def story(plane: ControlPlane) -> None:
        idle_pair(plane)
        for name in ("a", "b"):
            await plane.apply(name, model=name, replicas=Replicas(0, 1))
        for _ in range(2):
            assert await plane.call("a") == 2.0
            assert await plane.call("b") == 3.0
            assert plane.see("a").state == "idle"
            assert "to make room for b" in plane.see("a").cause
        await plane.wait(lambda: any(each.what == "unloaded" for each in events(plane)))
        told = next(each for each in events(plane) if each.what == "unloaded")
        assert told.subject == "a"
        assert "to make room for b" in told.data["reason"]

    play(tmp_path, story, limit_mib=10_010)


def test_who_is_busy_or_pinned_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evict, "MIN_RESIDENCY_SECONDS", 0.0)

    async def story(plane: ControlPlane) -> None:
        plane.add_model("a", SLEEPER, memory_mib=10_000)
        plane.add_model("b", TIMES.format(factor=3), memory_mib=10_000)
        for name in ("a", "b"):
            await plane.apply(name, model=name, replicas=Replicas(0, 1))
        assert await plane.call("a", 0.0) == 0.0
        busy = asyncio.ensure_future(plane.call("a", 3.0))
        await asyncio.sleep(0.7)  # a load report later
        waiting = asyncio.ensure_future(plane.call("b"))
        await asyncio.sleep(0.5)
        assert [each.deployment for each in plane.workers()] == ["a"]
        assert "in use" in plane.see("b").cause
        assert await busy == 3.0, "it was not ended for the other"
        assert await waiting == 3.0, "it waited for its turn"
        await plane.change("b", pinned=True)
        with pytest.raises(errors.WherryError):
            await plane.call("a", 0.0, timeout_seconds=3.0)
        assert [each.deployment for each in plane.workers()] == ["b"]

    play(tmp_path, story, limit_mib=10_010)


def test_one_that_must_run_takes_the_room_of_an_idle_one_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evict, "MIN_RESIDENCY_SECONDS", 3.0)

    async def story(plane: ControlPlane) -> None:
        idle_pair(plane)
        await plane.apply("a", model="a", replicas=Replicas(0, 1))
        assert await plane.call("a") == 2.0
        begun = time.monotonic()
        await plane.apply("b", model="b")
        assert await plane.call("b") == 3.0
        assert time.monotonic() - begun > 1.5, "a had been loaded just before"

    play(tmp_path, story, limit_mib=10_010)
