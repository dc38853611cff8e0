"""Hugging Face's shapes of tasks that look at pictures, or make one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Reply
from wherry.models.codecs.hf_request import HfRequest, reply_json
from wherry.models.codecs.hf_texts import (
    Vectors,
    read_label_parameters,
    scored_labels,
)
from wherry.models.tasks.classification import Classification, shortest_floats
from wherry.models.tasks.image import read_image
from wherry.models.tasks.image_segmentation import Segmentation, check_size
from wherry.models.tasks.image_to_text import ImageText
from wherry.models.tasks.object_detection import CORNERS, Detection, DetectionInput
from wherry.models.tasks.png import CONTENT_TYPE, encode_png, png_text
from wherry.models.tasks.task import TaskInput
from wherry.models.tasks.text_to_image import (
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    TEXT_TO_IMAGE,
    Picture,
)
from wherry.models.tasks.zero_shot_image_classification import ZERO_SHOT_IMAGE_CLASSIFICATION

DEFAULT_LABELS = 5
"""Labels of a picture that are told unless the client says how many: Hugging Face's own."""
JAVASCRIPT_CLIENT = "@huggingface/inference"
"""In `User-Agent`."""

Share = Annotated[float, Meta(ge=0, le=1)]


class PictureLabels:
    """`image-classification`."""

    def __init__(self, request: HfRequest) -> None:
        self._top_k = read_label_parameters(request).top_k or DEFAULT_LABELS
        self.items = [read_image(request.inputs, request.config)]

    def answer(self, outputs: Sequence[Classification]) -> Reply:
        """`[{"label", "score"}, …]`, the best first."""
        return reply_json(scored_labels(outputs[0], self._top_k))


class ChosenPictureLabels:
    """`zero-shot-image-classification`: the client's own labels for a picture."""

    def __init__(self, request: HfRequest) -> None:
        fields = {**request.parameters, "image": request.inputs}
        self.items = [ZERO_SHOT_IMAGE_CLASSIFICATION.from_plain(fields, request.config)]

    def answer(self, outputs: Sequence[Classification]) -> Reply:
        """`[{"label", "score"}, …]`, the best first."""
        return reply_json(scored_labels(outputs[0], None))


# ------------------------------------------------------------------------------ places


class DetectionParameters(msgspec.Struct):
    """Of `object-detection`."""

    threshold: Share | None = None


class Box(msgspec.Struct):
    """Whole pixels of the client's picture."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class FoundObject(msgspec.Struct):
    """One line of an answer."""

    label: str
    score: float
    box: Box


class Objects:
    """`object-detection`."""

    def __init__(self, request: HfRequest) -> None:
        threshold = request.read_parameters(DetectionParameters).threshold
        self.items = [DetectionInput(read_image(request.inputs, request.config), threshold)]

    def answer(self, outputs: Sequence[Detection]) -> Reply:
        """`[{"label", "score", "box"}, …]`, the surest first."""
        (output,) = outputs
        corners: list[list[int]] = np.rint(output.boxes).astype(np.int64).tolist()
        lines = zip(output.labels, shortest_floats(output.scores), corners, strict=True)
        return reply_json(
            [
                FoundObject(label, score, Box(**dict(zip(CORNERS, box, strict=True))))
                for label, score, box in lines
            ]
        )


class SegmentationParameters(msgspec.Struct):
    """Of `image-segmentation`; the areas of each label are its pixels, so there is no other."""

    threshold: Share = 0.0
    """Least score of a mask."""
    subtask: str | None = None


class FoundSegment(msgspec.Struct):
    """One line of an answer."""

    label: str
    score: float
    mask: str
    """A PNG of the picture's size in base64: white where the label is."""


class Segments:
    """`image-segmentation`."""

    def __init__(self, request: HfRequest) -> None:
        parameters = request.read_parameters(SegmentationParameters)
        if parameters.subtask not in (None, "semantic"):
            raise InvalidInput(
                f"the model finds no {parameters.subtask!r:.100} segments",
                hint="send 'semantic', or leave it out",
                param="parameters.subtask",
            )
        self._threshold = parameters.threshold
        self.items = [check_size(read_image(request.inputs, request.config))]

    def answer(self, outputs: Sequence[Segmentation]) -> Reply:
        """`[{"label", "score", "mask"}, …]`, the surest first."""
        masks = [mask for mask in outputs[0].masks() if mask.score >= self._threshold]
        masks.sort(key=lambda mask: -mask.score)
        return reply_json(
            [FoundSegment(mask.label, mask.score, png_text(mask.pixels)) for mask in masks]
        )


# ------------------------------------------------------------------------------ texts, vectors


class GeneratedText(msgspec.Struct):
    """The one line of an answer."""

    generated_text: str


class PictureText:
    """`image-to-text`."""

    def __init__(self, request: HfRequest) -> None:
        self.items = [read_image(request.inputs, request.config)]
        self._takes_one = JAVASCRIPT_CLIENT in request.call.headers.get("user-agent", "")

    def answer(self, outputs: Sequence[ImageText]) -> Reply:
        """`[{"generated_text"}]`, without the list for the client that takes none."""
        text = GeneratedText(outputs[0].text)
        return reply_json(text if self._takes_one else [text])


class PictureVectors(Vectors):
    """`image-feature-extraction`: the vector of a picture, or of a text (`{"text": …}`)."""

    def read_items(self, request: HfRequest) -> list[TaskInput]:
        """The one picture, or the one text."""
        fields = request.inputs if isinstance(request.inputs, dict) else {"image": request.inputs}
        return [request.task.from_plain(fields, request.config)]


# ------------------------------------------------------------------------------ made pictures


class PictureParameters(msgspec.Struct):
    """Of `text-to-image`; `scheduler` and the like are the model's own choice."""

    guidance_scale: Annotated[float, Meta(ge=0, le=MAX_GUIDANCE)] | None = None
    height: Annotated[int, Meta(ge=1, le=MAX_SIDE)] | None = None
    negative_prompt: str | None = None
    num_inference_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] | None = None
    width: Annotated[int, Meta(ge=1, le=MAX_SIDE)] | None = None


class MadePicture:
    """`text-to-image`: the answer is a file, unless the client accepts nothing but JSON."""

    def __init__(self, request: HfRequest) -> None:
        self._config = request.config
        self._wants_json = request.call.headers.get("accept", "").startswith("application/json")
        parameters = request.read_parameters(PictureParameters)
        fields: dict[str, Any] = {
            "prompt": request.text(),
            "negative_prompt": parameters.negative_prompt,
            "seed": parameters.seed,
            "height": parameters.height,
            "width": parameters.width,
            "steps": parameters.num_inference_steps,
            "guidance": parameters.guidance_scale,
        }
        self.items = [TEXT_TO_IMAGE.from_plain(fields, request.config)]

    def answer(self, outputs: Sequence[Picture]) -> Reply:
        """A PNG."""
        (output,) = outputs
        if self._wants_json:
            return reply_json(TEXT_TO_IMAGE.to_plain(output, self._config))
        return Reply(encode_png(output.sized()), CONTENT_TYPE)
