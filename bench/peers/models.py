"""The models that every peer serves, and the parts of the wire that a peer does not do itself.

Runs in the peers' environments: numpy, and what the model needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def load_iris() -> Callable[[Any], Any]:
    """Rows of four lengths to probabilities of three species."""
    from sklearn.datasets import load_iris as load_data
    from sklearn.linear_model import LogisticRegression

    rows, species = load_data(return_X_y=True)
    return LogisticRegression(max_iter=500).fit(rows, species).predict_proba


def load_minilm() -> Callable[[Sequence[str]], Any]:
    """Texts to unit vectors; a batch is padded to its longest text, as the peers' guides do."""
    import onnxruntime
    from tokenizers import Tokenizer

    folder = Path(os.environ["BENCH_MINILM"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    wanted = [each.name for each in session.get_inputs()]

    def embed(texts: Sequence[str]) -> Any:
        encodings = tokenizer.encode_batch(list(texts))
        mask = np.array([each.attention_mask for each in encodings], dtype=np.int64)
        ids = np.array([each.ids for each in encodings], dtype=np.int64)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden, *_) = session.run(None, {name: given[name] for name in wanted})
        if hidden.ndim == 3:  # no pooling in the graph: the mean over the tokens, as the model says
            weights = mask[:, :, None].astype(np.float32)
            hidden = (hidden * weights).sum(1) / weights.sum(1)
        return hidden / np.linalg.norm(hidden, axis=1, keepdims=True)

    return embed


def mean_of(batch: Any) -> Any:
    """What is asked of big tensors: the mean of each row, which touches every number once."""
    return batch.reshape(len(batch), -1).mean(axis=1, dtype=np.float32)[:, None]


def load(workload: str) -> Callable[[Any], Any]:
    """The model of a workload: a batch in, an array with a row for each out."""
    if workload == "iris":
        return load_iris()
    return load_minilm()


def read_item(workload: str, body: dict[str, Any]) -> Any:
    """The one item of an Open Inference request: a row of numbers, or a text."""
    data = body["inputs"][0]["data"]
    return np.asarray(data, dtype=np.float32) if workload == "iris" else data[0]


def collate(workload: str, items: Sequence[Any]) -> Any:
    """One batch of many items."""
    return np.stack(items) if workload == "iris" else items


def answer(vector: Any) -> dict[str, Any]:
    """The Open Inference answer with one row."""
    return {
        "model_name": "model",
        "outputs": [
            {
                "name": "output",
                "datatype": "FP32",
                "shape": [1, len(vector)],
                "data": vector.tolist(),
            }
        ],
    }
