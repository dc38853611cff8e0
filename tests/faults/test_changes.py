"""What operators change under load: versions, aliases, limits, the end of the server, the clock."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.conftest import run_server
from tests.faults.checker import (
    check_answers,
    check_books,
    failed,
    nothing_left_behind,
    read_journal,
)
from tests.faults.house import House, kill, play, run_house
from tests.faults.load import NO_ANSWER, Load
from tests.faults.oracle import Command

from wherry import Client
from wherry.client.schema import DeploymentSpec, KeyLimits, Limits, Replicas, Rollout


async def wait_for_version(load: Load, number: int, seconds: float = 60.0) -> None:
    """Until a request that is sent now is answered by this version."""
    begun = time.monotonic()
    while (await load.call("oracle")).answer[1:] != [number]:
        assert time.monotonic() - begun < seconds
        await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("keep_warm_seconds", [0, 60])
def test_twenty_version_changes_under_load_fail_and_mix_nothing(
    tmp_path: Path, keep_warm_seconds: float
):
    with run_house(tmp_path, "--gateways", "2") as house:
        for version in (1, 2):
            house.add_oracle(version=version, rows=8)
        house.client.models.set_alias("oracle", "live", 1)
        house.deploy("oracle@live", rollout=Rollout(keep_warm_seconds=keep_warm_seconds))

        async def story() -> None:
            load = house.load()
            clients = [
                asyncio.create_task(load.client("oracle", argument=lambda: 5)) for _ in range(6)
            ]
            for change in range(20):
                number = 2 - change % 2
                await asyncio.to_thread(house.client.models.set_alias, "oracle", "live", number)
                await wait_for_version(load, number)
            load.stop()
            await asyncio.gather(*clients)
            assert failed(load.log) == []
            assert {entry.answer[1] for entry in load.log} == {1, 2}

        play(story)
        workers = 2 if keep_warm_seconds else 1
        house.wait_for(lambda: len(house.ready()) == workers)


@pytest.mark.slow
def test_limits_replicas_keys_and_neighbours_change_under_load(tmp_path: Path):
    with run_house(tmp_path) as house:
        house.add_oracle(rows=8)
        house.deploy()

        def change(number: int) -> None:
            spec = DeploymentSpec(
                name="oracle",
                model="oracle",
                replicas=Replicas(1 + number % 2, 2),
                limits=Limits(timeout_seconds=60.0 + number, queue_seconds=30.0),
            )
            house.client.deployments.apply([spec])
            key = house.client.keys.create(f"key-{number}")
            house.client.deployments.deploy("oracle", name="neighbour", wait=number % 3 == 0)
            house.client.keys.revoke(key.id)
            house.client.deployments.remove("neighbour")

        async def story() -> None:
            load = house.load()
            clients = [
                asyncio.create_task(load.client("oracle", argument=lambda: 5)) for _ in range(6)
            ]
            for number in range(8):
                await asyncio.to_thread(change, number)
                await asyncio.sleep(0.5)
            load.stop()
            await asyncio.gather(*clients)
            assert failed(load.log) == []

        play(story)


@pytest.mark.slow
def test_a_damaged_version_is_refused_and_the_old_one_serves(tmp_path: Path):
    with run_house(tmp_path) as house:
        for version in (1, 2):
            house.add_oracle(version=version)
        house.client.models.set_alias("oracle", "live", 1)
        house.deploy("oracle@live")
        good = (tmp_path / "oracle-2" / "model.py").read_bytes()
        damaged = 0
        for file in house.server.data.rglob("*"):
            if file.is_file() and file.stat().st_size == len(good) and file.read_bytes() == good:
                file.chmod(0o600)
                file.write_bytes(good.replace(b'"sha256"', b'"sha255"').replace(b"[:6]", b"[:5]"))
                damaged += 1
        assert damaged

        async def story() -> None:
            load = house.load()
            clients = [asyncio.create_task(load.client("oracle", pause=0.01)) for _ in range(3)]
            await asyncio.to_thread(house.client.models.set_alias, "oracle", "live", 2)
            await asyncio.to_thread(
                house.wait_for, lambda: "damaged" in house.client.deployments.get("oracle").cause
            )
            assert house.client.deployments.get("oracle").state == "degraded"
            await asyncio.sleep(1.0)
            load.stop()
            await asyncio.gather(*clients)
            assert failed(load.log) == []
            assert {entry.answer[1] for entry in load.log} == {1}
            # put right, it serves by itself
            for file in house.server.data.rglob("*"):
                if (
                    file.is_file()
                    and file.stat().st_size == len(good)
                    and b"[:5]" in file.read_bytes()
                ):
                    file.write_bytes(good)
            await wait_for_version(load, 2)

        play(story)


@pytest.mark.slow
def test_sigterm_under_load_fails_nothing_that_was_admitted(tmp_path: Path):
    logs = []
    with (
        nothing_left_behind(tmp_path) as traces,
        run_server(tmp_path, "--allow-code", "--gateways", "2") as server,
        Client(server.url, server.key) as client,
    ):
        traces.note(server)
        house = House(tmp_path, server, client)
        house.add_oracle(rows=8)
        house.deploy(replicas=2)

        async def story() -> None:
            load = house.load()
            clients = [
                asyncio.create_task(load.client("oracle", argument=lambda: 100)) for _ in range(12)
            ]
            await asyncio.sleep(1.0)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(2.0)
            load.stop()
            await asyncio.gather(*clients)
            logs.append(load.log)

        play(story)
        assert server.process.wait(30) == 0
    (log,) = logs
    check_answers(log)
    check_books(log, tmp_path / "data")
    answered = {entry.request_id for entry in log if entry.status == 200}
    recorded = {record.request_id for record in read_journal(tmp_path / "data")}
    refused = {
        record.request_id for record in read_journal(tmp_path / "data") if record.status != 200
    }
    assert refused == set(), "nothing that was admitted failed"
    assert recorded == answered, "all that was admitted was answered, and its client has it"
    assert {entry.status for entry in log} <= {200, NO_ANSWER}
    assert len(answered) > 10


A_MINUTE = 20
"""Requests of the key that is limited, while the clock jumps."""


def count_refilled(begun: float) -> int:
    """Requests that the key may have had since then, on a machine of any speed."""
    return int((time.monotonic() - begun) * A_MINUTE / 60) + 1


CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* The wall clock, moved by the seconds in a file; the monotonic clock is left alone. */
static long offset(void) {
  char text[32] = {0};
  int fd = open(OFFSET_FILE, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  long got = read(fd, text, sizeof text - 1);
  close(fd);
  return got > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int status = syscall(SYS_clock_gettime, clock, now);
  if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    now->tv_sec += offset();
  return status;
}

time_t time(time_t *seconds) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (seconds) *seconds = now.tv_sec;
  return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, to move the server's clock")
def test_jumps_of_the_clock_fail_nothing(tmp_path: Path):
    source, library, offset = (tmp_path / name for name in ("clock.c", "clock.so", "offset"))
    source.write_text(CLOCK)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", f'-DOFFSET_FILE="{offset}"', "-o", library, source],
        check=True,
    )
    offset.write_text("0")

    def jump(seconds: int) -> None:
        new = offset.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(offset)

    with run_house(tmp_path, "--gateways", "2", LD_PRELOAD=str(library)) as house:
        house.add_oracle(rows=8)
        house.deploy(replicas=2)
        limited = house.client.keys.create(
            "limited", limits=KeyLimits(requests_per_minute=A_MINUTE)
        ).secret

        async def use_up(load: Load) -> int:
            return sum([(await load.call("oracle")).status == 200 for _ in range(30)])

        async def story() -> None:
            begun = time.monotonic()
            assert await use_up(house.load(limited)) <= A_MINUTE + count_refilled(begun)
            load = house.load()
            clients = [asyncio.create_task(load.client("oracle", pause=0.01)) for _ in range(4)]
            for seconds in (3600, -3600, 86_400, 86_395, 86_390, -86_400, -86_405, 0):
                jump(seconds)
                # a durable deadline of a request must not follow the wall clock either
                slow = await load.call("oracle", Command.SLEEP, 300, x_request_timeout_seconds="20")
                assert slow.status == 200, slow
                if seconds == 3600:
                    again = house.load(limited)
                    found = await use_up(again)
                    assert found <= count_refilled(begun), "an hour that was none gives no requests"
                if seconds == -86_400:
                    # a segment that begins now has an older name than those before it
                    for gateway in await asyncio.to_thread(house.processes, "gateway 1"):
                        kill(gateway)
                    kill(house.ready()[0].pid)
                await asyncio.sleep(0.5)
            load.stop()
            await asyncio.gather(*clients)
            lost = [entry for entry in failed(load.log) if entry.status != NO_ANSWER]
            assert lost == []
            assert len(failed(load.log)) <= 4, "one a client, when its gateway was killed"

        play(story)
        house.wait_for(lambda: len(house.ready()) == 2)
        records = read_journal(house.server.data)
        assert max(record.at for record in records) - min(record.at for record in records) > 86_400
        for record in records:
            assert 0 <= record.queued_ms <= record.total_ms < 60_000, record
            assert record.run_ms >= 0, record
    assert os.environ.get("LD_PRELOAD") is None
