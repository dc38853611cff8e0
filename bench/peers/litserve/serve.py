"""LitServe; `MODE`: single, or batch (32 at most, 10 ms of waiting). Both with its fast queue."""

from __future__ import annotations

import os
from typing import Any

import litserve

from models import answer, collate, load, read_item

WORKLOAD = os.environ["BENCH_WORKLOAD"]
IS_BATCH = os.environ["BENCH_MODE"] == "batch"


class Single(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.run_model = load(WORKLOAD)

    def decode_request(self, request):  # LitServe reads a type here, and JSON without one
        return read_item(WORKLOAD, request)

    def predict(self, item: Any) -> Any:
        return self.run_model(collate(WORKLOAD, [item]))[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return answer(output)


class Batch(Single):
    def batch(self, inputs: list[Any]) -> Any:
        return collate(WORKLOAD, inputs)

    def predict(self, batch: Any) -> Any:
        return self.run_model(batch)

    def unbatch(self, output: Any) -> Any:
        return list(output)


if __name__ == "__main__":
    api = Batch(max_batch_size=32, batch_timeout=0.01) if IS_BATCH else Single()
    server = litserve.LitServer(
        api, accelerator="cpu", fast_queue=os.environ.get("BENCH_FAST_QUEUE") == "1"
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
