"""What a gateway makes of a worker's death: who is repeated, who is refused, who is not guilty."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.data_plane import PRINCIPAL, DataPlane, play, write_model
from tests.gateway.test_predict import SLOW

from wherry import errors
from wherry.gateway import link as link_module
from wherry.gateway import quarantine as quarantine_module
from wherry.gateway import queue as queue_module

FRAGILE = """
import os, time
class Model:
    def predict(self, batch):
        time.sleep(0.1)
        for item in batch:
            value = float(item["X"][0])
            if value < 0:
                os.abort()
            if value > 1000:
                time.sleep(60)
        return [{"X": item["X"]} for item in batch]
"""


def tell_crashes(plane: DataPlane) -> asyncio.Task[None]:
    """Play the controller, which tells gateways how workers ended."""

    async def tell() -> None:
        told = 0
        while True:
            for event in plane.events[told:]:
                if event.kind == "exited":
                    plane.gateway.deaths.note(event.id, event.status != -signal.SIGKILL)
            told = len(plane.events)
            await asyncio.sleep(0.01)

    return asyncio.get_running_loop().create_task(tell())


def test_what_kills_two_workers_is_refused_and_its_batch_mates_are_answered(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", FRAGILE)
        workers = [await plane.start_worker(bundle) for _ in range(3)]
        plane.route(workers[0])
        await plane.wait_for_links(1)
        telling = tell_crashes(plane)
        first = asyncio.ensure_future(plane.call(1.0))
        await asyncio.sleep(0.05)  # the worker is busy: what comes now is batched together
        calls = [
            asyncio.ensure_future(plane.call(value))
            for value in (10.0, 11.0, 12.0, -1.0, 13.0, 14.0, 15.0)
        ]
        await asyncio.sleep(0)
        plane.route(*workers)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results[3], errors.Quarantined)
        assert [each for each in results if isinstance(each, list)] == [
            [value] for value in (10.0, 11.0, 12.0, 13.0, 14.0, 15.0)
        ]
        assert await first == [1.0]
        with pytest.raises(errors.Quarantined, match="refused"):
            await plane.call(-1.0)
        assert await plane.call(-0.0) == [0.0], "only this input is refused"
        ended = [event for event in plane.events if event.kind == "exited"]
        assert len(ended) == 2
        telling.cancel()

    play(tmp_path, story)


def test_workers_killed_from_outside_prove_nothing_against_a_request(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", FRAGILE)
        telling = tell_crashes(plane)
        workers = [await plane.start_worker(bundle) for _ in range(4)]
        plane.route(workers[0])
        await plane.wait_for_links(1)
        call = asyncio.ensure_future(plane.call(5.0))
        for dying, following in itertools.pairwise(workers):
            await asyncio.sleep(0.05)
            plane.route(dying, following)
            os.kill(dying.pid, signal.SIGKILL)
            await plane.wait_for(dying, "exited")
            plane.route(following)
        assert await call == [5.0]
        assert plane.gateway.quarantine.banned == {}
        telling.cancel()

    play(tmp_path, story)


def test_a_death_that_nobody_explains_counts_as_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quarantine_module, "VERDICT_SECONDS", 0.1)

    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", FRAGILE)
        plane.route(*[await plane.start_worker(bundle) for _ in range(2)])
        await plane.wait_for_links(2)
        with pytest.raises(errors.Quarantined):
            await plane.call(-1.0)

    play(tmp_path, story)


def test_what_may_not_be_repeated_is_refused_when_it_killed_a_second_worker(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", FRAGILE, idempotent=False)
        telling = tell_crashes(plane)
        plane.route(*[await plane.start_worker(bundle) for _ in range(3)], idempotent=False)
        await plane.wait_for_links(3)
        for _ in range(2):
            with pytest.raises(errors.WorkerLost):
                await plane.call(-1.0)
            await asyncio.sleep(0.2)
        with pytest.raises(errors.Quarantined):
            await plane.call(-1.0)
        assert await plane.call(1.0) == [1.0]
        telling.cancel()

    play(tmp_path, story)


def test_a_quarantine_ends_and_is_bounded(monkeypatch: pytest.MonkeyPatch):
    quarantine = quarantine_module.Quarantine()
    told: list[bytes] = []
    quarantine.tell_others = told.append
    for number in range(quarantine_module.MAX_BANS + 50):
        quarantine.ban(number.to_bytes(4, "big"))
    assert len(quarantine.banned) == quarantine_module.MAX_BANS
    assert (0).to_bytes(4, "big") not in quarantine.banned, "the oldest goes first"
    assert len(told) == quarantine_module.MAX_BANS + 50
    for number in range(quarantine_module.MAX_ACCUSED + 50):
        quarantine.accuse(number.to_bytes(5, "big"))
    assert len(quarantine._accused) == quarantine_module.MAX_ACCUSED


def test_a_hung_worker_is_told_when_a_request_is_late_and_runs_much_longer_than_usual(
    tmp_path: Path,
):
    async def story(plane: DataPlane) -> None:
        told: list[tuple[str, str]] = []
        plane.gateway.tell_hung = lambda worker, why: told.append((worker, why))
        bundle = write_model(tmp_path / "bundle", FRAGILE)
        worker = await plane.start_worker(bundle)
        plane.route(worker)
        await plane.call(1.0)
        with pytest.raises(errors.TimedOut):
            await plane.call(2000.0, timeout_seconds=0.5)
        assert told == [], "a caller that waits shorter than the model runs gets no worker killed"
        await asyncio.sleep(2.2)
        assert told
        assert told[0][0] == worker.id
        assert "beyond its deadline" in told[0][1]

    play(tmp_path, story)


def test_a_stopped_worker_is_told_when_it_is_silent_with_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(link_module, "SILENT_SECONDS", 1.5)
    monkeypatch.setattr(queue_module, "MIN_HANG_SECONDS", 0.5)

    async def story(plane: DataPlane) -> None:
        told: list[str] = []
        plane.gateway.tell_hung = lambda worker, why: told.append(why)
        bundle = write_model(tmp_path / "bundle", FRAGILE)
        worker = await plane.start_worker(bundle)
        plane.route(worker)
        await plane.call(1.0)
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(2.5)
            assert told == [], "it has nothing to do"
            late = asyncio.ensure_future(plane.call(1.0, timeout_seconds=10.0))
            await asyncio.sleep(1.0)
            assert "said nothing" in told[0]
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        assert await late == [1.0]

    play(tmp_path, story)


def test_keys_take_turns(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", SLOW, idempotent=False)
        worker = await plane.start_worker(bundle)
        quiet = msgspec.structs.replace(PRINCIPAL, key_id="quiet")
        ended: list[str] = []

        async def call(principal: Any, value: float) -> None:
            await plane.call(value, principal=principal, timeout_seconds=100.0)
            ended.append(principal.key_id)

        plane.route(state="starting")
        flood = [asyncio.ensure_future(call(PRINCIPAL, 0.01)) for _ in range(300)]
        await asyncio.sleep(0.1)
        calls = [asyncio.ensure_future(call(quiet, 0.01)) for _ in range(5)]
        await asyncio.sleep(0.1)
        plane.route(worker, idempotent=False)
        await asyncio.gather(*calls)
        assert ended.count("key-1") < 80, "they did not wait for all that was there before"
        for task in flood:
            task.cancel()
        plane.gateway.close()
        await asyncio.gather(*flood, return_exceptions=True)

    play(tmp_path, story)


def test_a_key_that_floods_is_refused_and_another_is_not(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        plane.route(state="starting")
        (queue,) = plane.gateway._queues.values()
        queue._seconds_per_answer = 0.1  # learned before
        refused = 0
        exchanges = []
        for _ in range(50):
            exchange = plane.gateway.predict(plane.inbound(1.0, timeout_seconds=2.0))
            exchanges.append(exchange)
            refused += exchange.is_done
        assert 25 <= refused <= 35, "two seconds of work are taken"
        quiet = msgspec.structs.replace(PRINCIPAL, key_id="quiet")
        for _ in range(5):
            exchange = plane.gateway.predict(
                plane.inbound(1.0, principal=quiet, timeout_seconds=2.0)
            )
            assert not exchange.is_done
        begun = time.monotonic()
        plane.gateway.close()
        assert time.monotonic() - begun < 5.0

    play(tmp_path, story)
