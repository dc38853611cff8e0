"""Two texts that a model reads together, and one number for them: what cross-encoders do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.errors import InvalidInput
from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, Tensors, TensorSpec
from wherry.models.tasks.text import check_text, texts_from_tensor


class TextPair(msgspec.Struct):
    """Two texts in the order in which the model was trained to read them."""

    first: str
    second: str


class PairScore(TaskOutput, kw_only=True):
    """How well two texts go together."""

    score: float
    """As the bundle's option `function` makes it: 0 to 1 for `sigmoid` and `softmax`."""
    raw: float
    """The model's own number."""


class PairTask:
    """What the tasks over pairs of texts have in common: they differ in what they call them.

    Args:
        name: Hugging Face's name of the task.
        first: Key of the plain form, and tensor, of the first text.
        second: Of the second.
    """

    input_type = TextPair
    output_type = PairScore

    def __init__(self, name: str, first: str, second: str) -> None:
        self.name = name
        self._keys = (first, second)

    def signature(self, config: TaskConfig) -> Signature:
        """Two tensors of texts in, a score out."""
        inputs = tuple(TensorSpec(key, "BYTES", (-1,)) for key in self._keys)
        return Signature(inputs, (TensorSpec("score", "FP32", (-1,)),))

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[TextPair]:
        """One item for each element of the two tensors."""
        return pairs_from_tensors(tensors, self._keys, config)

    def to_tensors(self, outputs: Sequence[PairScore], config: TaskConfig) -> dict[str, np.ndarray]:
        """The tensor `score`, FP32 [rows]."""
        return {"score": np.array([output.score for output in outputs], dtype=np.float32)}

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> TextPair:
        """One pair by its two keys."""
        return pair_from_plain(body, self._keys, config)

    def to_plain(self, output: PairScore, config: TaskConfig) -> dict[str, Any]:
        """`{"score": …}`."""
        return {"score": shortest_floats(np.array([output.score]))[0]}


def pairs_from_tensors(
    tensors: Tensors, keys: tuple[str, str], config: TaskConfig
) -> list[TextPair]:
    """Two tensors of equally many texts, as pairs."""
    if set(tensors) != set(keys):
        raise InvalidInput(
            f"the model takes the input tensors {list(keys)!r}, not {sorted(tensors)!r}"
        )
    first, second = (texts_from_tensor(tensors[key], key, config) for key in keys)
    if len(first) != len(second):
        raise InvalidInput(
            f"the tensor {keys[0]!r} has {len(first)} texts, {keys[1]!r} has {len(second)}",
            hint="send equally many",
        )
    return [TextPair(*pair) for pair in zip(first, second, strict=True)]


def pair_from_plain(body: Mapping[str, Any], keys: tuple[str, str], config: TaskConfig) -> TextPair:
    """The two texts of a plain object."""
    for key in keys:
        if key not in body:
            raise InvalidInput(
                f"the request has no {key!r}",
                hint=f'send {{"{keys[0]}": "…", "{keys[1]}": "…"}}',
                param=key,
            )
    first, second = (check_text(body[key], config, key) for key in keys)
    return TextPair(first, second)
