"""Lines of batches wait until no live request would wait for them, and never for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.data_plane import DataPlane, decode, play, write_model

from wherry import errors

SLEEPER = """
import time
class Model:
    def predict(self, batch):
        time.sleep(sum(float(item["X"][0]) for item in batch))
        return batch
"""
SPARE = 24
"""Three quarters of what a worker with 64 credits runs at once."""


async def ask_in_background(plane: DataPlane, value: float, **changes: object) -> list[float]:
    inbound = plane.inbound(value, is_background=True, **changes)
    await plane.gateway.wait_for_spare_room(inbound)
    return decode(await plane.gateway.predict(inbound).answer())


def at_work(plane: DataPlane) -> list[bool]:
    """Of each request that workers have, whether it is a batch's."""
    return [
        exchange.track.is_background
        for link in plane.gateway._links()
        for exchange in link.outstanding.values()
    ]


def test_background_work_fills_three_quarters_of_an_idle_worker(tmp_path: Path):
    bundle = write_model(tmp_path / "model", SLEEPER)

    async def story(plane: DataPlane) -> None:
        plane.route(await plane.start_worker(bundle))
        await plane.wait_for_links(1)
        calls = [asyncio.create_task(ask_in_background(plane, 0.01)) for _ in range(60)]
        most = 0
        while not all(call.done() for call in calls):
            most = max(most, len(at_work(plane)))
            await asyncio.sleep(0.001)
        assert most == SPARE
        assert await asyncio.gather(*calls) == [[0.01]] * 60

    play(tmp_path, story)


def test_beside_live_requests_there_is_one_at_a_time(tmp_path: Path):
    bundle = write_model(tmp_path / "model", SLEEPER)

    async def story(plane: DataPlane) -> None:
        plane.route(await plane.start_worker(bundle))
        await plane.wait_for_links(1)
        live = [asyncio.create_task(plane.call(0.01)) for _ in range(10)]
        await asyncio.sleep(0)
        calls = [asyncio.create_task(ask_in_background(plane, 0.01)) for _ in range(40)]
        while not all(call.done() for call in live):
            found = at_work(plane)
            assert sum(found) <= 1 or all(found)
            await asyncio.sleep(0.001)
        assert await asyncio.gather(*calls) == [[0.01]] * 40, "nothing is left waiting"

    play(tmp_path, story)


def test_its_deadline_begins_when_it_is_sent(tmp_path: Path):
    bundle = write_model(tmp_path / "model", SLEEPER)

    async def story(plane: DataPlane) -> None:
        plane.route(state="idle")
        waiting = asyncio.create_task(ask_in_background(plane, 0.0, timeout_seconds=0.5))
        live = asyncio.create_task(plane.call(0.0, timeout_seconds=0.5))
        with pytest.raises(errors.TimedOut):
            await live
        assert not waiting.done()
        plane.route(await plane.start_worker(bundle))
        assert await waiting == [0.0]

    play(tmp_path, story)


def test_it_follows_the_deployment_to_another_version_or_to_its_end(tmp_path: Path):
    bundle = write_model(tmp_path / "model", SLEEPER)

    async def story(plane: DataPlane) -> None:
        plane.route(state="idle")
        first = asyncio.create_task(ask_in_background(plane, 0.0))
        await asyncio.sleep(0)
        plane.route(await plane.start_worker(bundle), number=2)
        assert await first == [0.0]
        plane.route(state="idle", number=3)
        second = asyncio.create_task(ask_in_background(plane, 0.0))
        await asyncio.sleep(0)
        plane.route(name="another")
        with pytest.raises(errors.ModelNotFound):
            await second

    play(tmp_path, story)


def test_a_turn_that_is_not_used_goes_to_the_next(tmp_path: Path):
    bundle = write_model(tmp_path / "model", SLEEPER)

    async def story(plane: DataPlane) -> None:
        plane.route(await plane.start_worker(bundle))
        await plane.wait_for_links(1)
        live = asyncio.create_task(plane.call(0.1))
        await asyncio.sleep(0)
        leaving = [asyncio.create_task(ask_in_background(plane, 0.0)) for _ in range(SPARE + 1)]
        staying = [asyncio.create_task(ask_in_background(plane, 0.0)) for _ in range(5)]
        await live
        for call in leaving:
            call.cancel()
        assert await asyncio.gather(*staying) == [[0.0]] * 5
        await asyncio.gather(*leaving, return_exceptions=True)

    play(tmp_path, story)
