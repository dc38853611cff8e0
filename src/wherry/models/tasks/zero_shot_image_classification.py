"""The task `zero-shot-image-classification`: a picture and labels in, a score for each label out."""

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
)
from wherry.models.tasks.image import ImageInput, ImageTask, image_spec
from wherry.models.tasks.task import Signature, TaskConfig, Tensors, TensorSpec
from wherry.models.tasks.text import check_text

MAX_CANDIDATES = 256
"""Most labels of one picture."""
MAX_LABEL_CHARACTERS = 500
TEMPLATE = "This is a photo of {}."
"""Hugging Face's own."""
LABELS = "candidate_labels"


class LabelledPicture(msgspec.Struct):
    """A picture, and the labels that it may have."""

    picture: ImageInput
    labels: tuple[str, ...]
    template: str = TEMPLATE
    """A sentence with `{}` where the label belongs."""

    @property
    def captions(self) -> tuple[str, ...]:
        """What is compared with the picture."""
        return tuple(self.template.replace("{}", label) for label in self.labels)


class ZeroShotImageClassification:
    """A picture and labels in, which of them fits out."""

    name = "zero-shot-image-classification"
    media = "image"
    input_type = LabelledPicture
    output_type = Classification

    def __init__(self) -> None:
        self._pictures = ImageTask()

    def signature(self, config: TaskConfig) -> Signature:
        """Pictures and the labels of each in; the best label and a score for each out."""
        inputs = (image_spec(config), TensorSpec(LABELS, "BYTES", (-1, -1)))
        return classification_signature(inputs, TaskConfig())

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[LabelledPicture]:
        """One item for each row; one row of labels is for all pictures."""
        others = {name: each for name, each in tensors.items() if name != LABELS}
        pictures = self._pictures.from_tensors(others, config)
        rows = _label_rows(tensors, len(pictures))
        template = _template(config.options.get("hypothesis_template"), config)
        return [
            LabelledPicture(picture, check_labels(row, config), template)
            for picture, row in zip(pictures, rows, strict=True)
        ]

    def to_tensors(
        self, outputs: Sequence[Classification], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """Tensors `label` and `scores`."""
        return classifications_to_tensors(outputs, TaskConfig())

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> LabelledPicture:
        """`{"image": X, "candidate_labels": ["cat", "dog"], "hypothesis_template"?}`."""
        picture = self._pictures.from_plain(body, config)
        stated = body.get("hypothesis_template")
        if stated is None:
            stated = config.options.get("hypothesis_template")
        return LabelledPicture(
            picture, check_labels(body.get(LABELS), config), _template(stated, config)
        )

    def to_plain(self, output: Classification, config: TaskConfig) -> dict[str, Any]:
        """`{"prediction", "label", "confidence", "scores": {label: score}}`."""
        return classification_to_plain(output)


ZERO_SHOT_IMAGE_CLASSIFICATION = ZeroShotImageClassification()


def check_labels(value: object, config: TaskConfig) -> tuple[str, ...]:
    """Candidate labels of a request; `InvalidInput` if there are none, too many or two equal ones."""
    if not isinstance(value, list | tuple) or not value:
        raise InvalidInput(f"{LABELS!r} must be a list of at least one text", param=LABELS)
    if len(value) > MAX_CANDIDATES:
        raise InvalidInput(
            f"{LABELS!r} has {len(value)} labels, the limit is {MAX_CANDIDATES}", param=LABELS
        )
    labels = tuple(check_text(each, config, LABELS) for each in value)
    if max(map(len, labels)) > MAX_LABEL_CHARACTERS:
        raise InvalidInput(f"a label has more than {MAX_LABEL_CHARACTERS} characters", param=LABELS)
    if len(set(labels)) < len(labels):
        raise InvalidInput(f"{LABELS!r} has a label twice", param=LABELS)
    return labels


def _template(value: object, config: TaskConfig) -> str:
    if value is None:
        return TEMPLATE
    text = check_text(value, config, "hypothesis_template")
    if "{}" not in text or len(text) > MAX_LABEL_CHARACTERS:
        raise InvalidInput(
            f"'hypothesis_template' must have {{}} where the label belongs, and at most "
            f"{MAX_LABEL_CHARACTERS} characters",
            param="hypothesis_template",
        )
    return text


def _label_rows(tensors: Tensors, count: int) -> list[list[str]]:
    tensor = tensors.get(LABELS)
    if tensor is None or tensor.dtype != object or tensor.ndim not in (1, 2):
        raise InvalidInput(f"the tensor {LABELS!r} must be BYTES [n, labels]", param=LABELS)
    table = tensor[np.newaxis] if tensor.ndim == 1 else tensor
    if len(table) not in (1, count):
        raise InvalidInput(
            f"there are {count} pictures and {len(table)} rows of {LABELS!r}", param=LABELS
        )
    if table.shape[1] > MAX_CANDIDATES:
        raise InvalidInput(f"{LABELS!r} has over {MAX_CANDIDATES} labels", param=LABELS)
    try:
        rows = [[bytes(each).decode() for each in row] for row in table]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"a label is not valid UTF-8: {error}", param=LABELS) from error
    return rows * count if len(rows) == 1 else rows
