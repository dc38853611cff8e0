"""Workers die; unary calls do not notice, streams say so, and poison is told from accident."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from tests.faults.checker import Footprint, failed
from tests.faults.house import House, kill, play, run_house
from tests.faults.load import HttpConnection
from tests.faults.oracle import Command, expected_piece, write_stream_oracle


async def kill_whenever_two_are_ready(
    house: House, kills: int, deployment: str = "oracle"
) -> list[float]:
    """Kill a worker whenever at least two are ready; how long each time took to come."""
    waits = []
    killed: set[int] = set()
    for number in range(kills):
        begun = time.monotonic()
        while True:
            ready = await asyncio.to_thread(house.ready, deployment)
            alive = [each.pid for each in ready if each.pid not in killed]
            if len(alive) >= 2:
                break
            assert time.monotonic() - begun < 60, house.server.log()
            await asyncio.sleep(0.05)
        waits.append(time.monotonic() - begun)
        victim = alive[number % len(alive)]
        killed.add(victim)
        kill(victim)
    return waits


@pytest.mark.parametrize(
    "kills", [pytest.param(6, id="quick"), pytest.param(50, marks=pytest.mark.slow)]
)
def test_no_call_fails_when_workers_are_killed_again_and_again(tmp_path: Path, kills: int):
    with run_house(tmp_path) as house:
        house.add_oracle(rows=4)
        house.deploy(replicas=3)

        async def story() -> None:
            load = house.load()
            clients = [
                asyncio.create_task(load.client("oracle", argument=lambda: 5)) for _ in range(6)
            ]
            await kill_whenever_two_are_ready(house, kills)
            await load.wait_for_answers(kills + 1)
            load.stop()
            await asyncio.gather(*clients)
            assert failed(load.log) == []

        play(story)
        house.wait_for(lambda: len(house.ready()) == 3)
        deployment = house.client.deployments.get("oracle")
        assert deployment.state == "ready", "kills from outside never stop a deployment"


@pytest.mark.parametrize(
    "kills", [pytest.param(4, id="quick"), pytest.param(50, marks=pytest.mark.slow)]
)
def test_no_row_of_a_table_is_lost_or_swapped_when_workers_are_killed(tmp_path: Path, kills: int):
    pytest.importorskip("sklearn")
    pytest.importorskip("skops")
    from tests.faults.table_oracle import TableLoad, write_table_oracle

    with run_house(tmp_path) as house:
        bundle = write_table_oracle(tmp_path / "table")
        house.client.models.import_model(bundle, name="table")
        house.deploy("table", replicas=3)

        async def story() -> None:
            load = house.load(kind=TableLoad)
            clients = [asyncio.create_task(load.client("table")) for _ in range(24)]
            await load.wait_for_answers(2000)
            await kill_whenever_two_are_ready(house, kills, "table")
            await load.wait_for_answers(load.answered + 1000)
            load.stop()
            await asyncio.gather(*clients)
            assert failed(load.log) == []

        play(story)
        house.wait_for(lambda: len(house.ready("table")) == 3)


@pytest.mark.slow
def test_poison_is_refused_and_its_neighbours_are_answered(tmp_path: Path):
    with run_house(tmp_path, "--gateways", "2") as house:
        house.add_oracle(rows=16)
        house.deploy(replicas=3)
        house.add_oracle("other")
        house.deploy("other")
        footprint = Footprint(house.server)

        async def story() -> None:
            load, poison, other = house.load(), house.load(), house.load()
            clients = [
                asyncio.create_task(load.client("oracle", argument=lambda: 20)) for _ in range(8)
            ]
            clients += [asyncio.create_task(other.client("other", pause=0.01))]
            await asyncio.sleep(0.5)
            first = await poison.call("oracle", Command.SEGFAULT, nonce=666)
            assert (first.status, "refused for 60 s" in first.error) == (400, True), first
            await asyncio.sleep(0.5)  # the other gateway is told
            workers = {each.pid for each in await asyncio.to_thread(house.ready)}
            again = [await poison.call("oracle", Command.SEGFAULT, nonce=666) for _ in range(10)]
            assert {each.status for each in again} == {400}, again
            alive = {each.pid for each in await asyncio.to_thread(house.ready)}
            assert workers <= alive, "no gateway tries it once more"
            assert (await load.call("oracle")).status == 200
            load.stop()
            other.stop()
            await asyncio.gather(*clients)
            assert failed(load.log) == [], "its batch mates did not fail with it"
            assert failed(other.log) == []

        play(story)
        house.wait_for(lambda: len(house.ready()) == 3)
        footprint.check()


@pytest.mark.slow
def test_streams_of_a_killed_worker_end_with_an_error_event(tmp_path: Path):
    with run_house(tmp_path) as house:
        bundle = write_stream_oracle(tmp_path / "stream")
        house.client.models.import_model(bundle, name="stream")
        house.deploy("stream", replicas=1)

        async def read(nonce: int, pieces: int, pause: int) -> tuple[str, list[str]]:
            connection = HttpConnection(house.server.url, house.server.key)
            body = {
                "model": "stream",
                "stream": True,
                "messages": [{"role": "user", "content": f"{nonce} {pieces} {pause}"}],
            }
            await connection.send("/v1/chat/completions", json.dumps(body).encode())
            status, headers = await connection.read_head()
            assert status == 200
            content = (await connection.read_body(headers)).decode()
            connection.close()
            events = [line[6:] for line in content.split("\n") if line.startswith("data: ")]
            return content, events

        async def story() -> None:
            whole, events = await read(7, 3, 1)
            text = "".join(
                choice["delta"].get("content") or ""
                for event in events
                if event != "[DONE]"
                for choice in json.loads(event)["choices"]
            )
            assert text == "".join(expected_piece(7, number) for number in range(3)), whole
            streams = [asyncio.create_task(read(number, 100, 100)) for number in range(4)]
            await asyncio.sleep(1.0)
            (worker,) = await asyncio.to_thread(house.ready, "stream")
            kill(worker.pid)
            for content, events in await asyncio.gather(*streams):
                assert "worker_lost" in events[-1] or "worker_lost" in events[-2], content[-500:]
                assert events[0] != events[-1]
            # what its requests began was not the fault of their inputs: nothing is quarantined
            _, events = await read(0, 3, 1)
            assert "error" not in "".join(events)

        play(story)
