"""mosec, one worker; `MODE`: single, or batch (32 at most, 10 ms of waiting, as in its guide)."""

from __future__ import annotations

import os
from typing import Any

import msgspec
from mosec import Server, Worker, get_logger

from models import answer, collate, load, read_item

WORKLOAD = os.environ["BENCH_WORKLOAD"]
get_logger().setLevel("WARNING")


class Model(Worker):
    def __init__(self) -> None:
        self.run_model = load(WORKLOAD)

    def deserialize(self, data: bytes) -> Any:
        return read_item(WORKLOAD, msgspec.json.decode(data))

    def serialize(self, data: Any) -> bytes:
        return msgspec.json.encode(answer(data))

    def forward(self, data: Any) -> Any:
        if isinstance(data, list):
            return list(self.run_model(collate(WORKLOAD, data)))
        return self.run_model(collate(WORKLOAD, [data]))[0]


if __name__ == "__main__":
    server = Server()
    if os.environ["BENCH_MODE"] == "batch":
        server.append_worker(Model, max_batch_size=32, max_wait_time=10, timeout=60000)
    else:
        server.append_worker(Model, timeout=60)
    server.run()
