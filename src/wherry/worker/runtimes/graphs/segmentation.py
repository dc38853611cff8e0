# pyright: standard
"""Graphs that say of each pixel what it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.image_fit import Frame
from wherry.models.tasks.image_segmentation import MAX_LABELS, Segmentation
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput
from wherry.worker.runtimes.graphs.graph import Array, OpenGraph
from wherry.worker.runtimes.graphs.pictures import ONE_PICTURE, PictureModel, Sight
from wherry.worker.runtimes.runtime import Prepared


class SegmentationOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    function: Literal["softmax", "sigmoid", "none"] = "softmax"
    """What makes probabilities of the numbers: `softmax` over the labels, `sigmoid` of the one
    channel that a model of foreground and background has, `none` if the graph gives them."""
    output_layout: Literal["auto", "NCHW", "NHWC"] = "auto"
    """Where the channels of the output are; `auto` looks for as many as there are labels."""


class SegmentationModel(PictureModel):
    """The task `image-segmentation`.

    The graph gives a number for each label and pixel, at any resolution; or one number a pixel, of
    the foreground: the bundle then names the background first.
    """

    usual_outputs = ("logits",)

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self.options = read_options(bundle.manifest.options, SegmentationOptions)
        super().__init__(open_graph, bundle)
        self.labels = bundle.manifest.labels
        if not 2 <= len(self.labels) <= MAX_LABELS:
            raise InvalidInput(
                f"the bundle names {len(self.labels)} labels, a segmenter has 2 to {MAX_LABELS}"
            )
        self._axis = self._find_channels(self.trial[0][0])

    def _find_channels(self, found: Array) -> int:
        """Which dimension of the output, rows included, has the labels."""
        axes = {"auto": (1, 3), "NCHW": (1,), "NHWC": (3,)}[self.options.output_layout]
        wanted = {len(self.labels), 1} if len(self.labels) == 2 else {len(self.labels)}
        for axis in axes if found.ndim == 4 else ():
            if found.shape[axis] in wanted:
                return axis
        raise FormatNotAllowed(
            f"output {self.outputs[0]!r} has shape {list(found.shape)}, and the bundle names "
            f"{len(self.labels)} labels",
            hint="name another with the option 'output', or set 'output_layout'",
        )

    def prepare(self, item: ImageInput) -> Prepared:
        """The picture as the graph's numbers, and the way back; safe in many threads."""
        sight = self.see(item)
        return Prepared(sight, group=sight.numbers.shape)

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One run for all pictures."""
        sights: list[Sight] = [prepared.payload for prepared in batch]
        found = self.forward_finite([sight.numbers for sight in sights])
        planes = np.moveaxis(found, self._axis, 1)
        return [
            self._output_of(picture, sight) for picture, sight in zip(planes, sights, strict=True)
        ]

    def _output_of(self, planes: Array, sight: Sight) -> Segmentation:
        height, width = self.pixels.size_of(sight.numbers)
        frame = coarser(sight.frame, height / planes.shape[1], width / planes.shape[2])
        return Segmentation(
            labels=self.labels,
            probabilities=self.to_probabilities(planes),
            frame=frame,
            size=sight.size,
            usage=ONE_PICTURE,
        )

    def to_probabilities(self, planes: Array) -> Array:
        """Probabilities of every label, [labels, height, width], of the graph's numbers."""
        if self.options.function == "softmax" and len(planes) > 1:
            powers = np.exp(planes - planes.max(axis=0))
            return powers / powers.sum(axis=0)
        if self.options.function == "sigmoid":
            planes = 0.5 * (1.0 + np.tanh(0.5 * planes))  # never overflows
        if len(planes) == 1:
            planes = np.concatenate([1.0 - planes, planes])
        return np.ascontiguousarray(planes)


def coarser(frame: Frame, down: float, across: float) -> Frame:
    """The way back from a map with so many pixels of the graph's picture in one of its own."""
    return Frame(
        frame.scale_down * down,
        frame.scale_across * across,
        frame.top / down,
        frame.left / across,
    )
