"""What the controller makes of a worker's end: a crash, or a kill from outside."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.control.control_plane import ControlPlane, play

from wherry.control.rollout import FREE_CRASHES

FRAGILE = """
import os
class Model:
    def predict(self, batch):
        for item in batch:
            if item["X"][0] < 0:
                os.abort()
        return batch
"""


def test_kills_from_outside_are_no_crashes_and_never_delay_the_next_worker(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", FRAGILE)
        await plane.apply("m", model="m")
        for _ in range(FREE_CRASHES + 2):
            await plane.wait_ready("m")
            (worker,) = plane.workers()
            os.kill(worker.pid, signal.SIGKILL)
            told = plane.gateway.deaths._told
            await plane.wait(lambda told=told, worker=worker: worker.id in told)
            assert told[worker.id] is False
        await plane.wait_ready("m")
        (running,) = plane.controller._running.values()
        assert [each.not_before for each in running.failures.values()] in ([], [0.0])

    play(tmp_path, story)


def test_a_crash_is_told_as_one_and_leaves_the_deployment_ready(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", FRAGILE)
        await plane.apply("m", model="m")
        await plane.wait_ready("m")
        (worker,) = plane.workers()
        os.kill(worker.pid, signal.SIGSEGV)
        told = plane.gateway.deaths._told
        await plane.wait(lambda: worker.id in told)
        assert told[worker.id] is True
        await plane.wait_ready("m")

    play(tmp_path, story)


def test_a_worker_that_a_gateway_waits_for_in_vain_is_replaced(tmp_path: Path):
    async def story(plane: ControlPlane) -> None:
        plane.add_model("m", FRAGILE)
        await plane.apply("m", model="m")
        await plane.wait_ready("m")
        (worker,) = plane.workers()
        plane.uplink.tell_hung(worker.id, "a test says so")
        await plane.wait(lambda: worker.id in plane.gateway.deaths._told)
        assert plane.gateway.deaths._told[worker.id] is True, "its requests may be the cause"
        await plane.wait_ready("m")
        assert plane.workers()[0].id != worker.id

    play(tmp_path, story)
