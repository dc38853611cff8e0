"""What runs follows what should run, through failures, changes of mind and lost lines."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from tests.control.control_plane import ControlPlane, play

from wherry import errors
from wherry.client.schema import Replicas, Target
from wherry.control import hub as hub_module
from wherry.control import replicas as replicas_module
from wherry.frames import Connection, Kind
from wherry.gateway.uplink import Join

TIMES = """
class Model:
    def predict(self, batch):
        return [{{"X": item["X"] * {factor}}} for item in batch]
"""
BROKEN = """
class Model:
    def load(self, folder):
        raise OSError("no such weights")
    def predict(self, batch):
        return batch
"""
SLEEPER = """
import time
class Model:
    def predict(self, batch):
        time.sleep(max(float(item["X"][0]) for item in batch))
        return batch
"""
SLOW_TO_LOAD = """
import time
class Model:
    def load(self, folder):
        time.sleep({seconds})
    def predict(self, batch):
        return [{{"X": item["X"] * {factor}}} for item in batch]
"""


async def roll_out(plane: ControlPlane, first: str, second: str, **fields) -> None:
    """Version 1 ready behind the alias `live`, version 2 just chosen by it."""
    plane.add_model("m", first)
    plane.registry.set_alias(plane.team, "m", "live", 1)
    await plane.apply("m", model="m@live", **fields)
    await plane.wait_ready("m", fields["replicas"].min if "replicas" in fields else 1)
    plane.add_model("m", second)
    plane.registry.set_alias(plane.team, "m", "live", 2)
    await plane.controller.settle()


def test_a_version_that_does_not_load_leaves_the_old_one_serving(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        await roll_out(plane, TIMES.format(factor=2), BROKEN)
        await plane.wait(lambda: plane.see("m").state == "degraded")
        assert "no such weights" in plane.see("m").cause
        assert plane.see("m").remedy
        assert await plane.call("m") == 2.0
        plane.registry.set_alias(plane.team, "m", "live", 1)
        await plane.controller.settle()
        await plane.wait_ready("m")
        await plane.wait(lambda: len(plane.workers()) == 1)

    play(tmp_path, story)


def test_an_alias_that_is_gone_leaves_what_runs_serving(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2))
        plane.registry.set_alias(plane.team, "m", "live", 1)
        await plane.apply("m", model="m@live")
        await plane.wait_ready("m")
        plane.registry.remove_alias(plane.team, "m", "live")
        await plane.controller.settle()
        assert plane.see("m").state == "degraded"
        assert "live" in plane.see("m").cause
        assert await plane.call("m") == 2.0
        (worker,) = plane.workers()
        os.kill(worker.pid, signal.SIGKILL)
        assert await plane.call("m") == 2.0

    play(tmp_path, story)


def test_a_worker_more_than_memory_allows_does_not_end_the_others(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2), memory_mib=10_000)
        await plane.apply("m", model="m", replicas=Replicas(2, 2))
        await plane.wait(lambda: plane.see("m").state == "degraded")
        assert "does not fit" in plane.see("m").cause
        await plane.controller.catch_up()
        assert await plane.call("m") == 2.0
        await plane.change("m", replicas=Replicas(1, 1))
        assert plane.see("m").state == "ready", "the cause is gone"

    play(tmp_path, story, limit_mib=10_010)


def test_what_did_not_fit_runs_when_there_is_room_again(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        for name in ("big", "late"):
            plane.add_model(name, TIMES.format(factor=2), memory_mib=10_000)
        await plane.apply("big", model="big")
        await plane.wait_ready("big")
        await plane.apply("late", model="late", replicas=Replicas(0, 1), idle_seconds=0.4)
        with pytest.raises(errors.NotReady):
            await plane.call("late")
        assert "does not fit" in plane.see("late").cause
        await asyncio.sleep(1.0)
        await plane.change("big", stopped=True)
        await plane.wait(lambda: not plane.workers())
        assert await plane.call("late") == 2.0

    play(tmp_path, story, limit_mib=10_010)


def test_a_start_waits_for_the_memory_of_workers_that_are_ending(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", SLEEPER, memory_mib=10_000)
        await plane.apply("m", model="m")
        await plane.wait_ready("m")
        last = asyncio.ensure_future(plane.call("m", 1.5))
        await asyncio.sleep(0.1)
        await plane.change("m", stopped=True)
        await plane.change("m", stopped=False)
        assert plane.see("m").state == "starting"
        assert await plane.call("m", 0.0) == 0.0
        assert await last == 1.5

    play(tmp_path, story, limit_mib=10_010)


def test_where_memory_allows_one_version_only_requests_wait_for_the_new_one(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2), memory_mib=10_000)
        await plane.apply("m", model="m")
        await plane.wait_ready("m")
        plane.add_model("m", TIMES.format(factor=3), memory_mib=10_000)
        await plane.apply("m", model="m@2")
        deadline = time.monotonic() + 15
        answers = [await plane.call("m")]
        while answers[-1] != 3.0 and time.monotonic() < deadline:
            answers.append(await plane.call("m"))
        assert set(answers) <= {2.0, 3.0}
        assert answers[-1] == 3.0

    play(tmp_path, story, limit_mib=10_010)


def test_scaling_down_keeps_the_workers_that_are_ready(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", SLOW_TO_LOAD.format(seconds=1, factor=2))
        await plane.apply("m", model="m", replicas=Replicas(2, 2))
        await plane.wait_ready("m", 2)
        first, second = plane.workers()
        os.kill(first.pid, signal.SIGKILL)
        await plane.wait(lambda: bool(plane.workers("starting")))
        await plane.change("m", replicas=Replicas(1, 1))
        assert [each.pid for each in plane.workers("ready")] == [second.pid]
        assert await plane.call("m", timeout_seconds=0.8) == 2.0

    play(tmp_path, story)


def test_a_worker_that_was_never_routed_is_removed_all_the_same(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("old", TIMES.format(factor=2))
        plane.add_model("quick", TIMES.format(factor=3))
        plane.add_model("slow", SLOW_TO_LOAD.format(seconds=30, factor=4))
        await plane.apply("m", model="old")
        await plane.wait_ready("m")
        await plane.apply("m", targets=[Target(model="quick"), Target(model="slow")])
        await plane.wait(lambda: len(plane.workers("ready")) == 2)
        await plane.apply("m", model="old")
        await plane.wait(lambda: len(plane.workers()) == 1, 5)
        assert await plane.call("m") == 2.0

    play(tmp_path, story)


def test_traffic_stays_until_the_new_version_can_carry_all_of_it(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        turns = tmp_path / "turns"
        staggered = f"""
import os, time
class Model:
    def load(self, folder):
        with open({str(turns)!r}, "a") as file:
            file.write("x")
            file.flush()
            time.sleep(2.0 * (os.fstat(file.fileno()).st_size - 1))
    def predict(self, batch):
        return [{{"X": item["X"] * 3}} for item in batch]
"""
        await roll_out(plane, TIMES.format(factor=2), staggered, replicas=Replicas(2, 2))
        await plane.wait(lambda: len(plane.workers("ready")) == 3)
        await plane.controller.settle()
        assert await plane.call("m") == 2.0
        await plane.wait(lambda: {each.version for each in plane.workers()} == {2})
        assert await plane.call("m") == 3.0

    play(tmp_path, story, sandbox="off")  # the workers tell each other their turns by a file


def test_a_worker_is_replaced_while_the_database_is_away(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2))
        await plane.apply("m", model="m")
        await plane.wait_ready("m")
        plane.database.is_away = True
        (worker,) = plane.workers()
        os.kill(worker.pid, signal.SIGKILL)
        assert await plane.call("m") == 2.0
        plane.database.is_away = False

    play(tmp_path, story)


def test_a_stopped_deployment_without_its_model_is_still_listed(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2))
        plane.deployments.apply(plane.team, [])
        await plane.apply("m", model="m", stopped=True)
        plane.registry.remove_version(plane.team, "m", 1)
        await plane.controller.settle()
        assert plane.see("m").state == "stopped"

    plane_of_a_restart = tmp_path
    play(plane_of_a_restart, story)

    async def after_restart(plane: ControlPlane) -> None:
        await plane.controller.settle()
        await plane.controller.settle()
        assert plane.see("m").state == "stopped"

    play(plane_of_a_restart, after_restart)


def test_a_worker_that_was_frozen_with_us_is_not_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2))
        await plane.apply("m", model="m")
        await plane.wait_ready("m")
        (worker,) = plane.workers()
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(5.0)
        for _ in range(20):  # the worker wakes up later than we do
            await asyncio.sleep(0.05)
        os.kill(worker.pid, signal.SIGCONT)
        await asyncio.sleep(1.5)
        assert [each.pid for each in plane.workers()] == [worker.pid]

    monkeypatch.setattr(replicas_module, "SILENT_SECONDS", 4.0)
    play(tmp_path, story)


def test_a_worker_that_hangs_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2))
        await plane.apply("m", model="m")
        await plane.wait_ready("m")
        (worker,) = plane.workers()
        os.kill(worker.pid, signal.SIGSTOP)
        assert await plane.call("m") == 2.0
        assert plane.workers()[0].pid != worker.pid

    monkeypatch.setattr(replicas_module, "SILENT_SECONDS", 2.0)
    play(tmp_path, story)


async def join(plane: ControlPlane, name: str, acknowledge: int) -> Connection:
    """A gateway's line that acknowledges so many snapshots, then does nothing more."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connected, str(plane.address))
    left = acknowledge

    def on_frame(frame) -> None:
        nonlocal left
        if frame.kind == Kind.SNAPSHOT and left > 0:
            left -= 1
            connection.send(Kind.ACK, header=10_000 if left else 1)

    connection = Connection(connected, on_frame, lambda: None)
    connection.send(Kind.JOIN, header=Join(name, 4_000_000))
    return connection


def test_a_drain_waits_for_every_gateway_but_not_for_dead_ones(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2))
        await plane.apply("m", model="m")
        await plane.wait_ready("m")
        late = await join(plane, "late", 1)
        await asyncio.sleep(0.1)
        plane.deployments.change(plane.team, "m", stopped=True)
        plane.controller.nudge()
        await asyncio.sleep(1.0)
        assert [each.state for each in plane.workers()] == ["draining"]
        late.close()
        await plane.wait(lambda: not plane.workers(), 3)
        assert plane.hung == []

    play(tmp_path, story)


def test_a_gateway_that_hangs_is_told_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2))
        await plane.apply("m", model="m")
        await plane.wait_ready("m")
        await join(plane, "hung", 1)
        await plane.change("m", stopped=True)
        await plane.wait(lambda: not plane.workers(), 8)
        assert plane.hung == [4_000_000]

    monkeypatch.setattr(hub_module, "SILENT_SECONDS", 2.0)
    play(tmp_path, story)


def test_a_gateway_whose_line_breaks_comes_back_by_itself(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2))
        await plane.apply("m", model="m", replicas=Replicas(0, 1), idle_seconds=60.0)
        for _ in range(2):
            for line in list(plane.hub.lines):
                line.connection.close()
            assert await plane.call("m") == 2.0
        await plane.wait(lambda: len(plane.hub.lines) == 1)

    play(tmp_path, story)


def test_a_model_that_is_unloaded_while_it_is_called_answers_every_call(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", TIMES.format(factor=2))
        await plane.apply("m", model="m", replicas=Replicas(0, 1), idle_seconds=0.2)
        for number in range(8):
            assert await plane.call("m", timeout_seconds=10.0) == 2.0
            await asyncio.sleep(0.3 + 0.07 * number)
        await plane.wait(lambda: plane.see("m").state == "idle" and not plane.workers())

    play(tmp_path, story)


def test_stopping_does_not_wait_for_a_load(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", SLOW_TO_LOAD.format(seconds=60, factor=2))
        await plane.apply("m", model="m")
        await plane.wait(lambda: bool(plane.workers()))
        await asyncio.sleep(1.0)
        await plane.change("m", stopped=True)
        await plane.wait(lambda: not plane.workers(), 3)
        assert plane.see("m").state == "stopped"

    play(tmp_path, story)


def test_a_deployment_deleted_and_made_again_serves_the_new_one(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", SLEEPER)
        plane.add_model("n", TIMES.format(factor=3))
        await plane.apply("m", model="m")
        await plane.wait_ready("m")
        last = asyncio.ensure_future(plane.call("m", 1.0))
        await asyncio.sleep(0.1)
        plane.deployments.remove(plane.team, "m")
        await plane.controller.settle()
        with pytest.raises(errors.ModelNotFound):
            await plane.call("m")
        await plane.apply("m", model="n")
        assert await plane.call("m") == 3.0
        assert await last == 1.0
        await plane.wait(lambda: len(plane.workers()) == 1)
        plane.deployments.remove(plane.team, "m")
        await plane.controller.settle()
        await plane.wait(lambda: not plane.workers())
        assert plane.controller.describe(plane.team) == []

    play(tmp_path, story)


def test_changes_under_load_lose_no_request(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        await roll_out(plane, TIMES.format(factor=2), TIMES.format(factor=3))
        is_over = False
        answers: list[float] = []

        async def call_on() -> None:
            while not is_over:
                answers.append(await plane.call("m"))

        callers = [asyncio.ensure_future(call_on()) for _ in range(8)]
        await plane.change("m", replicas=Replicas(2, 2))
        await plane.wait(lambda: [each.version for each in plane.workers()] == [2, 2])
        await asyncio.sleep(0.3)
        await plane.change("m", replicas=Replicas(1, 1))
        plane.registry.set_alias(plane.team, "m", "live", 1)
        await plane.controller.settle()
        await asyncio.sleep(1.0)
        for worker in plane.workers("ready"):
            os.kill(worker.pid, signal.SIGKILL)
        await asyncio.sleep(1.0)
        is_over = True
        await asyncio.gather(*callers)
        assert set(answers) == {2.0, 3.0}
        assert len(answers) > 100

    play(tmp_path, story)


STRANGER = """
import socket, sys
from wherry import frames
from wherry.gateway.uplink import Join
connected = socket.socket(socket.AF_UNIX)
connected.connect(sys.argv[1])
try:
    connected.sendall(frames.pack(frames.Kind.JOIN, 0, Join("gateway 7", 1)))
    heard = connected.recv(4096)
except OSError:
    heard = b""
print("told", len(heard), "bytes")
"""


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the kernel does not tell who calls")
def test_a_process_that_is_no_gateway_is_told_nothing(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        await plane.wait(lambda: bool(plane.hub.lines))
        stranger = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STRANGER, str(plane.address), stdout=asyncio.subprocess.PIPE
        )
        said, _ = await stranger.communicate()
        assert said == b"told 0 bytes\n"
        assert [line.name for line in plane.hub.lines] == ["gateway 0"]

    play(tmp_path, story)
