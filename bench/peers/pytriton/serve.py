"""PyTriton with its dynamic batcher (32 at most, 100 µs of waiting)."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from models import load, mean_of

WORKLOAD = os.environ["BENCH_WORKLOAD"]
run_model: Any = mean_of if WORKLOAD == "mean" else load(WORKLOAD)


@batch
def infer(**inputs: Any) -> list[Any]:
    (given,) = inputs.values()
    if WORKLOAD == "minilm":
        return [run_model([each.decode() for each in given[:, 0]]).astype(np.float32)]
    return [run_model(given).astype(np.float32)]


shapes = {"iris": (4,), "minilm": (1,), "mean": (-1,)}
kind = {"iris": np.float64, "minilm": bytes, "mean": np.float32}[WORKLOAD]
name = "text" if WORKLOAD == "minilm" else "input"
http, grpc, metrics = (int(port) for port in sys.argv[1:4])
config = TritonConfig(
    http_address="127.0.0.1",
    http_port=http,
    grpc_port=grpc,
    metrics_port=metrics,
    log_verbose=0,
)
with Triton(config=config) as triton:
    triton.bind(
        model_name="model",
        infer_func=infer,
        inputs=[Tensor(name=name, dtype=kind, shape=shapes[WORKLOAD])],
        outputs=[Tensor(name="output", dtype=np.float32, shape=(-1,))],
        config=ModelConfig(
            max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=100)
        ),
    )
    triton.serve()
