"""A hand-written FastAPI app: what a team writes in an afternoon. `MODE`: sync or lean."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

from models import load

WORKLOAD = os.environ["BENCH_WORKLOAD"]
run_model = load(WORKLOAD)
app = FastAPI()


class Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class InferRequest(BaseModel):
    inputs: list[Tensor]


class OutputTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class InferAnswer(BaseModel):
    model_name: str
    outputs: list[OutputTensor]


def infer(body: InferRequest) -> InferAnswer:
    tensor = body.inputs[0]
    batch = (
        np.array(tensor.data, np.float32).reshape(tensor.shape)
        if WORKLOAD == "iris"
        else tensor.data
    )
    found = run_model(batch)
    output = OutputTensor(
        name="output", datatype="FP32", shape=list(found.shape), data=found.ravel().tolist()
    )
    return InferAnswer(model_name="model", outputs=[output])


if os.environ["BENCH_MODE"] == "sync":
    app.post("/v2/models/model/infer")(infer)  # in a thread, as the guide says for blocking work
else:

    @app.post("/v2/models/model/infer")
    async def infer_on_the_loop(body: InferRequest) -> InferAnswer:
        return infer(body)
