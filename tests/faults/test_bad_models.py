"""Models that hang, crash, recurse, flood and eat: the fault stays in their own deployment."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from tests.faults.checker import Footprint, failed
from tests.faults.house import House, play, run_house
from tests.faults.oracle import Command

LIMIT_SECONDS = 2.0
BUSY_SECONDS = 4.0
"""What a machine that does other work may add to a figure of the promise."""

FAULTS = {
    Command.HANG: {504},
    Command.HANG_IN_C: {504},
    Command.SEGFAULT: {400, 504},
    Command.EXIT: {400, 504},
    Command.RECURSE: {500},
    Command.RECURSE_IN_C: {400, 500, 504},
    Command.PRINT: {200, 504},
    Command.ALLOCATE: {400, 500, 504},
}
"""What the sender is told; 504 where a busy machine is slow to load the model once more."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with run_house(tmp_path_factory.mktemp("bad")) as made:
        made.add_oracle("bad")
        made.add_oracle("good")
        made.deploy("good")
        made.deploy("bad")
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("command", FAULTS, ids=lambda command: command.name.lower())
def test_a_bad_model_fails_its_own_requests_in_time_and_no_other(house: House, command: Command):
    footprint = Footprint(house.server)

    async def story() -> None:
        good, bad = house.load(), house.load()
        clients = [asyncio.create_task(good.client("good", pause=0.01)) for _ in range(3)]
        assert (await bad.call("bad")).status == 200
        argument = {Command.EXIT: 7, Command.PRINT: 3000}.get(command, 0)
        entry = await bad.call(
            "bad", command, argument, x_request_timeout_seconds=str(LIMIT_SECONDS)
        )
        assert entry.status in FAULTS[command], entry
        assert entry.seconds < LIMIT_SECONDS + 1.0 + BUSY_SECONDS, entry
        after = await bad.call("bad", x_request_timeout_seconds="30")
        assert after.status == 200, after
        await good.wait_for_answers(12)
        good.stop()
        await asyncio.gather(*clients)
        assert failed(good.log) == []

    play(story)
    house.wait_for(lambda: house.ready("bad"))
    footprint.check()


@pytest.mark.slow
def test_requests_that_wait_behind_a_hung_one_are_answered(house: House):
    async def story() -> None:
        load = house.load()
        for _ in range(3):
            assert (await load.call("bad")).status == 200
        hung = asyncio.create_task(
            load.call("bad", Command.HANG, x_request_timeout_seconds=str(LIMIT_SECONDS))
        )
        await asyncio.sleep(0.2)
        behind = [
            asyncio.create_task(load.call("bad", x_request_timeout_seconds="40")) for _ in range(10)
        ]
        assert (await hung).status == 504
        assert {entry.status for entry in await asyncio.gather(*behind)} == {200}

    play(story)


@pytest.mark.slow
def test_a_stopped_worker_is_replaced_and_what_it_had_is_answered_elsewhere(house: House):
    async def story() -> None:
        load = house.load()
        assert (await load.call("bad")).status == 200
        (worker,) = await asyncio.to_thread(house.ready, "bad")
        os.kill(worker.pid, signal.SIGSTOP)
        lost = load.call("bad", x_request_timeout_seconds=str(LIMIT_SECONDS))
        kept = load.call("bad", x_request_timeout_seconds="40")
        lost_entry, kept_entry = await asyncio.gather(lost, kept)
        assert lost_entry.status == 504
        assert lost_entry.seconds < LIMIT_SECONDS + 1.0 + BUSY_SECONDS
        assert kept_entry.status == 200, kept_entry
        assert kept_entry.seconds < 15 + BUSY_SECONDS

    play(story)
