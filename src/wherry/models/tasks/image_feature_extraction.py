"""The task `image-feature-extraction`: a picture in, a vector out.

A model that puts texts in the same space takes those, too: `{"text": "…"}`, or the tensor `text`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.image import ImageInput, ImageTask, image_spec
from wherry.models.tasks.task import Signature, TaskConfig, Tensors, TensorSpec
from wherry.models.tasks.text import (
    TEXT_KEYS,
    Embedding,
    TextInput,
    embedding_dimensions,
    text_from_plain,
    texts_from_tensors,
)


class ImageFeatureExtraction:
    """A picture, or a text for a model of both, in; a vector out."""

    name = "image-feature-extraction"
    media = "image"
    input_type = ImageInput | TextInput
    output_type = Embedding

    def __init__(self) -> None:
        self._pictures = ImageTask()

    def signature(self, config: TaskConfig) -> Signature:
        """Pictures in, vectors out."""
        outputs = (TensorSpec("embedding", "FP32", (-1, embedding_dimensions(config) or -1)),)
        return Signature((image_spec(config),), outputs)

    def from_tensors(
        self, tensors: Tensors, config: TaskConfig
    ) -> list[ImageInput] | list[TextInput]:
        """One item for each row of `image`, or of `text`."""
        if set(tensors) == {"text"}:
            return texts_from_tensors(tensors, config)
        return self._pictures.from_tensors(tensors, config)

    def to_tensors(self, outputs: Sequence[Embedding], config: TaskConfig) -> dict[str, np.ndarray]:
        """The tensor `embedding`, FP32 [rows, dimensions]."""
        if not outputs:
            return {"embedding": np.empty((0, embedding_dimensions(config)), dtype=np.float32)}
        return {"embedding": np.stack([output.vector for output in outputs])}

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> ImageInput | TextInput:
        """`{"image": X}`, or `{"text": "…"}`."""
        if "image" not in body and TEXT_KEYS[0] in body:
            return text_from_plain(body, config)
        return self._pictures.from_plain(body, config)

    def to_plain(self, output: Embedding, config: TaskConfig) -> dict[str, Any]:
        """`{"embedding": […]}`."""
        return {"embedding": shortest_floats(output.vector)}


IMAGE_FEATURE_EXTRACTION = ImageFeatureExtraction()
