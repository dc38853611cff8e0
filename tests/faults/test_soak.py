"""Hours in minutes: load with random kills and disconnects, and memory that does not grow.

`make test-soak`; `SOAK_SECONDS` says how long.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from pathlib import Path

import psutil
import pytest
from tests.faults.checker import Footprint
from tests.faults.house import House, kill, run_house
from tests.faults.load import NO_ANSWER, HttpConnection, Load

SECONDS = float(os.environ.get("SOAK_SECONDS", "0"))
SAMPLE_SECONDS = 2.0
WARM_UP = 1 / 3
MAX_MIB_PER_MINUTE = 1.0
NOISE_MIB = 6.0
"""What allocators and page caches may move in a short run."""


class Memory:
    """RSS over time of the processes that nobody kills."""

    def __init__(self, house: House) -> None:
        gateway = house.processes("gateway 0")[0]
        self._processes = {
            "supervisor": psutil.Process(house.server.process.pid),
            "gateway 0": gateway,
        }
        self._begun = time.monotonic()
        self.samples: dict[str, list[tuple[float, float]]] = {name: [] for name in self._processes}

    def sample(self) -> None:
        now = time.monotonic() - self._begun
        for name, process in self._processes.items():
            self.samples[name].append((now, process.memory_info().rss / (1 << 20)))

    def growth(self, name: str) -> tuple[float, float]:
        """MiB per minute after the warm-up, by least squares, and MiB over that time."""
        samples = self.samples[name]
        kept = [each for each in samples if each[0] >= WARM_UP * samples[-1][0]]
        mean_at = sum(at for at, _ in kept) / len(kept)
        mean = sum(mib for _, mib in kept) / len(kept)
        above = sum((at - mean_at) * (mib - mean) for at, mib in kept)
        slope = above / sum((at - mean_at) ** 2 for at, _ in kept)
        return slope * 60, slope * (kept[-1][0] - kept[0][0])


async def disturb(house: House, load: Load, until: float, chance: random.Random) -> dict[str, int]:
    """Kill, and be a bad client, at random."""
    done: dict[str, int] = {"worker": 0, "gateway": 0, "client": 0}
    while time.monotonic() < until:
        await asyncio.sleep(chance.uniform(0.5, 2.0))
        what = chance.choice(["worker", "client", "client", "client", "gateway"])
        if what == "worker":
            ready = await asyncio.to_thread(house.ready)
            if len(ready) < 2:
                continue
            kill(chance.choice(ready).pid)
        elif what == "gateway":
            for process in await asyncio.to_thread(house.processes, "gateway 1"):
                kill(process)
        else:
            with contextlib.suppress(OSError):
                connection = HttpConnection(load.url, load.key)
                await connection.send("/v2/models/oracle/infer", b"{" + b" " * 2000)
                await asyncio.sleep(chance.uniform(0, 0.05))
                connection.close()
        done[what] += 1
    return done


@pytest.mark.skipif(not SECONDS, reason="make test-soak (SOAK_SECONDS=1200)")
def test_a_soak_leaves_answers_books_and_memory_in_order(tmp_path: Path):
    seed = int(os.environ.get("SOAK_SEED", str(time.time_ns() % 100_000)))
    chance = random.Random(seed)
    with run_house(tmp_path, "--gateways", "2") as house:
        house.add_oracle(rows=8)
        house.deploy(replicas=3)
        footprint, memory = Footprint(house.server), Memory(house)

        async def story() -> None:
            load = house.load()
            until = time.monotonic() + SECONDS

            async def client() -> None:
                while time.monotonic() < until:  # on a new connection, to any gateway
                    await load.client("oracle", pause=0.01, argument=lambda: 3, limit=100)

            clients = [asyncio.create_task(client()) for _ in range(8)]
            disturbing = asyncio.create_task(disturb(house, load, until, chance))
            while time.monotonic() < until:
                memory.sample()
                await asyncio.sleep(SAMPLE_SECONDS)
            done = await disturbing
            await asyncio.gather(*clients)
            counts = load.counts()
            print(f"seed {seed}: {counts}, disturbed {done}")
            assert counts.keys() <= {200, NO_ANSWER}, counts
            assert counts[NO_ANSWER] <= 8 * (done["gateway"] + 1)

        asyncio.run(story())
        for name in memory.samples:
            per_minute, whole = memory.growth(name)
            last = memory.samples[name][-1][1]
            print(f"{name}: {last:.0f} MiB, {per_minute:+.2f} MiB a minute, {whole:+.1f} in all")
            assert per_minute < MAX_MIB_PER_MINUTE or whole < NOISE_MIB, name
        house.wait_for(lambda: len(house.ready()) == 3)
        footprint.check(slack=12, seconds=30.0)
