"""Calls of pipelines in one gateway, with real workers: what they go by, hold and are refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.data_plane import PRINCIPAL, DataPlane, play, write_model
from tests.pipelines import step

from wherry import errors
from wherry.client.schema import Step
from wherry.control.placement.placement import WorkerHandle
from wherry.gateway.admit import Inbound
from wherry.gateway.pipeline import PipelineCall
from wherry.gateway.plan import make_plan
from wherry.gateway.route import DeploymentRoute

# It leaves marks in its folder, so it runs without a sandbox.
DOUBLE = """
import pathlib, time

class Model:
    "Doubles X; below zero it waits until somebody opens the gate; 1000 has a long answer."

    def load(self, folder):
        self.folder = pathlib.Path(folder)

    def predict(self, batch):
        for item in batch:
            if item["X"][0] < 0:
                (self.folder / "begun").touch()
                while not (self.folder / "gate").exists():
                    time.sleep(0.01)
        return [self.double(item["X"]) for item in batch]

    def double(self, x):
        return {"X": (x * 2).repeat(100_000 if x[0] == 1000 else 1)}
"""


def pipeline(name: str, *steps: Step, answer: Any = None, **fields: Any) -> DeploymentRoute:
    return DeploymentRoute(
        team_id="team-1", team="default", name=name, state="ready", cause="",
        retry_after_seconds=1.0, created_at=0.0, versions=(), steps=steps, answer=answer, **fields,
    )  # fmt: skip


def begin(plane: DataPlane, name: str, body: Any, number: str = "call") -> PipelineCall:
    route = plane.gateway.routes.find("team-1", "default", name)
    assert route is not None
    inbound = Inbound(
        door="predict",
        request_id=number,
        principal=PRINCIPAL,
        deployment=name,
        codec="predict",
        body=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    return PipelineCall(plane.gateway, make_plan(plane.gateway.routes, PRINCIPAL, route), inbound)


async def ask(plane: DataPlane, name: str, body: Any) -> Any:
    return json.loads(await begin(plane, name, body).answer())


async def start_model(plane: DataPlane, bundle: Path) -> WorkerHandle:
    return await plane.start_worker(write_model(bundle, DOUBLE), sandbox="off")


async def until_exists(mark: Path) -> None:
    async with asyncio.timeout(30):
        while not mark.exists():
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------------------ definitions


def test_a_call_keeps_the_definitions_of_all_pipelines_it_began_with(tmp_path: Path):
    outer = pipeline(
        "outer",
        step("wait", "model", {"X": "$request.X"}),
        step("then", "inner", {"X": "$wait.X"}),
        answer={"X": "$then.X"},
    )
    once = pipeline("inner", step("a", "model", {"X": "$request.X"}))
    twice = pipeline(
        "inner",
        step("first", "model", {"X": "$request.X"}),
        step("second", "model", {"X": "$first.X"}),
    )

    async def story(plane: DataPlane) -> None:
        bundle = tmp_path / "bundle"
        worker = await start_model(plane, bundle)
        plane.route(worker, beside=[outer, once])
        call = begin(plane, "outer", {"X": [-1.0]})
        answer = asyncio.ensure_future(call.answer())
        await until_exists(bundle / "begun")
        plane.route(worker, beside=[outer, twice])
        (bundle / "gate").touch()
        assert json.loads(await answer) == {"X": [-4.0]}
        assert [run.name for run in call.runs] == ["wait", "then.a"]
        assert await ask(plane, "outer", {"X": [-1.0]}) == {"X": [-8.0]}

    play(tmp_path, story)


def test_a_pipeline_that_is_removed_while_it_is_called_still_answers(tmp_path: Path):
    outer = pipeline(
        "outer", step("wait", "model", "$request"), step("then", "inner", {"X": "$wait.X"})
    )
    inner = pipeline("inner", step("a", "model", "$request"))

    async def story(plane: DataPlane) -> None:
        bundle = tmp_path / "bundle"
        worker = await start_model(plane, bundle)
        plane.route(worker, beside=[outer, inner])
        answer = asyncio.ensure_future(ask(plane, "outer", {"X": [-1.0]}))
        await until_exists(bundle / "begun")
        plane.route(worker)
        (bundle / "gate").touch()
        assert await answer == {"X": [-4.0]}

    play(tmp_path, story)


def test_a_step_below_that_is_not_there_is_named_before_anything_runs(tmp_path: Path):
    outer = pipeline("outer", step("first", "model", "$request"), step("in", "inner", "$request"))
    inner = pipeline("inner", step("a", "nobody", "$request"))

    async def story(plane: DataPlane) -> None:
        plane.route(await start_model(plane, tmp_path / "bundle"), beside=[outer, inner])
        with pytest.raises(errors.ModelNotFound, match="step 'in': step 'a': no deployment"):
            begin(plane, "outer", {"X": [1.0]})
        assert await plane.records() == []

    play(tmp_path, story)


# ------------------------------------------------------------------------------ bounds


def test_all_calls_of_the_pipelines_below_are_counted_together(tmp_path: Path):
    """Of deployments, also when these are pipelines that call no model."""
    outer = pipeline("outer", step("many", "middle", "$request", each="$request.outer"))
    middle = pipeline("middle", step("more", "inner", "$request", each="$request.middle"))
    inner = pipeline("inner", step("none", "model", "$request", each="$request.inner"))

    async def story(plane: DataPlane) -> None:
        plane.route(beside=[outer, middle, inner])
        body = {"outer": [0] * 64, "middle": [0] * 31, "inner": []}
        assert await ask(plane, "outer", body) == [[[]] * 31] * 64  # 64 + 64 * 31 = 2048
        with pytest.raises(errors.TooLarge, match=r"step 'many'.* more than 2048 calls"):
            await ask(plane, "outer", body | {"middle": [0] * 32})
        assert {record.deployment for record in await plane.records()} == {"outer"}

    play(tmp_path, story)


ANSWER_BYTES = len(json.dumps({"X": [2000.0] * 100_000}, separators=(",", ":")))


def long_answers(count: int) -> DeploymentRoute:
    steps = [step(f"s{number}", "model", {"X": [1000.0]}) for number in range(count)]
    return pipeline("long", *steps, answer={"done": True})


def test_answers_that_can_never_fit_are_too_large_and_all_are_freed_at_the_end(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        worker = await start_model(plane, tmp_path / "bundle")
        plane.route(worker, beside=[long_answers(3)])
        assert await ask(plane, "long", {}) == {"done": True}
        assert plane.gateway.guard.held_bytes == 0
        plane.route(worker, beside=[long_answers(4)])
        with pytest.raises(errors.TooLarge, match=r"step 's.': the answers of the steps have more"):
            await ask(plane, "long", {})
        assert plane.gateway.guard.held_bytes == 0
        assert plane.gateway.guard.running() == {}

    play(tmp_path, story, max_in_flight_bytes=4 * ANSWER_BYTES - 1)


def test_while_a_call_holds_answers_others_find_that_much_less_room(tmp_path: Path):
    after = {"X": "$request.X", "after": "$long.nothing?"}
    waits = pipeline("waits", step("long", "model", {"X": [1000.0]}), step("wait", "model", after))
    inner = pipeline("inner", step("in", "waits", "$request"))

    async def story(plane: DataPlane) -> None:
        bundle = tmp_path / "bundle"
        workers = [await start_model(plane, bundle) for _ in range(2)]  # the gate holds one of them
        plane.route(*workers, beside=[waits, inner, long_answers(1)])
        assert await ask(plane, "long", {}) == {"done": True}
        held = asyncio.ensure_future(ask(plane, "inner", {"X": [-1.0]}))
        await until_exists(bundle / "begun")
        assert plane.gateway.guard.held_bytes > ANSWER_BYTES
        with pytest.raises(errors.Overloaded, match="step 's0': requests in flight hold"):
            await ask(plane, "long", {})
        with pytest.raises(errors.Overloaded, match="requests in flight hold"):
            await plane.call([1.0] * 200_000)
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        assert plane.gateway.guard.held_bytes == 0
        (bundle / "gate").touch()
        assert await ask(plane, "long", {}) == {"done": True}

    play(tmp_path, story, max_in_flight_bytes=2 * ANSWER_BYTES - 1)
