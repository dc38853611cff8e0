"""What the sandbox costs: `python -m tests.sandbox.cost [PAIRS]`; the figures of docs/security.md.

Two workers of the same bundle, one in the sandbox and one not, are asked in turns; each pair gives
a ratio of the time until the answers and of the processor time of the worker. Loads are paired the
same way. Medians of the ratios, with their quartiles.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
from tests.data_plane import DataPlane, data_plane
from tests.sandbox.test_runtimes import iris, minilm, smollm2

from wherry.control.placement.placement import WorkerHandle

CASES = {"sklearn": (iris, 200), "onnx": (minilm, 40), "llama_cpp": (smollm2, 3)}
"""Runtime → bundle, and requests in a turn."""


async def load(plane: DataPlane, bundle: Path, runtime: str, sandbox: str) -> WorkerHandle:
    return await plane.start_worker(
        bundle, sandbox=sandbox, runtime=runtime, memory_limit_mib=2048, id=f"w{time.time_ns()}"
    )


async def ask(plane: DataPlane, worker: WorkerHandle, body: bytes, times: int) -> tuple[float, ...]:
    """Wall and processor seconds of so many requests, one after the other."""
    plane.route(worker)
    await plane.wait_for_links(1)
    await plane.gateway.predict(plane.inbound(0.0, codec="predict", body=body)).answer()
    process = psutil.Process(worker.pid)
    cpu, begun = sum(process.cpu_times()[:2]), time.perf_counter()
    for _ in range(times):
        await plane.gateway.predict(plane.inbound(0.0, codec="predict", body=body)).answer()
    return time.perf_counter() - begun, sum(process.cpu_times()[:2]) - cpu


async def measure(runtime: str, pairs: int) -> dict[str, list[float]]:
    make, times = CASES[runtime]
    ratios: dict[str, list[float]] = {"load": [], "wall": [], "cpu": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, question = make(folder / "bundle")
        body = msgspec.json.encode(question)
        async with data_plane(folder) as plane:
            for _ in range(pairs):
                seconds: dict[str, Any] = {}
                workers = {}
                for mode in ("off", "required"):
                    begun = time.perf_counter()
                    workers[mode] = await load(plane, bundle, runtime, mode)
                    seconds[mode] = time.perf_counter() - begun
                ratios["load"].append(seconds["required"] / seconds["off"])
                for mode in ("off", "required"):
                    seconds[mode] = await ask(plane, workers[mode], body, times)
                for place, what in enumerate(("wall", "cpu")):
                    ratios[what].append(seconds["required"][place] / seconds["off"][place])
                plane.route()
                for worker in workers.values():
                    await plane.placement.remove(worker, 10)
    return ratios


async def main(pairs: int) -> None:
    for runtime in CASES:
        for what, ratios in (await measure(runtime, pairs)).items():
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"{runtime:10} {what:5} {middle:.2f} ({low:.2f} - {high:.2f}) of {pairs} pairs")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else 9))
