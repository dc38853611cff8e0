# pyright: standard
"""A graph model of TensorFlow.js (`model.json` and its `.bin`) as ONNX.

Only the operators of the models that were compared with another framework's answer are known; any
other is refused, because a conversion that guesses gives a file that runs and is wrong.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.learning.convert.onnx_writer import OnnxWriter

MAX_JSON_BYTES = 16 << 20
MAX_WEIGHT_BYTES = 1 << 30

Array = np.ndarray[Any, np.dtype[Any]]

# ------------------------------------------------------------------------------ the file


class Dimension(msgspec.Struct):
    """One size of a shape; TensorFlow.js writes numbers as texts."""

    size: str | int = "0"


class Shape(msgspec.Struct):
    """Sizes, -1 for a free one."""

    dim: list[Dimension] = []


class Values(msgspec.Struct):
    """An attribute that is a list."""

    i: list[str | int] = []
    s: list[str] = []


class Attribute(msgspec.Struct):
    """One of these is set; texts are in base64."""

    s: str | None = None
    i: str | int | None = None
    f: float | None = None
    b: bool | None = None
    shape: Shape | None = None
    list: Values | None = None


class Node(msgspec.Struct):
    """An operator; inputs are `name`, or `name:1` for another output than the first."""

    name: str
    op: str
    input: list[str] = []
    attr: dict[str, Attribute] = {}

    def text(self, name: str, default: str) -> str:
        """An attribute that is a text."""
        found = self.attr.get(name)
        return base64.b64decode(found.s).decode() if found and found.s is not None else default

    def number(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        found = self.attr.get(name)
        return found.f if found and found.f is not None else default

    def flag(self, name: str) -> bool:
        """An attribute that is true or false; false by default."""
        found = self.attr.get(name)
        return bool(found and found.b)

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """An attribute that is a list of integers."""
        found = self.attr.get(name)
        listed = found.list.i if found and found.list else []
        return [int(each) for each in listed] or list(default)


class Topology(msgspec.Struct):
    """The graph."""

    node: list[Node]


class Quantization(msgspec.Struct):
    """How a weight is stored in fewer bits: as float16, or as `stored * scale + min`."""

    dtype: str
    scale: float = 1.0
    min: float = 0.0


class Weight(msgspec.Struct):
    """A constant of the graph; the bytes of all lie one after another."""

    name: str
    shape: list[int]
    dtype: str
    quantization: Quantization | None = None


class WeightGroup(msgspec.Struct):
    """Weights whose bytes lie in the files of `paths`, joined."""

    paths: list[str]
    weights: list[Weight]


class OutputInfo(msgspec.Struct):
    """What the signature says of an output."""

    name: str = ""


class FileSignature(msgspec.Struct):
    """Outputs by the names that clients use."""

    outputs: dict[str, OutputInfo] = {}


class GraphModel(msgspec.Struct, rename="camel"):
    """`model.json`."""

    model_topology: Topology
    weights_manifest: list[WeightGroup]
    signature: FileSignature = msgspec.field(default_factory=FileSignature)


stored_types = {"float16": "<f2", "float32": "<f4", "int32": "<i4", "uint8": "u1", "uint16": "<u2"}
value_types = {"float32": "float32", "int32": "int32"}


def read_graph_model(description: Path, weights: Path) -> tuple[GraphModel, dict[str, Array]]:
    """The description, and its constants by name; `InvalidInput` if the files do not fit."""
    for path, most in ((description, MAX_JSON_BYTES), (weights, MAX_WEIGHT_BYTES)):
        if path.stat().st_size > most:
            raise InvalidInput(f"{path.name!r} has more than {most} bytes")
    try:
        model = msgspec.json.decode(description.read_bytes(), type=GraphModel)
    except msgspec.MsgspecError as error:
        raise InvalidInput(f"{description.name!r} is not a TF.js graph model: {error}") from error
    groups = model.weights_manifest
    if len(groups) != 1 or len(groups[0].paths) != 1:
        raise InvalidInput("the weights must lie in one file")
    return model, read_weights(groups[0].weights, weights.read_bytes())


def read_weights(weights: Sequence[Weight], data: bytes) -> dict[str, Array]:
    """Constants by name, as the numbers that the graph computes with."""
    found: dict[str, Array] = {}
    start = 0
    for weight in weights:
        packed = weight.quantization
        stored = stored_types.get(packed.dtype if packed else weight.dtype)
        if stored is None or weight.dtype not in value_types:
            raise FormatNotAllowed(f"the weight {weight.name!r} has a type that is not known here")
        count, kind = int(np.prod(weight.shape, dtype=np.int64)), np.dtype(stored)
        if count < 0 or start + count * kind.itemsize > len(data):
            raise InvalidInput("the file of weights is cut off")
        array = np.frombuffer(data, kind, count, start)
        if packed and packed.dtype != "float16":
            array = array.astype(np.float32) * np.float32(packed.scale) + np.float32(packed.min)
        found[weight.name] = array.astype(value_types[weight.dtype]).reshape(weight.shape)
        start += count * kind.itemsize
    if start != len(data):
        raise InvalidInput(f"the file of weights has {len(data) - start} bytes too many")
    return found


# ------------------------------------------------------------------------------ the conversion


def convert_graph_model(
    description: Path, weights: Path, target: Path, outputs: Mapping[str, str] | None = None
) -> None:
    """Write the ONNX file of a graph model.

    Args:
        description: `model.json`.
        weights: Its one file of weights.
        target: Where the ONNX file goes.
        outputs: Names of wanted outputs → what they are called; by default those of the signature.

    Raises:
        FormatNotAllowed: an operator, or a form of one, is not known here.
        InvalidInput: the files are no such model, or do not fit together.
    """
    model, constants = read_graph_model(description, weights)
    converter = _Converter(constants, description.stem)
    for node in in_order(model.model_topology.node):
        converter.add(node)
    names = [bare(info.name or key) for key, info in model.signature.outputs.items()]
    converter.finish(outputs or {name: name for name in names}, target)


def bare(name: str) -> str:
    """A reference to a value as its name: the first output goes without number."""
    return name.lstrip("^").removesuffix(":0")


def in_order(nodes: Sequence[Node]) -> list[Node]:
    """Every node behind those that it needs."""
    by_name = {node.name: node for node in nodes}
    ordered: dict[str, Node] = {}
    opened: set[str] = set()
    for first in nodes:
        stack = [first]
        while stack:
            node = stack[-1]
            inputs = [bare(each).partition(":")[0] for each in node.input]
            missing = [name for name in inputs if name not in ordered]
            if node.name in ordered or not missing:
                ordered.setdefault(stack.pop().name, node)
                continue
            if node.name in opened or not all(name in by_name for name in missing):
                raise InvalidInput(f"the graph has a loop, or lacks an input of {node.name[:80]!r}")
            opened.add(node.name)
            stack += [by_name[name] for name in missing]
    return list(ordered.values())


class _Converter:
    """Adds node after node to an ONNX graph. TensorFlow's pictures are NHWC, ONNX's NCHW."""

    def __init__(self, constants: Mapping[str, Array], name: str) -> None:
        self._weights = constants
        self.writer = OnnxWriter(name)
        self._constants: dict[str, Array] = {}

    def add(self, node: Node) -> None:
        """Convert one node."""
        convert = CONVERSIONS.get(node.op)
        if convert is None:
            raise FormatNotAllowed(
                f"the operator {node.op!r} of {node.name[:80]!r} is not known here",
                hint="convert the model where it was made, with tf2onnx",
            )
        inputs = [bare(each) for each in node.input]
        known = [self._constants[each] for each in inputs if each in self._constants]
        if node.op in FOLDED and len(known) == len(inputs) == 2:
            self._keep(node.name, FOLDED[node.op](*known))  # shapes are often computed
        else:
            convert(self, node, inputs)

    def finish(self, outputs: Mapping[str, str], target: Path) -> None:
        """Write the file."""
        for name, shown in outputs.items():
            if shown != name:
                self.writer.node("Identity", name, output=shown)
            self.writer.output(shown)
        self.writer.write(target)

    # ------------------------------------------------------------------ values

    def _known(self, name: str, node: Node) -> Array:
        """The value of an input that must be a constant."""
        if name not in self._constants:
            raise FormatNotAllowed(f"{node.op!r} of {node.name[:80]!r} takes {name[:80]!r} at run")
        return self._constants[name]

    def _keep(self, name: str, value: Array) -> None:
        self._constants[name] = value
        self.writer.constant(value, name)

    def _constant(self, node: Node, _inputs: list[str]) -> None:
        if node.name not in self._weights:
            raise InvalidInput(f"the constant {node.name[:80]!r} has no weights")
        self._keep(node.name, self._weights[node.name])

    def _placeholder(self, node: Node, _inputs: list[str]) -> None:
        shape = node.attr["shape"].shape if "shape" in node.attr else None
        if shape is None or not shape.dim:
            raise FormatNotAllowed(f"the input {node.name[:80]!r} has no shape")
        sizes = [int(each.size) for each in shape.dim]
        free = (f"{node.name}_{index}" for index in range(len(sizes)))
        self.writer.input(
            node.name, [size if size > 0 else name for size, name in zip(sizes, free, strict=True)]
        )

    def _sparse_to_dense(self, node: Node, inputs: list[str]) -> None:
        places, shape, values, default = (self._known(each, node) for each in inputs)
        dense = np.full(shape, default)
        if places.size:
            dense[tuple(places.T)] = values
        self._keep(node.name, dense)

    # ------------------------------------------------------------------ numbers

    def _relu6(self, node: Node, inputs: list[str]) -> None:
        low, high = (self.writer.constant(np.float32(value)) for value in (0, 6))
        self.writer.node("Clip", inputs[0], low, high, output=node.name)

    def _leaky_relu(self, node: Node, inputs: list[str]) -> None:
        alpha = node.number("alpha", 0.2)
        self.writer.node("LeakyRelu", *inputs, output=node.name, alpha=alpha)

    def _transpose(self, node: Node, inputs: list[str]) -> None:
        order = [int(each) for each in self._known(inputs[1], node)]
        self.writer.node("Transpose", inputs[0], output=node.name, perm=order)

    def _pad(self, node: Node, inputs: list[str]) -> None:
        # TensorFlow has [begin, end] for each dimension, ONNX all begins, then all ends
        amounts = self._known(inputs[1], node).astype(np.int64).T.reshape(-1)
        filler = inputs[2:] or [self.writer.constant(np.float32(0))]
        self.writer.node("Pad", inputs[0], self.writer.constant(amounts), *filler, output=node.name)

    def _concat(self, node: Node, inputs: list[str]) -> None:
        axis = int(self._known(inputs[-1], node))
        self.writer.node("Concat", *inputs[:-1], output=node.name, axis=axis)

    def _reshape(self, node: Node, inputs: list[str]) -> None:
        shape = self.writer.constant(self._known(inputs[1], node).astype(np.int64))
        self.writer.node("Reshape", inputs[0], shape, output=node.name)

    def _split(self, node: Node, inputs: list[str]) -> None:
        sizes = self._known(inputs[1], node).astype(np.int64)
        axis = int(self._known(inputs[2], node))
        names = [f"{node.name}:{index}" if index else node.name for index in range(len(sizes))]
        self.writer.nodes("Split", [inputs[0], self.writer.constant(sizes)], names, axis=axis)

    # ------------------------------------------------------------------ pictures

    def _channels_first(self, node: Node, value: str) -> str:
        if node.text("data_format", "NHWC") == "NCHW":
            return value
        return self.writer.node("Transpose", value, perm=[0, 3, 1, 2])

    def _finish_picture(self, node: Node, value: str) -> None:
        if node.text("data_format", "NHWC") == "NCHW":
            self.writer.node("Identity", value, output=node.name)
        else:
            self.writer.node("Transpose", value, output=node.name, perm=[0, 2, 3, 1])

    def _sides(self, node: Node, name: str) -> list[int]:
        """Height and width of an attribute that has a number for each dimension."""
        values = node.integers(name, (1, 1, 1, 1))
        return values[2:] if node.text("data_format", "NHWC") == "NCHW" else values[1:3]

    def _padding(self, node: Node) -> dict[str, Any]:
        way = node.text("padding", "VALID")
        if way == "EXPLICIT":
            pairs = node.integers("explicit_paddings")
            first = 4 if node.text("data_format", "NHWC") == "NCHW" else 2
            top, bottom, left, right = pairs[first : first + 4]
            return {"pads": [top, left, bottom, right]}
        return {"auto_pad": {"SAME": "SAME_UPPER", "VALID": "VALID"}[way]}

    def _convolve(self, node: Node, inputs: list[str]) -> None:
        kernel = self._known(inputs[1], node)
        height, width, channels, others = kernel.shape
        if node.op == "DepthwiseConv2dNative":
            groups = channels
            kernel = kernel.transpose(2, 3, 0, 1).reshape(channels * others, 1, height, width)
        else:
            groups, kernel = 1, kernel.transpose(3, 2, 0, 1)
        convolved = self.writer.node(
            "Conv",
            self._channels_first(node, inputs[0]),
            self.writer.constant(kernel),
            strides=self._sides(node, "strides"),
            dilations=self._sides(node, "dilations"),
            group=groups,
            **self._padding(node),
        )
        self._finish_picture(node, convolved)

    def _convolve_back(self, node: Node, inputs: list[str]) -> None:
        """The transposed convolution; the size of its output is an input."""
        kernel = self._known(inputs[1], node)  # height, width, channels out, channels in
        size = self._known(inputs[0], node)
        sides = size[2:] if node.text("data_format", "NHWC") == "NCHW" else size[1:3]
        if node.text("padding", "VALID") == "EXPLICIT":
            raise FormatNotAllowed(f"{node.op!r} with explicit padding is not known here")
        convolved = self.writer.node(
            "ConvTranspose",
            self._channels_first(node, inputs[2]),
            self.writer.constant(kernel.transpose(3, 2, 0, 1)),
            strides=self._sides(node, "strides"),
            output_shape=[int(side) for side in sides],
            **self._padding(node),
        )
        self._finish_picture(node, convolved)

    def _pool(self, node: Node, inputs: list[str]) -> None:
        pooled = self.writer.node(
            "MaxPool" if node.op == "MaxPool" else "AveragePool",
            self._channels_first(node, inputs[0]),
            kernel_shape=self._sides(node, "ksize"),
            strides=self._sides(node, "strides"),
            **self._padding(node),
        )
        self._finish_picture(node, pooled)

    def _resize(self, node: Node, inputs: list[str]) -> None:
        way = "half_pixel" if node.flag("half_pixel_centers") else "asymmetric"
        if node.flag("align_corners"):
            way = "align_corners"
        first = self.writer.node("Transpose", inputs[0], perm=[0, 3, 1, 2])
        kept = self.writer.node(
            "Slice",
            self.writer.node("Shape", first),
            self.writer.constant(np.array([0])),
            self.writer.constant(np.array([2])),
        )
        sides = self.writer.constant(self._known(inputs[1], node).astype(np.int64))
        sizes = self.writer.node("Concat", kept, sides, axis=0)
        resized = self.writer.node(
            "Resize", first, "", "", sizes, mode="linear", coordinate_transformation_mode=way
        )
        self.writer.node("Transpose", resized, output=node.name, perm=[0, 2, 3, 1])


Convert = Callable[[_Converter, Node, list[str]], None]


def _simple(kind: str) -> Convert:
    """An operator that ONNX has, too."""

    def convert(converter: _Converter, node: Node, inputs: list[str]) -> None:
        converter.writer.node(kind, *inputs, output=node.name)

    return convert


FOLDED: dict[str, Callable[[Array, Array], Array]] = {"Add": np.add, "AddV2": np.add}
"""Operators whose result is a constant if both inputs are."""

CONVERSIONS: dict[str, Convert] = {
    "Add": _simple("Add"),
    "AddN": _simple("Sum"),
    "AddV2": _simple("Add"),
    "AvgPool": _Converter._pool,
    "ConcatV2": _Converter._concat,
    "Const": _Converter._constant,
    "Conv2D": _Converter._convolve,
    "Conv2DBackpropInput": _Converter._convolve_back,
    "DepthwiseConv2dNative": _Converter._convolve,
    "Identity": _simple("Identity"),
    "LeakyRelu": _Converter._leaky_relu,
    "MaxPool": _Converter._pool,
    "Mul": _simple("Mul"),
    "Pad": _Converter._pad,
    "PadV2": _Converter._pad,
    "Placeholder": _Converter._placeholder,
    "Relu": _simple("Relu"),
    "Relu6": _Converter._relu6,
    "Reshape": _Converter._reshape,
    "ResizeBilinear": _Converter._resize,
    "Sigmoid": _simple("Sigmoid"),
    "SparseToDense": _Converter._sparse_to_dense,
    "SplitV": _Converter._split,
    "Transpose": _Converter._transpose,
}
"""Operator of TensorFlow → how it is done in ONNX."""
