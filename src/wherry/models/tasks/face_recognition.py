"""The task `face-recognition`: faces as vectors, near for one person; or whether two are one person.

A picture alone gives every face with its vector. A picture with an `other` compares the largest face
of each: `same` says whether the cosine of their vectors is at least the model's `threshold`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.face import FACE_SPECS, Face, face_to_plain, faces_to_tensors
from wherry.models.tasks.image import (
    ImageInput,
    image_from_plain,
    image_spec,
    images_from_tensors,
    read_image,
)
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, Tensors, TensorSpec
from wherry.models.tasks.text import embedding_dimensions


class FaceInput(msgspec.Struct):
    """A picture, and maybe one to compare it with."""

    image: ImageInput
    other: ImageInput | None = None


class KnownFace(Face):
    """A face and what makes it that person's."""

    embedding: np.ndarray
    """float32 [dimensions], of length 1."""


class Comparison(msgspec.Struct):
    """Of the largest faces of two pictures."""

    similarity: float
    """Cosine of their vectors, -1 to 1."""
    threshold: float
    """From where on the model takes two faces for one person's."""

    @property
    def same(self) -> bool:
        """Whether it takes them for one person's."""
        return self.similarity >= self.threshold


class FaceRecognition(TaskOutput, kw_only=True):
    """The faces of the picture, the surest first; those of an `other` are not told."""

    faces: list[KnownFace]
    comparison: Comparison | None = None


class FaceRecognitionTask:
    """A picture in, or two; vectors of faces, or a verdict, out."""

    name = "face-recognition"
    input_type = FaceInput
    output_type = FaceRecognition
    media = "image"

    def signature(self, config: TaskConfig) -> Signature:
        """Pictures in; boxes, scores, landmarks and vectors out."""
        vectors = TensorSpec("embeddings", "FP32", (-1, -1, embedding_dimensions(config) or -1))
        return Signature((image_spec(config),), (*FACE_SPECS, vectors))

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[FaceInput]:
        """One item for each row of `image`."""
        return [FaceInput(image) for image in images_from_tensors(tensors, config)]

    def to_tensors(
        self, outputs: Sequence[FaceRecognition], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """A row a picture, filled up with faces of score 0."""
        tensors = faces_to_tensors([output.faces for output in outputs])
        dimensions = next(
            (len(face.embedding) for output in outputs for face in output.faces),
            embedding_dimensions(config),
        )
        shape = (*tensors["scores"].shape, dimensions)
        tensors["embeddings"] = np.zeros(shape, dtype=np.float32)
        for row, output in enumerate(outputs):
            for index, face in enumerate(output.faces):
                tensors["embeddings"][row, index] = face.embedding
        return tensors

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> FaceInput:
        """`{"image": X}`, or `{"image": X, "other": Y}` to compare two."""
        image = image_from_plain(body, config)
        other = body.get("other")
        return FaceInput(image, None if other is None else read_image(other, config))

    def to_plain(self, output: FaceRecognition, config: TaskConfig) -> dict[str, Any]:
        """`{"faces": [{…, "embedding"}]}`; of two, `{"same", "similarity", "threshold"}` as well."""
        faces = [
            {**face_to_plain(face), "embedding": shortest_floats(face.embedding)}
            for face in output.faces
        ]
        if (found := output.comparison) is None:
            return {"faces": faces}
        return {
            "prediction": found.same,
            "same": found.same,
            "similarity": found.similarity,
            "threshold": found.threshold,
            "faces": faces,
        }


FACE_RECOGNITION = FaceRecognitionTask()
