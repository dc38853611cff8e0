# pyright: standard
"""The recipe `digit-pictures`: draws handwritten digits, learnt from 5 000 pictures of MNIST.

The pictures of a digit are its mean, plus a few directions in which they differ (its principal
components), each as far as noise says; a steep curve then makes ink of grey. That is the smallest
generator that makes what nobody wrote, and it is a graph of six operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from wherry.learning.convert.onnx_writer import OnnxWriter
from wherry.learning.mnist import PIXELS, SIDE, SOURCE, SOURCES, read_pictures
from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.models.bundle import Manifest

FILE = "model.onnx"
DIGITS = 10
NOISE_SCALE = 0.8
STEEPNESS = 8.0
"""Of the curve that makes ink of grey."""
JUDGED = 20
"""Pictures of each digit that are judged."""
NEIGHBOURS = 3
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Array = np.ndarray[Any, np.dtype[Any]]


class DigitPicturesParameters(Parameters):
    """How the model is trained."""

    directions: Annotated[int, Meta(ge=1, le=64)] = 24
    """In which pictures of a digit may differ."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    """Which fifth of the pictures judges what is drawn."""


class DigitPicturesRecipe:
    """See the module's docstring."""

    name = "digit-pictures"
    summary = "draws handwritten digits 0 to 9 (5 000 pictures of MNIST, seconds)"
    parameters = DigitPicturesParameters
    sources: Mapping[str, str] = SOURCES

    def run(
        self,
        parameters: DigitPicturesParameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Learn, judge, write the bundle."""
        progress("reading", 0, DIGITS + 1)
        pictures, digits = read_pictures(sources[SOURCE])
        numbers = pictures.reshape(-1, PIXELS).astype(np.float32) / 255
        order = np.random.default_rng(parameters.seed).permutation(len(digits))
        judges, learnt = np.split(order, [len(order) // 5])
        means, directions = learn(numbers[learnt], digits[learnt], parameters.directions, progress)
        drawn = draw(means, directions, parameters.seed)
        agreement = judge(drawn, numbers[judges], digits[judges])
        write_graph(means, directions, target / FILE)
        manifest = write_manifest(target, describe_model(agreement))
        progress("done", DIGITS + 1, DIGITS + 1)
        return manifest


DIGIT_PICTURES = DigitPicturesRecipe()


def learn(numbers: Array, digits: Array, count: int, progress: Progress) -> tuple[Array, Array]:
    """Of each digit the mean, [10, 784], and directions scaled to their spread, [10, count, 784]."""
    means = np.empty((DIGITS, PIXELS), dtype=np.float32)
    directions = np.empty((DIGITS, count, PIXELS), dtype=np.float32)
    for digit in range(DIGITS):
        progress("learning", digit, DIGITS + 1)
        own = numbers[digits == digit].astype(np.float64)
        means[digit] = own.mean(axis=0)
        away = own - own.mean(axis=0)
        # fewer pictures than pixels: their small matrix has the same directions
        _, vectors = np.linalg.eigh(away @ away.T)
        chosen = vectors[:, ::-1][:, :count]
        # signs are arbitrary: the largest part is positive, so that every machine draws the same
        largest = np.abs(chosen).argmax(axis=0)
        chosen = chosen * np.sign(chosen[largest, np.arange(count)])
        directions[digit] = chosen.T @ away / np.sqrt(len(own))
    return means, directions


def draw(means: Array, directions: Array, seed: int) -> Array:
    """Some pictures of each digit as the graph draws them, [10, JUDGED, 784]."""
    shape = (DIGITS, JUDGED, directions.shape[1])
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * NOISE_SCALE
    light = means[:, np.newaxis] + noise @ directions
    return 1 / (1 + np.exp(-STEEPNESS * (light - 0.5)))


def judge(drawn: Array, pictures: Array, digits: Array) -> float:
    """Share of drawn pictures whose nearest real ones, unseen when learning, are of their digit."""
    flat = drawn.reshape(-1, PIXELS)
    # squared distances but for what all real pictures have in common
    distances = (pictures**2).sum(axis=1) - 2 * flat @ pictures.T
    nearest = digits[np.argsort(distances, axis=1)[:, :NEIGHBOURS]]
    votes = np.array([np.bincount(each, minlength=DIGITS).argmax() for each in nearest])
    return float((votes == np.repeat(np.arange(DIGITS), JUDGED)).mean())


def write_graph(means: Array, directions: Array, path: Path) -> None:
    """The drawing as ONNX: `noise` FP32 [n, directions] and `label` INT64 [n] to FP32 [n, 28, 28]."""
    writer = OnnxWriter("digit-pictures")
    noise = writer.input("noise", ("n", directions.shape[1]))
    label = writer.input("label", ("n",), "int64")
    axis = writer.constant(np.array([1], dtype=np.int64))
    own = writer.node("Gather", writer.constant(directions), label, axis=0)
    moved = writer.node("MatMul", writer.node("Unsqueeze", noise, axis), own)
    mean = writer.node("Gather", writer.constant(means), label, axis=0)
    light = writer.node("Add", writer.node("Squeeze", moved, axis), mean)
    steep = writer.node(
        "Mul",
        writer.node("Sub", light, writer.constant(np.float32(0.5))),
        writer.constant(np.float32(STEEPNESS)),
    )
    shape = writer.constant(np.array([-1, SIDE, SIDE], dtype=np.int64))
    writer.node("Reshape", writer.node("Sigmoid", steep), shape, output="image")
    writer.output("image", ("n", SIDE, SIDE))
    writer.write(path)


def describe_model(agreement: float) -> Manifest:
    """The manifest of the learnt model."""
    return Manifest(
        task="text-to-image",
        runtime="onnx",
        description="Draws a handwritten digit, 28 x 28 pixels, enlarged as one likes; of those "
        f"drawn, {agreement:.2f} are nearest to real ones of the same digit.",
        licence="BSD-3-Clause",
        source="recipe:digit-pictures",
        languages=("en",),
        good_at="trying out pictures on any laptop: a prompt that names a digit (7, seven)",
        bad_at="everything else: a prompt that names no digit gets one that the seed draws, and "
        "the answer says which",
        labels=tuple(str(digit) for digit in range(DIGITS)),
        files=(FILE,),
        options={
            "noise_scale": NOISE_SCALE,
            "words": {word: str(digit) for digit, word in enumerate(WORDS)},
            "unknown_prompt": "draw",
            "agreement": round(agreement, 4),
        },
        sample={"prompt": "a handwritten seven", "seed": 1},
    )
