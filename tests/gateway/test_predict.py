"""One request's path, with real worker processes: answers, deaths, deadlines, records."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.data_plane import DataPlane, limited, play, write_model

from wherry import errors

ECHO = """
class Model:
    def predict(self, batch):
        return [{"X": item["X"] * 2} for item in batch]
"""
SLOW = """
import time
class Model:
    def predict(self, batch):
        time.sleep(max(float(item["X"][0]) for item in batch))
        return batch
"""
# it leaves marks in its folder, so it runs without a sandbox
DEADLY = """
import os, pathlib, time
class Model:
    def load(self, folder):
        self.marks = pathlib.Path(folder)
    def predict(self, batch):
        for item in batch:
            name = "ran-%d" % int(item["X"][0])
            with open(self.marks / name, "a") as file:
                file.write("x")
            if int(item["X"][0]) == 13 and (self.marks / name).stat().st_size == 1:
                os.kill(os.getpid(), 9)
        return batch
"""
FAULTY = """
from wherry.errors import InvalidInput
class Model:
    def predict(self, batch):
        for item in batch:
            if item["X"][0] == 13:
                raise KeyError("secret-of-the-model")
            if item["X"][0] == 14:
                raise InvalidInput("fourteen is not allowed")
        return batch
"""


def test_every_caller_gets_its_own_answer_and_every_request_one_record(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", ECHO)
        plane.route(await plane.start_worker(bundle), await plane.start_worker(bundle))
        values = [float(each) for each in range(300)]
        answers = await asyncio.gather(*(plane.call(value) for value in values))
        assert [answer[0] for answer in answers] == [value * 2 for value in values]
        records = await plane.records()
        assert len(records) == 300
        assert len({record.request_id for record in records}) == 300
        assert {record.status for record in records} == {200}
        assert all(record.rows >= 1 and record.total_ms > 0 for record in records)

    play(tmp_path, story)


def test_a_killed_worker_is_invisible_to_idempotent_calls(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", SLOW)
        first, second = [await plane.start_worker(bundle) for _ in range(2)]
        plane.route(first, second)
        await plane.wait_for_links(2)
        calls = [asyncio.ensure_future(plane.call(0.4)) for _ in range(40)]
        await asyncio.sleep(0.1)
        os.kill(first.pid, signal.SIGKILL)
        answers = await asyncio.gather(*calls)
        assert answers == [[0.4]] * 40
        records = await plane.records()
        assert Counter(record.status for record in records) == {200: 40}
        assert max(record.attempts for record in records) == 2

    play(tmp_path, story)


def test_a_call_that_may_run_once_only_is_not_repeated(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", DEADLY, idempotent=False)
        first, second = [await plane.start_worker(bundle, sandbox="off") for _ in range(2)]
        plane.route(first, second, idempotent=False)
        with pytest.raises(errors.WorkerLost):
            await plane.call(13.0)
        assert (bundle / "ran-13").read_text() == "x"
        assert await plane.call(1.0) == [1.0]
        records = await plane.records()
        assert sorted(record.code for record in records) == ["", "worker_lost"]

    play(tmp_path, story)


def test_an_idempotent_call_whose_worker_died_runs_once_more(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", DEADLY)
        plane.route(
            await plane.start_worker(bundle, sandbox="off"),
            await plane.start_worker(bundle, sandbox="off"),
        )
        assert await plane.call(13.0) == [13.0]
        assert (bundle / "ran-13").read_text() == "xx"

    play(tmp_path, story)


def test_a_deadline_ends_the_wait_and_the_worker_stays(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        plane.route(await plane.start_worker(write_model(tmp_path / "bundle", SLOW)))
        begun = time.monotonic()
        with pytest.raises(errors.TimedOut):
            await plane.call(1.0, timeout_seconds=0.2)
        assert time.monotonic() - begun < 1.0
        assert await plane.call(0.0) == [0.0]
        assert [record.code for record in await plane.records()] == ["timed_out", ""]

    play(tmp_path, story)


def test_each_deadline_is_kept_whatever_others_are_watched(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        plane.route(await plane.start_worker(write_model(tmp_path / "bundle", SLOW)))
        begun = time.monotonic()

        async def seconds_until_out_of_time(timeout: float) -> float:
            with pytest.raises(errors.TimedOut):
                await plane.call(2.0, timeout_seconds=timeout)
            return time.monotonic() - begun

        assert await plane.call(0.0, timeout_seconds=0.1) == [0.0]
        begun = time.monotonic()
        # later ones first: what is due earlier must not wait for them, nor they for a newer one
        timeouts = [30.0, 0.6, 0.9, 0.3]
        waits = [asyncio.ensure_future(seconds_until_out_of_time(each)) for each in timeouts]
        for wait, timeout in zip(waits[1:], timeouts[1:], strict=True):
            assert timeout <= await wait < timeout + 0.2
        waits[0].cancel()

    play(tmp_path, story)


def test_a_cancelled_request_that_has_not_started_never_runs(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(
            tmp_path / "bundle",
            DEADLY.replace("return batch", "time.sleep(.3); return batch"),
            idempotent=False,
        )
        plane.route(await plane.start_worker(bundle, sandbox="off"))
        first = asyncio.ensure_future(plane.call(1.0))
        await asyncio.sleep(0.1)
        second = plane.gateway.predict(plane.inbound(2.0))
        plane.gateway.cancel(second)
        assert await first == [1.0]
        assert await plane.call(3.0) == [3.0]
        assert not (bundle / "ran-2").exists()
        assert "cancelled" in {record.code for record in await plane.records()}

    play(tmp_path, story)


def test_one_poisonous_row_fails_alone_and_tells_nothing_of_the_model(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        plane.route(await plane.start_worker(write_model(tmp_path / "bundle", FAULTY)))
        values = [float(each) for each in range(40)]
        answers = await asyncio.gather(
            *(plane.call(value) for value in values), return_exceptions=True
        )
        for value, answer in zip(values, answers, strict=True):
            if value == 13:
                assert isinstance(answer, errors.ModelFailed)
                assert "secret" not in answer.text
            elif value == 14:
                assert isinstance(answer, errors.InvalidInput)
                assert "fourteen is not allowed" in answer.text
            else:
                assert answer == [value]
        assert b"secret-of-the-model" in b"".join(plane.output)

    play(tmp_path, story)


def test_requests_wait_for_a_model_that_wakes(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", ECHO)
        plane.route(state="idle", retry_after_seconds=3.0)
        waiting = asyncio.ensure_future(plane.call(4.0))
        await asyncio.sleep(0.05)
        assert plane.woken == ["model"]
        with pytest.raises(errors.NotReady) as refused:
            await plane.call(4.0, wait_seconds=0.0)
        assert refused.value.retry_after_seconds == 3.0
        plane.route(await plane.start_worker(bundle))
        assert await waiting == [8.0]

    play(tmp_path, story)


def test_requests_that_wait_follow_a_version_change(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        plane.route(state="starting")
        waiting = [asyncio.ensure_future(plane.call(float(each))) for each in range(5)]
        await asyncio.sleep(0.05)
        worker = await plane.start_worker(write_model(tmp_path / "bundle", ECHO))
        plane.route(worker, number=2)
        assert await asyncio.gather(*waiting) == [[each * 2.0] for each in range(5)]
        assert {record.version for record in await plane.records()} == {2}

    play(tmp_path, story)


def test_a_worker_that_leaves_the_routes_finishes_what_it_has(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", SLOW)
        old, new = [await plane.start_worker(bundle) for _ in range(2)]
        plane.route(old)
        running = asyncio.ensure_future(plane.call(0.4))
        await asyncio.sleep(0.1)
        plane.route(new)
        removal = asyncio.ensure_future(plane.placement.remove(old, 10))
        assert await plane.call(0.0) == [0.0]
        assert await running == [0.4]
        await removal
        assert (await plane.wait_for(old, "exited")).status == 0

    play(tmp_path, story)


def test_a_stopped_or_unknown_deployment_is_refused_without_a_record(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        plane.route(state="stopped", cause="stopped by an operator")
        with pytest.raises(errors.NotReady):
            await plane.call(1.0)
        with pytest.raises(errors.ModelNotFound):
            await plane.call(1.0, deployment="other")
        plane.route()
        with pytest.raises(errors.ModelNotFound):
            await plane.call(1.0, deployment="model@7")
        assert await plane.records() == []

    play(tmp_path, story)


def test_limits_of_deployment_key_and_gateway_are_kept(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        worker = await plane.start_worker(write_model(tmp_path / "bundle", SLOW))
        plane.route(worker, concurrency=2, body_bytes=500)
        running = [asyncio.ensure_future(plane.call(0.2)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(errors.Overloaded) as busy:
            await plane.call(0.0)
        assert busy.value.retry_after_seconds >= 1
        await asyncio.gather(*running)
        with pytest.raises(errors.TooLarge):
            await plane.call([0.0] * 1000)
        plane.route(worker)
        key = limited(requests_per_minute=2)
        for _ in range(2):
            await plane.call(0.0, principal=key)
        with pytest.raises(errors.QuotaExceeded):
            await plane.call(0.0, principal=key)
        assert plane.gateway.guard.held_bytes == 0
        assert plane.gateway.guard.running() == {}

    play(tmp_path, story)


def test_work_that_cannot_be_done_in_time_is_refused_at_once(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", SLOW, idempotent=False)
        worker = await plane.start_worker(bundle)
        plane.route(worker, queue_seconds=0.2)
        results = await asyncio.gather(
            *(plane.call(0.02) for _ in range(400)), return_exceptions=True
        )
        refused = 0
        for _ in range(3):
            begun = time.monotonic()
            more = [plane.gateway.predict(plane.inbound(0.02)) for _ in range(400)]
            assert time.monotonic() - begun < 1.0
            outcomes = await asyncio.gather(
                *(each.answer() for each in more), return_exceptions=True
            )
            refused += sum(isinstance(each, errors.Overloaded) for each in outcomes)
        assert refused > 0
        assert all(isinstance(each, list | errors.Overloaded) for each in results)

    play(tmp_path, story)
