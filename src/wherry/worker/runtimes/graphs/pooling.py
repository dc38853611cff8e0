# pyright: standard
"""Vectors of tokens to one of the text, as sentence-transformers does it: pooling, dense layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

import numpy as np

from wherry.errors import FormatNotAllowed
from wherry.models.bundle import Bundle
from wherry.worker.runtimes.graphs.graph import Array
from wherry.worker.runtimes.safetensors_file import read_tensors

Pooling = Literal["mean", "cls", "last", "max", "mean_sqrt_len", "weightedmean"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "Tanh": np.tanh,
    "Identity": lambda rows: rows,
    "ReLU": lambda rows: np.maximum(rows, 0),
    "Sigmoid": lambda rows: 1 / (1 + np.exp(-rows)),
}
"""Name of a class of PyTorch → what it does."""


def pool(found: Array, mask: Array, pooling: Pooling) -> Array:
    """Vectors of tokens [texts, tokens, d] to vectors of texts [texts, d]; `mask` is 1 at tokens.

    `weightedmean` counts a token the more the later it stands.
    """
    if pooling == "cls":
        return found[:, 0]
    if pooling == "last":
        return found[np.arange(len(found)), mask.sum(axis=1) - 1]
    is_token = mask[:, :, np.newaxis].astype(np.float32)
    if pooling == "max":
        return np.where(is_token > 0, found, -np.inf).max(axis=1)
    if pooling == "weightedmean":
        is_token = is_token * np.arange(1, found.shape[1] + 1, dtype=np.float32)[:, np.newaxis]
    counted = is_token.sum(axis=1)
    return (found * is_token).sum(axis=1) / (
        np.sqrt(counted) if pooling == "mean_sqrt_len" else counted
    )


class DenseLayer:
    """`sentence_transformers.models.Dense` in a folder of the bundle: `activation(x W + b)`.

    Raises:
        FormatNotAllowed: it is damaged, or its activation is not known.
    """

    def __init__(self, bundle: Bundle, folder: str) -> None:
        try:
            config = json.loads(bundle.path(f"{folder}/config.json").read_text())
            activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
        except (ValueError, AttributeError) as error:
            raise FormatNotAllowed(f"the dense layer {folder!r} is damaged") from error
        if activation not in ACTIVATIONS:
            raise FormatNotAllowed(
                f"the dense layer {folder!r} has the activation {activation!r}",
                hint="known are " + ", ".join(ACTIVATIONS),
            )
        self._activate = ACTIVATIONS[activation]
        tensors = read_tensors(bundle.path(f"{folder}/model.safetensors"))
        weight = tensors.get("linear.weight")
        if weight is None or weight.ndim != 2:
            raise FormatNotAllowed(f"the dense layer {folder!r} has no tensor 'linear.weight'")
        self._weight = weight.astype(np.float32).T
        bias = tensors.get("linear.bias")
        self._bias = np.float32(0) if bias is None else bias.astype(np.float32)

    def __call__(self, rows: Array) -> Array:
        """Rows float32 [texts, in] to [texts, out]."""
        if rows.shape[1] != len(self._weight):
            raise FormatNotAllowed(
                f"the dense layer takes {len(self._weight)} numbers, the model gives {rows.shape[1]}"
            )
        return self._activate(rows @ self._weight + self._bias)
