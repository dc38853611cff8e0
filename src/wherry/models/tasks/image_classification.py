"""The task `image-classification`: a picture in, a score for each label out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wherry.models.tasks.classification import (
    Classification,
    classification_signature,
    classification_to_plain,
    classifications_to_tensors,
)
from wherry.models.tasks.image import ImageTask, image_spec
from wherry.models.tasks.task import Signature, TaskConfig


class ImageClassification(ImageTask):
    """A picture in, a score for each label out."""

    name = "image-classification"
    output_type = Classification

    def signature(self, config: TaskConfig) -> Signature:
        """Pictures in (UINT8 0 to 255 is accepted as well); labels and scores out."""
        return classification_signature((image_spec(config),), config)

    def to_tensors(
        self, outputs: Sequence[Classification], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """Tensors `label` and `scores`."""
        return classifications_to_tensors(outputs, config)

    def to_plain(self, output: Classification, config: TaskConfig) -> dict[str, Any]:
        """`{"prediction", "label", "confidence", "scores": {label: score}}`.

        Of a model with many labels, as many scores as the bundle's option `top_k` says.
        """
        return classification_to_plain(output, _most_scores(config))


IMAGE_CLASSIFICATION = ImageClassification()


def _most_scores(config: TaskConfig) -> int:
    """How many scores are shown as the bundle states it; 0 = all."""
    stated = config.options.get("top_k", 0)
    return stated if isinstance(stated, int) and stated > 0 else 0
