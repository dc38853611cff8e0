"""MiniLM and the mean of big tensors as custom runtimes, as MLServer's guide shows."""

from __future__ import annotations

import os

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from models import load, mean_of


class Embeddings(MLModel):
    async def load(self) -> bool:
        self.run_model = load("minilm")
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = StringCodec.decode_input(payload.inputs[0])
        vectors = self.run_model(texts)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("output", vectors)]
        )


class Mean(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        tensor = payload.inputs[0]
        # over REST it takes no binary tensors: base64 is its most compact form
        (data,) = Base64Codec.decode_input(tensor)
        batch = np.frombuffer(data, np.float32)[None, :]
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output("output", mean_of(batch))],
        )


assert os.environ["BENCH_WORKLOAD"]
