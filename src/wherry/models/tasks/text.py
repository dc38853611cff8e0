"""Tasks whose input is a text: to name its kind, or to turn it into a vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.errors import InvalidInput
from wherry.models.tasks.classification import (
    Classification,
    classification_signature,
    classification_to_plain,
    classifications_to_tensors,
    shortest_floats,
)
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, Tensors, TensorSpec

MAX_TEXT_BYTES = 1 << 20
"""Largest text in UTF-8; the bundle's option `max_text_bytes` lowers it."""
MAX_TEXTS = 1 << 16
"""Most texts in one tensor."""
MAX_TOKEN_ID = (1 << 31) - 1
MAX_TOKEN_IDS = 1 << 17
"""Most token ids in one text that comes already tokenised."""
TEXT_KEYS = ("text", "inputs", "input")
"""What the plain form may call its text; the first is the documented one."""


class TextInput(msgspec.Struct, tag="text"):
    """One text, as characters or as the model's own token ids: exactly one is set."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None


class Embedding(TaskOutput, kw_only=True):
    """A text as a vector: near in meaning is near in angle."""

    vector: np.ndarray
    """float32 [dimensions]"""


class TextClassification:
    """A text in, a score for each label out."""

    name = "text-classification"
    input_type = TextInput
    output_type = Classification

    def signature(self, config: TaskConfig) -> Signature:
        """Texts in; labels and scores out."""
        return classification_signature((TensorSpec("text", "BYTES", (-1,)),), config)

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[TextInput]:
        """One item for each element of the tensor `text`."""
        return texts_from_tensors(tensors, config)

    def to_tensors(
        self, outputs: Sequence[Classification], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """Tensors `label` and `scores`."""
        return classifications_to_tensors(outputs, config)

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> TextInput:
        """`{"text": "…"}`."""
        return text_from_plain(body, config)

    def to_plain(self, output: Classification, config: TaskConfig) -> dict[str, Any]:
        """`{"prediction", "label", "confidence", "scores": {label: score}}`."""
        return classification_to_plain(output)


class FeatureExtraction:
    """A text in, a vector out."""

    name = "feature-extraction"
    input_type = TextInput
    output_type = Embedding

    def signature(self, config: TaskConfig) -> Signature:
        """Texts in, vectors out."""
        outputs = (TensorSpec("embedding", "FP32", (-1, embedding_dimensions(config) or -1)),)
        return Signature((TensorSpec("text", "BYTES", (-1,)),), outputs)

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[TextInput]:
        """One item for each element of the tensor `text`."""
        return texts_from_tensors(tensors, config)

    def to_tensors(self, outputs: Sequence[Embedding], config: TaskConfig) -> dict[str, np.ndarray]:
        """The tensor `embedding`, FP32 [rows, dimensions]."""
        if not outputs:
            empty = np.empty((0, embedding_dimensions(config)), dtype=np.float32)
            return {"embedding": empty}
        return {"embedding": np.stack([output.vector for output in outputs])}

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> TextInput:
        """`{"text": "…"}`, or `{"token_ids": […]}` of the model's own tokenizer."""
        if "token_ids" in body:
            return TextInput(token_ids=check_token_ids(body["token_ids"]))
        return text_from_plain(body, config)

    def to_plain(self, output: Embedding, config: TaskConfig) -> dict[str, Any]:
        """`{"embedding": […]}`."""
        return {"embedding": shortest_floats(output.vector)}


TEXT_CLASSIFICATION = TextClassification()
FEATURE_EXTRACTION = FeatureExtraction()


def embedding_dimensions(config: TaskConfig) -> int:
    """Length of the model's vectors as the bundle states it (option `dimensions`); 0 = unsaid."""
    stated = config.options.get("dimensions", 0)
    return stated if isinstance(stated, int) and stated > 0 else 0


def cosines(outputs: Sequence[Embedding]) -> np.ndarray:
    """How near each vector is to the first, float32 [vectors - 1], -1 to 1."""
    vectors = np.stack([output.vector for output in outputs]).astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.clip(vectors[1:] @ vectors[0], -1.0, 1.0).astype(np.float32)


def text_from_plain(body: Mapping[str, Any], config: TaskConfig) -> TextInput:
    """The text of a plain object, checked."""
    for key in TEXT_KEYS:
        if key in body:
            return TextInput(check_text(body[key], config, key))
    raise InvalidInput("the request has no 'text'", hint='send {"text": "…"}', param="text")


def texts_to_tensor(texts: Sequence[str]) -> np.ndarray:
    """BYTES [texts]."""
    tensor = np.empty(len(texts), dtype=object)
    tensor[:] = [text.encode("utf-8") for text in texts]
    return tensor


def texts_from_tensors(tensors: Tensors, config: TaskConfig) -> list[TextInput]:
    """One item for each element of the tensor `text`, of shape [n] or [n, 1]."""
    tensor = tensors.get("text")
    if tensor is None or len(tensors) != 1:
        names = sorted(tensors)
        raise InvalidInput(f"the model takes one input tensor 'text', not {names!r}", param="text")
    return [TextInput(text) for text in texts_from_tensor(tensor, "text", config)]


def texts_from_tensor(tensor: np.ndarray, name: str, config: TaskConfig) -> list[str]:
    """The texts of a BYTES tensor of shape [n] or [n, 1]."""
    if tensor.dtype != object:
        raise InvalidInput(f"the tensor {name!r} must have datatype BYTES", param=name)
    if tensor.ndim != 1 and not (tensor.ndim == 2 and tensor.shape[1] == 1):
        raise InvalidInput(
            f"the tensor {name!r} must have shape [n], not {list(tensor.shape)}", param=name
        )
    if tensor.size > MAX_TEXTS:
        raise InvalidInput(
            f"the tensor {name!r} has {tensor.size} texts, the limit is {MAX_TEXTS}", param=name
        )
    return [_decode_utf8(each, name, config) for each in tensor.reshape(-1)]


def _decode_utf8(value: object, name: str, config: TaskConfig) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            value = bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput(f"a text is not valid UTF-8: {error}", param=name) from error
    return check_text(value, config, name)


def check_texts(values: object, config: TaskConfig, param: str, *, most: int) -> list[str]:
    """A list of one to `most` texts; `InvalidInput` names the element that is none."""
    if not isinstance(values, list | tuple):
        kind = type(values).__name__
        raise InvalidInput(f"{param!r} must be a list of texts, not {kind}", param=param)
    if not values:
        raise InvalidInput(f"{param!r} is empty", hint="send at least one text", param=param)
    if len(values) > most:
        raise InvalidInput(f"{param!r} has {len(values)} texts, the limit is {most}", param=param)
    return [check_text(each, config, f"{param}[{at}]") for at, each in enumerate(values)]


def check_text(value: object, config: TaskConfig, param: str) -> str:
    """`value` if it is a text that a model may see.

    Raises:
        InvalidInput: not a string, empty, larger than the cap, or half of a surrogate pair.
    """
    if not isinstance(value, str):
        kind = type(value).__name__
        raise InvalidInput(f"{param!r} must be a string, not {kind}", param=param)
    try:
        size = len(value) if value.isascii() else len(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{param!r} is not valid Unicode: {error.reason}", param=param
        ) from error
    if not value:
        raise InvalidInput(f"{param!r} is empty", hint="send at least one character", param=param)
    limit = _max_text_bytes(config)
    if size > limit:
        raise InvalidInput(f"{param!r} has {size} bytes, the limit is {limit}", param=param)
    return value


def _max_text_bytes(config: TaskConfig) -> int:
    stated = config.options.get("max_text_bytes", MAX_TEXT_BYTES)
    return min(stated, MAX_TEXT_BYTES) if isinstance(stated, int) else MAX_TEXT_BYTES


def check_token_ids(value: object, param: str = "token_ids") -> tuple[int, ...]:
    """`value` if it is a list of numbers that may be token ids; the runtime knows which are."""
    if not isinstance(value, list | tuple) or not value:
        raise InvalidInput(f"{param!r} must be a list of at least one token id", param=param)
    if len(value) > MAX_TOKEN_IDS:
        raise InvalidInput(
            f"{param!r} has {len(value)} token ids, the limit is {MAX_TOKEN_IDS}", param=param
        )
    for token_id in value:
        if type(token_id) is not int or not 0 <= token_id <= MAX_TOKEN_ID:
            raise InvalidInput(f"{token_id!r} is not a token id", param=param)
    return tuple(value)
