# pyright: standard
"""Graphs that make a picture of a label: noise and a class in, pixels out."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed, WherryError
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput
from wherry.models.tasks.text_to_image import Picture, PictureRequest
from wherry.worker.runtimes.graphs.graph import Array, GraphTensor, OpenGraph, rows_agree, trial
from wherry.worker.runtimes.graphs.pictures import ONE_PICTURE
from wherry.worker.runtimes.graphs.scores import check_rows
from wherry.worker.runtimes.runtime import Prepared

MAX_BATCH_ROWS = 16
DRAWN_SEEDS = 1 << 32
"""A seed that is drawn is below: every JSON reader can carry it."""
WORD = re.compile(r"\w+")


class GeneratorOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    noise_scale: float = 1.0
    """Standard deviation of the noise: less is surer and more alike."""
    output_range: tuple[float, float] = (0.0, 1.0)
    """The graph's numbers for black and white."""
    words: Mapping[str, str] = {}
    """Other words for labels, e.g. `{"seven" = "7"}`."""
    unknown_prompt: Literal["refuse", "draw"] = "refuse"
    """What a prompt without a label gets: an error, or a label that the seed draws."""


class Draft(msgspec.Struct):
    """What makes one picture."""

    noise: Array
    label: int
    seed: int
    size: tuple[int, int] | None


class PictureGenerator:
    """The task `text-to-image`, for a graph that knows a list of labels.

    It takes noise, FP32 [n, numbers], and a label: its number, [n], or FP32 [n, labels] with a one.
    """

    max_batch_cost = 0

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self.graph = open_graph(bundle.main_file)
        self.options = read_options(bundle.manifest.options, GeneratorOptions)
        low, high = self.options.output_range
        if low == high:
            raise InvalidInput("output_range must be two different numbers")
        self.labels = bundle.manifest.labels
        if not self.labels:
            raise InvalidInput("the bundle names no labels to make pictures of")
        self._label_of = Vocabulary(self.labels, self.options.words)
        self._noise, self._label = self._find_inputs()
        self._noise_numbers = self._count_noise()
        self.max_batch_rows = MAX_BATCH_ROWS if self._joins_rows() else 1

    def _find_inputs(self) -> tuple[GraphTensor, GraphTensor]:
        inputs = sorted(self.graph.inputs, key=self._is_label)
        if len(inputs) != 2 or self._is_label(inputs[0]) or not self._is_label(inputs[1]):
            raise FormatNotAllowed(
                f"{self.graph.file_name!r} does not take noise, FP32 [n, numbers], and a label, "
                f"[n] or FP32 [n, {len(self.labels)}]",
                hint="serve it with the task 'tensor'",
            )
        return inputs[0], inputs[1]

    def _count_noise(self) -> int:
        shape = self._noise.shape
        if self._noise.dtype != np.float32 or len(shape) != 2 or not isinstance(shape[1], int):
            raise FormatNotAllowed(f"input {self._noise.name!r} is not FP32 [n, numbers]")
        return shape[1]

    def _is_label(self, tensor: GraphTensor) -> bool:
        if tensor.dtype.kind in "iu":
            return len(tensor.shape) == 1
        return len(tensor.shape) == 2 and tensor.shape[1] == len(self.labels)

    def _joins_rows(self) -> bool:
        requests = [PictureRequest(prompt=self.labels[label], seed=7) for label in (0, -1)]
        drafts = [self.prepare(request).payload for request in requests]
        with trial(self.graph):
            alone = np.concatenate([self.forward([draft]) for draft in drafts])
        try:
            return self._noise.has_free_rows and rows_agree(alone, self.forward(drafts))
        except WherryError:  # free in the declaration, fixed inside
            return False

    def prepare(self, item: PictureRequest) -> Prepared:
        """The label that the prompt names, and noise of the seed alone; safe in many threads."""
        for name, default in (("negative_prompt", ""), ("steps", None), ("guidance", None)):
            if getattr(item, name) != default:
                raise InvalidInput(
                    f"the model makes a picture of a label in one step: it has no {name!r}",
                    hint="leave it out",
                    param=name,
                )
        seed = secrets.randbelow(DRAWN_SEEDS) if item.seed is None else item.seed
        random = np.random.default_rng(seed)
        noise = random.standard_normal(self._noise_numbers) * self.options.noise_scale
        label = self._find_label(item.prompt, random)
        return Prepared(Draft(noise.astype(np.float32), label, seed, item.size))

    def _find_label(self, prompt: str, random: np.random.Generator) -> int:
        found = self._label_of.find(prompt)
        if found is not None:
            return found
        if self.options.unknown_prompt == "draw":
            return int(random.integers(len(self.labels)))
        raise InvalidInput(
            "the prompt names nothing that the model knows",
            hint="it knows " + ", ".join(self.labels[:50]),
            param="prompt",
        )

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One run for all pictures."""
        drafts: list[Draft] = [prepared.payload for prepared in batch]
        low, high = self.options.output_range
        light = (self.forward(drafts) - low) * (255.0 / (high - low))
        pixels = np.clip(np.rint(light), 0, 255).astype(np.uint8)
        return [
            Picture(
                pixels=picture,
                seed=draft.seed,
                prompt=self.labels[draft.label],
                size=draft.size,
                usage=ONE_PICTURE,
            )
            for picture, draft in zip(pixels, drafts, strict=True)
        ]

    def forward(self, drafts: Sequence[Draft]) -> Array:
        """The graph's pictures, float32 [n, height, width, channels]."""
        labels = np.array([draft.label for draft in drafts])
        if self._label.dtype.kind == "f":
            labels = np.eye(len(self.labels))[labels]
        feeds = {
            self._noise.name: np.stack([draft.noise for draft in drafts]),
            self._label.name: labels.astype(self._label.dtype),
        }
        found = self.graph.run(feeds, [self.graph.outputs[0].name])[0]
        check_rows(found, len(drafts))
        if not np.isfinite(found).all():
            raise ModelFailed("the model answered with numbers that are not finite")
        return with_channels_last(found.astype(np.float32, copy=False))


class Vocabulary:
    """Finds a label in a prompt: whole words, of several labels the one with the most letters."""

    def __init__(self, labels: Sequence[str], words: Mapping[str, str]) -> None:
        numbers = {label: number for number, label in enumerate(labels)}
        unknown = [label for label in words.values() if label not in numbers]
        if unknown:
            raise InvalidInput(f"the option 'words' names {unknown[0]!r}, which is no label")
        names = {**numbers, **{word: numbers[label] for word, label in words.items()}}
        by_length = sorted(names, key=len, reverse=True)
        self._names = [(_spread(name), names[name]) for name in by_length if _spread(name).strip()]

    def find(self, prompt: str) -> int | None:
        """The label's number; None if the prompt names none."""
        spread = _spread(prompt)
        return next((number for name, number in self._names if name in spread), None)


def _spread(text: str) -> str:
    """The words of a text in lower case, a space around each."""
    return f" {' '.join(WORD.findall(text.casefold()))} "


def with_channels_last(found: Array) -> Array:
    """Pictures [n, height, width], [n, channels, height, width] or [n, height, width, channels]."""
    if found.ndim == 3:
        return found[:, :, :, np.newaxis]
    if found.ndim == 4 and found.shape[3] in (1, 3):
        return found
    if found.ndim == 4 and found.shape[1] in (1, 3):
        return found.transpose(0, 2, 3, 1)
    raise FormatNotAllowed(f"the graph gives shape {list(found.shape)}, which is not of pictures")
