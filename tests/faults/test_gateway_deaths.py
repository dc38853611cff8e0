"""Gateways and the supervisor die; only what they had in hand is lost, and the books stay whole."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest
from tests.conftest import run_server
from tests.faults.checker import (
    check_answers,
    check_books,
    nothing_left_behind,
)
from tests.faults.house import House, kill, play, run_house
from tests.faults.load import NO_ANSWER, Load

from wherry import Client

CLIENTS = 8
BACK_SECONDS = 2.0
BUSY_SECONDS = 8.0
"""What a machine that does other work may add to a start of Python."""


async def kill_gateways(house: House, load: Load, kills: int) -> None:
    for number in range(kills):
        gateways = await asyncio.to_thread(house.processes, f"gateway {number % 2}")
        before = len(load.log)
        kill(gateways[0])
        begun = time.monotonic()
        while True:
            found = await asyncio.to_thread(house.processes, f"gateway {number % 2}")
            if [each for each in found if each.pid != gateways[0].pid]:
                break
            await asyncio.sleep(0.02)
        assert time.monotonic() - begun < BACK_SECONDS + BUSY_SECONDS
        while load.answered < before + 3 * CLIENTS:
            assert time.monotonic() - begun < 30
            await asyncio.sleep(0.02)


@pytest.mark.slow
def test_a_gateway_killed_again_and_again_loses_only_what_it_had_in_hand(tmp_path: Path):
    kills = 10
    with run_house(tmp_path, "--gateways", "2") as house:
        house.add_oracle(rows=8)
        house.deploy(replicas=2)
        workers = {each.pid for each in house.ready()}

        async def story() -> None:
            load = house.load()
            clients = [asyncio.create_task(load.client("oracle")) for _ in range(CLIENTS)]
            await asyncio.sleep(0.5)
            await kill_gateways(house, load, kills)
            load.stop()
            await asyncio.gather(*clients)
            counts = load.counts()
            # each client has at most one request in hand when its gateway dies
            assert counts[NO_ANSWER] <= kills * CLIENTS, counts
            assert counts.keys() <= {200, NO_ANSWER}, "nobody else noticed"

        play(story)
        assert {each.pid for each in house.ready()} == workers, "models stay loaded"


@pytest.mark.slow
def test_a_killed_supervisor_leaves_no_orphan_and_its_restart_has_the_books(tmp_path: Path):
    logs = []
    with nothing_left_behind(tmp_path) as traces:
        with run_server(tmp_path, "--allow-code", "--gateways", "2") as server:
            traces.note(server)
            with Client(server.url, server.key) as client:
                house = House(tmp_path, server, client)
                house.add_oracle(rows=8)
                house.deploy(replicas=2)
                children = psutil.Process(server.process.pid).children(recursive=True)

                async def story() -> None:
                    load = house.load()
                    clients = [
                        asyncio.create_task(load.client("oracle", limit=100_000))
                        for _ in range(CLIENTS)
                    ]
                    await asyncio.sleep(1.0)
                    server.process.kill()
                    await asyncio.sleep(0.2)
                    load.stop()
                    await asyncio.gather(*clients)
                    logs.append(load.log)

                play(story)
            server.process.wait()
            _, alive = psutil.wait_procs(children, timeout=2.0 + BUSY_SECONDS)
            assert alive == [], "no orphan"
            for file in (server.home / ".wherry" / "servers").glob("*.json"):
                file.unlink()
            with run_server(tmp_path, "--allow-code", "--gateways", "2") as again:
                traces.note(again)
                with Client(again.url, again.key) as client:
                    house = House(tmp_path, again, client)
                    house.wait_for(lambda: len(house.ready()) == 2)

                    async def once_more() -> None:
                        load = house.load()
                        assert (await load.call("oracle")).status == 200
                        logs.append(load.log)

                    play(once_more)
            server.process = again.process
        whole = [entry for log in logs for entry in log]
        assert sum(entry.status == 200 for entry in whole) > 20
        check_answers(whole)
        check_books(whole, tmp_path / "data")
