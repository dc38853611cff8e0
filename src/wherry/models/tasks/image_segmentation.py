"""The task `image-segmentation`: a picture in, a label for each of its pixels out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from wherry.errors import InvalidInput
from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.image import ImageInput, ImageTask, image_spec
from wherry.models.tasks.image_fit import Frame, import_pillow
from wherry.models.tasks.png import png_text
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, Tensors, TensorSpec

MAX_LABELS = 256
"""Most labels: a pixel's is one byte."""
MAX_MASK_PIXELS = 16 << 20
"""Most pixels of a mask, so of the client's picture."""
MAX_TENSOR_PIXELS = 64 << 20
"""Most pixels of the class maps in one answer of tensors."""
ROUNDING = 1e-3
"""How far float noise may move a border, in pixels."""


class Mask(msgspec.Struct, kw_only=True):
    """Where one label is."""

    label: str
    score: float
    """Mean probability of the label over its pixels, 0 to 1."""
    pixels: np.ndarray
    """uint8 [height, width]: 255 where the label is, else 0."""


class Segmentation(TaskOutput, kw_only=True):
    """What the model saw, in its own pixels; the client's are made when the answer is written.

    That is most of the work beside the model's, and so it is done by another thread than the
    model's.
    """

    labels: tuple[str, ...]
    probabilities: np.ndarray
    """float32 [labels, height, width], of the picture as the model got it."""
    frame: Frame
    """From there to the client's picture."""
    size: tuple[int, int]
    """Height and width of the client's picture, upright."""

    def class_map(self) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest label of each of the client's pixels, uint8, and how likely, float32."""
        best = np.full(self.size, -1.0, dtype=np.float32)
        found = np.zeros(self.size, dtype=np.uint8)
        for number, plane in enumerate(self.probabilities):
            wide = self._to_original(plane)
            better = wide > best
            best[better] = wide[better]
            found[better] = number
        return found, np.clip(best, 0.0, 1.0)

    def _to_original(self, plane: np.ndarray) -> np.ndarray:
        """A plane in the client's pixels; those that the model did not see have what is nearest."""
        (height, width), image = self.size, import_pillow()
        down = _find_seen(self.frame.top, self.frame.scale_down, height, plane.shape[0])
        across = _find_seen(self.frame.left, self.frame.scale_across, width, plane.shape[1])
        resized = image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)).resize(
            (across.last - across.first, down.last - down.first),
            image.Resampling.BILINEAR,
            (across.low, down.low, across.high, down.high),
        )
        unseen = [(down.first, height - down.last), (across.first, width - across.last)]
        return np.pad(np.asarray(resized), unseen, mode="edge")

    def masks(self) -> Iterator[Mask]:
        """A mask for each label that some pixel has, in the order of the labels."""
        classes, scores = self.class_map()
        for number, label in enumerate(self.labels):
            is_here = classes == number
            if is_here.any():
                yield Mask(
                    label=label,
                    score=float(scores[is_here].mean(dtype=np.float64)),
                    pixels=is_here.astype(np.uint8) * np.uint8(255),
                )


class ImageSegmentation(ImageTask):
    """A picture in, masks out."""

    name = "image-segmentation"
    input_type = ImageInput
    output_type = Segmentation
    is_slow_to_encode = True

    def signature(self, config: TaskConfig) -> Signature:
        """Pictures of one size in; the number of each pixel's label, and its probability, out."""
        outputs = (
            TensorSpec("class_map", "UINT8", (-1, -1, -1)),
            TensorSpec("scores", "FP32", (-1, -1, -1)),
        )
        return Signature((image_spec(config),), outputs)

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[ImageInput]:
        """One item for each row of `image`."""
        return [check_size(each) for each in super().from_tensors(tensors, config)]

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> ImageInput:
        """`{"image": X}`."""
        return check_size(super().from_plain(body, config))

    def to_tensors(
        self, outputs: Sequence[Segmentation], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """`class_map` and `scores`, [n, height, width], in pixels of the client's pictures."""
        sizes = {output.size for output in outputs}
        if len(sizes) > 1:
            raise InvalidInput(
                "the pictures have different sizes, and tensors have one",
                hint="send them one by one",
                param="image",
            )
        height, width = sizes.pop() if sizes else (0, 0)
        if len(outputs) * height * width > MAX_TENSOR_PIXELS:
            raise InvalidInput(
                f"the pictures have more than {MAX_TENSOR_PIXELS} pixels together",
                hint="send fewer or smaller ones at once",
                param="image",
            )
        class_map = np.empty((len(outputs), height, width), dtype=np.uint8)
        scores = np.empty((len(outputs), height, width), dtype=np.float32)
        for row, output in enumerate(outputs):
            class_map[row], scores[row] = output.class_map()
        return {"class_map": class_map, "scores": scores}

    def to_plain(self, output: Segmentation, config: TaskConfig) -> dict[str, Any]:
        """`{"segments": [{"label", "score", "mask": base64 of a PNG}], "height", "width"}`."""
        return {
            "segments": [
                {
                    "label": mask.label,
                    "score": shortest_floats(np.array([mask.score]))[0],
                    "mask": png_text(mask.pixels),
                }
                for mask in output.masks()
            ],
            "content_type": "image/png",
            "height": output.size[0],
            "width": output.size[1],
        }


IMAGE_SEGMENTATION = ImageSegmentation()


def check_size(item: ImageInput) -> ImageInput:
    """The picture, if masks of its size can be made; a JPEG may be larger than what was decoded."""
    height, width = item.size
    if height * width > MAX_MASK_PIXELS:
        raise InvalidInput(
            f"the picture has {width} x {height} pixels, the limit is {MAX_MASK_PIXELS} in all",
            hint="make it smaller",
            param="image",
        )
    return item


class _Seen(NamedTuple):
    """Along one side: which of the client's pixels the model saw, and where in the map they are."""

    first: int
    last: int
    low: float
    high: float


def _find_seen(start: float, scale: float, size: int, map_size: int) -> _Seen:
    """Of `size` pixels of the client's; a place of the map is `(place + start) * scale` of them."""
    first = min(size - 1, max(0, math.ceil(start * scale - ROUNDING)))
    last = max(first + 1, min(size, math.floor((map_size + start) * scale + ROUNDING)))
    low = min(max(0.0, first / scale - start), map_size - ROUNDING)
    high = max(low + ROUNDING, min(float(map_size), last / scale - start))
    return _Seen(first, last, low, high)
