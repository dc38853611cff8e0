"""Ray Serve, one replica; `MODE`: single, or batch (`@serve.batch`, 32 at most, 10 ms)."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from models import answer, collate, load, read_item

WORKLOAD = os.environ["BENCH_WORKLOAD"]
MODE = os.environ["BENCH_MODE"]


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
class Model:
    def __init__(self, workload: str, mode: str) -> None:
        self.workload, self.mode = workload, mode
        self.run_model = load(workload)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.01)
    async def run_batch(self, items: list[Any]) -> list[Any]:
        return list(self.run_model(collate(self.workload, items)))

    async def __call__(self, request: Request) -> dict[str, Any]:
        item = read_item(self.workload, await request.json())
        if self.mode == "batch":
            return answer(await self.run_batch(item))
        return answer(self.run_model(collate(self.workload, [item]))[0])


ray.init(
    num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20,
    runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
)  # fmt: skip
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Model.options(logging_config={"enable_access_log": False}).bind(WORKLOAD, MODE))
signal.sigwait({signal.SIGTERM, signal.SIGINT})
serve.shutdown()
ray.shutdown()
