"""The task `image-to-text`: a picture in, the text that stands in it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.models.tasks.image import ImageTask, image_spec
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, TensorSpec
from wherry.models.tasks.text import texts_to_tensor


class TextLine(msgspec.Struct):
    """One line of text in a picture."""

    text: str
    score: float
    """0 to 1: how sure the model is of its characters."""
    corners: np.ndarray
    """float32 [4, 2]: x and y in pixels of the client's picture, from the line's top left on in
    reading direction: top left, top right, bottom right, bottom left."""


class ImageText(TaskOutput, kw_only=True):
    """The text of one picture."""

    lines: list[TextLine] = msgspec.field(default_factory=list[TextLine])
    """From top to bottom, from left to right; empty for models that only write a text."""
    text: str
    """All of it; of lines, joined by line feeds."""


class ImageToText(ImageTask):
    """A picture in, a text out."""

    name = "image-to-text"
    output_type = ImageText

    def signature(self, config: TaskConfig) -> Signature:
        """Pictures in, texts out."""
        return Signature((image_spec(config),), (TensorSpec("text", "BYTES", (-1,)),))

    def to_tensors(self, outputs: Sequence[ImageText], config: TaskConfig) -> dict[str, np.ndarray]:
        """A text a picture."""
        return {"text": texts_to_tensor([output.text for output in outputs])}

    def to_plain(self, output: ImageText, config: TaskConfig) -> dict[str, Any]:
        """`{"text", "lines": [{"text", "score", "corners": [[x, y], …]}]}`."""
        lines = [
            {"text": line.text, "score": line.score, "corners": line.corners.tolist()}
            for line in output.lines
        ]
        return {"prediction": output.text, "text": output.text, "lines": lines}


IMAGE_TO_TEXT = ImageToText()
