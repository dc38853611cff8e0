"""Too many requests, from one or from all; clients that are slow, gone or idle."""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from collections.abc import Iterator

import pytest
from tests.faults.checker import Footprint, failed
from tests.faults.house import House, play, run_house
from tests.faults.load import HttpConnection, Load
from tests.faults.oracle import Command

WORK_MS = 20
QUEUE_SECONDS = 1.0
IDLE_CONNECTIONS = 10_000
REFUSAL_SECONDS = 0.05
BUSY_SECONDS = 0.25
"""What a machine that does other work may add, in the server and in these clients."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with run_house(tmp_path_factory.mktemp("overload")) as made:
        made.add_oracle()
        made.deploy(queue_seconds=QUEUE_SECONDS)
        yield made


async def offer(load: Load, per_second: float, seconds: float) -> None:
    """Requests at a rate, whatever becomes of them; connections are reused."""
    free: list[HttpConnection] = []
    running: set[asyncio.Task[None]] = set()

    async def one() -> None:
        connection = free.pop() if free else HttpConnection(load.url, load.key)
        await load.call("oracle", Command.SLEEP, WORK_MS, connection=connection)
        free.append(connection)

    begun = time.monotonic()
    sent = 0
    while (passed := time.monotonic() - begun) < seconds:
        while sent < passed * per_second:
            task = asyncio.create_task(one())
            running.add(task)
            task.add_done_callback(running.discard)
            sent += 1
        await asyncio.sleep(0.005)
    await asyncio.gather(*running)
    for connection in free:
        connection.close()


async def measure_capacity(house: House, seconds: float = 3.0) -> float:
    """Answers a second that a few patient clients get."""
    load = house.load()
    clients = [
        asyncio.create_task(load.client("oracle", argument=lambda: WORK_MS)) for _ in range(6)
    ]
    await asyncio.sleep(seconds)
    counted = load.answered
    load.stop()
    await asyncio.gather(*clients)
    assert failed(load.log) == []
    return counted / seconds


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """The head of an answer, once the whole answer has come."""
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    await reader.readexactly(length)
    return head


def gateway_mib(house: House) -> float:
    return sum(each.memory_info().rss for each in house.processes("gateway")) / (1 << 20)


@pytest.mark.slow
def test_ten_times_too_much_is_a_plateau(house: House):
    async def story() -> None:
        capacity = await measure_capacity(house)
        before = gateway_mib(house)
        load, seconds = house.load(), 8.0
        begun = time.monotonic()
        await offer(load, 10 * capacity, seconds)
        took = time.monotonic() - begun
        grown = gateway_mib(house) - before
        refused = [entry for entry in load.log if entry.status == 503]
        goodput = load.answered / took
        waits = sorted(entry.seconds for entry in refused)
        print(
            f"capacity {capacity:.0f}/s, offered {len(load.log) / seconds:.0f}/s, "
            f"goodput {goodput / capacity:.0%}, refused {len(refused)}: median "
            f"{1000 * statistics.median(waits):.1f} ms, 99 % {1000 * waits[-len(waits) // 100]:.1f}"
            f" ms, gateway {grown:+.0f} MiB"
        )
        assert load.counts().keys() == {200, 503}
        assert goodput >= 0.9 * capacity
        assert len(refused) > load.answered
        assert statistics.median(waits) <= REFUSAL_SECONDS + BUSY_SECONDS
        assert grown < 64
        # and back to normal: what waited is gone within the bound of the queue
        after, begun = house.load(), time.monotonic()
        while (entry := await after.call("oracle", Command.SLEEP, WORK_MS)).seconds > 0.5:
            assert time.monotonic() - begun < 5.0, entry
        assert entry.status == 200

    play(story)


@pytest.mark.slow
def test_a_key_at_ten_times_fails_no_request_of_another_key(house: House):
    noisy, quiet = (house.client.keys.create(name).secret for name in ("noisy", "quiet"))

    async def story() -> None:
        capacity = await measure_capacity(house)
        flood, calm = house.load(noisy), house.load(quiet)
        offering = asyncio.create_task(offer(flood, 10 * capacity, 8.0))
        await asyncio.sleep(1.0)
        clients = [
            asyncio.create_task(calm.client("oracle", argument=lambda: WORK_MS)) for _ in range(3)
        ]
        await asyncio.sleep(6.0)
        calm.stop()
        await asyncio.gather(*clients, offering)
        print(f"flood {flood.counts()}, calm {calm.counts()}")
        assert failed(calm.log) == []
        assert calm.answered > 5
        assert flood.counts()[503] > flood.answered

    play(story)


@pytest.mark.slow
def test_clients_that_vanish_or_stall_harm_nobody(house: House):
    footprint = Footprint(house.server)

    async def vanish(number: int, load: Load) -> None:
        """Leave in the head, in the body, after sending, or in the middle of waiting."""
        connection = HttpConnection(load.url, load.key)
        await connection.connect()
        writer = connection._writer
        assert writer is not None
        body = b'{"inputs": [{"name": "X", "shape": [3], "datatype": "INT64", "data": [1, 1, 50]}]}'
        head = (
            f"POST /v2/models/oracle/infer HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"authorization: Bearer {load.key}\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode()
        writer.write((head + body)[: (20, len(head) + 10, len(head + body))[number % 3]])
        await asyncio.sleep(0.05 * (number % 4))
        if number % 2:
            writer.transport.abort()
        connection.close()

    async def story() -> None:
        good, gone = house.load(), house.load()
        clients = [asyncio.create_task(good.client("oracle", pause=0.02)) for _ in range(3)]
        stalled = []
        for _ in range(200):
            reader_writer = await asyncio.open_connection(
                "127.0.0.1", int(house.server.url.rpartition(":")[2])
            )
            reader_writer[1].write(b"POST /v2/models/oracle/infer HTTP/1.1\r\nho")
            stalled.append(reader_writer[1])
        for first in range(0, 400, 40):
            await asyncio.gather(*(vanish(first + each, gone) for each in range(40)))
        good.stop()
        await asyncio.gather(*clients)
        assert failed(good.log) == [], "while 200 stalled and 400 vanished"
        for writer in stalled:
            writer.close()

    play(story)
    footprint.check()


@pytest.mark.slow
def test_ten_thousand_idle_connections_cost_memory_only(house: House):
    wanted = IDLE_CONNECTIONS + 500
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < wanted:
        pytest.skip(f"this user may open {before[1]} files only: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], wanted), before[1]))
    footprint, memory = Footprint(house.server), gateway_mib(house)

    async def story() -> None:
        port = int(house.server.url.rpartition(":")[2])
        request = b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
        idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        async def open_one() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            assert b" 200 " in await read_answer(reader)
            idle.append((reader, writer))

        begun = time.monotonic()
        for _ in range(0, IDLE_CONNECTIONS, 100):
            await asyncio.gather(*(open_one() for _ in range(100)))
        opened = time.monotonic() - begun
        load = house.load()
        entries = [await load.call("oracle") for _ in range(50)]
        grown = gateway_mib(house) - memory
        print(
            f"opened in {opened:.1f} s, then median "
            f"{1000 * statistics.median(each.seconds for each in entries):.1f} ms, "
            f"gateway {grown:+.0f} MiB"
        )
        assert {each.status for each in entries} == {200}
        assert grown < 500
        if opened < 50:  # else the first ones have idled for as long as they may
            alive = 0
            for reader, writer in idle[:: IDLE_CONNECTIONS // 20]:
                writer.write(request)
                head = await read_answer(reader)
                alive += b" 200 " in head
            assert alive == 20, "idle ones still work"
        for _, writer in idle:
            writer.transport.abort()

    try:
        play(story)
        footprint.check(seconds=30.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
