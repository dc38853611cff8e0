# pyright: standard
"""The recipe `digits`: handwritten digits, from 5 000 pictures of MNIST.

Every pass shifts each picture by up to two pixels, so that a digit need not sit where the writers
of MNIST put it; a picture of dark ink on light paper is turned into its negative before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import sklearn
import skops.io
from msgspec import Meta
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from wherry.learning.mnist import PIXELS, SIDE, SOURCE, SOURCES, read_pictures
from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.models.bundle import Manifest
from wherry.models.tasks.png import png_url

FILE = "model.skops"


class DigitsParameters(Parameters):
    """How the model is trained."""

    passes: Annotated[int, Meta(ge=1, le=1000)] = 60
    """Times that all pictures are seen."""
    hidden: Annotated[int, Meta(ge=8, le=4096)] = 256
    """Units of the hidden layer."""
    shift_pixels: Annotated[int, Meta(ge=0, le=8)] = 2
    """How far a picture is moved at most, each way."""
    test_share: Annotated[float, Meta(ge=0.1, le=0.5)] = 0.2
    """Share of the pictures that the accuracy is measured on."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    """Decides which those are, and every random choice."""


class DigitsRecipe:
    """See the module's docstring."""

    name = "digits"
    summary = "handwritten digits 0 to 9 from pictures (5 000 pictures of MNIST, ten seconds)"
    parameters = DigitsParameters
    sources: Mapping[str, str] = SOURCES

    def run(
        self,
        parameters: DigitsParameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Train, measure, write the bundle."""
        progress("reading", 0, parameters.passes)
        pictures, digits = read_pictures(sources[SOURCE])
        train, test = train_test_split(
            np.arange(len(digits)),
            test_size=parameters.test_share,
            random_state=parameters.seed,
            stratify=digits,
        )
        model = train_model(pictures[train], digits[train], parameters, progress)
        accuracy = float(model.score(as_features(pictures[test]), digits[test]))
        skops.io.dump(model, target / FILE)
        return write_manifest(target, describe_model(accuracy, pictures[test[0]]))


DIGITS = DigitsRecipe()


def train_model(
    pictures: np.ndarray, digits: np.ndarray, parameters: DigitsParameters, progress: Progress
) -> MLPClassifier:
    """A network with one hidden layer; every pass sees other shifts."""
    random = np.random.default_rng(parameters.seed)
    model = MLPClassifier((parameters.hidden,), random_state=parameters.seed)
    for done in range(parameters.passes):
        progress("training", done, parameters.passes)
        # the last third takes smaller steps, to settle
        is_settling = done >= parameters.passes * 2 // 3
        model.set_params(learning_rate_init=3e-4 if is_settling else 1e-3)
        shifted = shift_pictures(pictures, parameters.shift_pixels, random)
        # batches are so small that threads wait for one another: one is three times as fast
        with threadpool_limits(1):
            model.partial_fit(as_features(shifted), digits, classes=np.arange(10))
    progress("training", parameters.passes, parameters.passes)
    # the optimizer only serves more training, and skops does not trust its type
    del model._optimizer  # pyright: ignore[reportAttributeAccessIssue]
    return model


def shift_pictures(pictures: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    """Each picture moved by up to `most` pixels both ways; black comes in from outside."""
    count = len(pictures)
    padded = np.pad(pictures, ((0, 0), (most, most), (most, most)))
    start = random.integers(0, 2 * most + 1, (2, count, 1, 1))
    side = np.arange(SIDE)
    rows, columns = start[0] + side[:, np.newaxis], start[1] + side
    return padded[np.arange(count)[:, np.newaxis, np.newaxis], rows, columns]


def as_features(pictures: np.ndarray) -> np.ndarray:
    """float32 [n, 784], 0 to 1: what the bundle's `pixel_scale` and `layout` do when serving."""
    return pictures.reshape(-1, PIXELS).astype(np.float32) * np.float32(1 / 255)


def describe_model(accuracy: float, picture: np.ndarray) -> Manifest:
    """The manifest of the trained model; `picture` becomes its sample."""
    return Manifest(
        task="image-classification",
        runtime="sklearn",
        description=f"A handwritten digit in a picture; accuracy {accuracy:.3f} on unseen ones.",
        licence="BSD-3-Clause",
        source="recipe:digits",
        good_at="one digit that fills the picture, light on dark or dark on light",
        bad_at="several digits, printed ones, and what is not a digit: it names one all the same",
        labels=tuple("0123456789"),
        files=(FILE,),
        options={
            "image_size": [SIDE, SIDE],
            "image_mode": "L",
            "invert": "auto",
            "pixel_scale": 1 / 255,
            "layout": "flat",
            "accuracy": round(accuracy, 4),
            "sklearn_version": sklearn.__version__,
        },
        sample={"image": png_url(picture)},
    )
