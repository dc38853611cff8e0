"""BentoML; `MODE`: single, or batch (its adaptive batching, 32 at most)."""

from __future__ import annotations

import os
from typing import Any

import bentoml
import numpy as np

from models import answer, load, read_item

WORKLOAD = os.environ["BENCH_WORKLOAD"]
SETTINGS: dict[str, Any] = {"workers": 1, "traffic": {"timeout": 60}}
if os.environ.get("BENCH_QUIET"):
    SETTINGS["logging"] = {"access": {"enabled": False}}

if os.environ["BENCH_MODE"] == "batch":

    @bentoml.service(**SETTINGS)
    class Model:
        """Its batches are lists of one type: the body is a row or a text, no tensor."""

        def __init__(self) -> None:
            self.run_model = load(WORKLOAD)

        if WORKLOAD == "iris":

            @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=10_000)
            def infer(self, rows: np.ndarray) -> np.ndarray:
                return self.run_model(rows)

        else:

            @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=10_000)
            def infer(self, texts: list[str]) -> np.ndarray:
                return self.run_model(texts)

else:

    @bentoml.service(**SETTINGS)
    class Model:
        def __init__(self) -> None:
            self.run_model = load(WORKLOAD)

        @bentoml.api
        def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            item = read_item(WORKLOAD, {"inputs": inputs})
            batch = np.stack([item]) if WORKLOAD == "iris" else [item]
            return answer(self.run_model(batch)[0])
