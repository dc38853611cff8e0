# pyright: standard
"""Writes an ONNX file node by node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8

Array = np.ndarray[Any, np.dtype[Any]]
Shape = Sequence[int | str]

element_by_type: dict[str, int] = {
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


class OnnxWriter:
    """A graph in the making: values are named by text, and come before what uses them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, Array] = {}
        self._count = 0

    def input(self, name: str, shape: Shape, dtype: str = "float32") -> str:
        """An input of the graph; a dimension that is a text is free."""
        info = helper.make_tensor_value_info(name, element_by_type[dtype], list(shape))
        self._inputs.append(info)
        return name

    def output(self, name: str, shape: Shape | None = None, dtype: str = "float32") -> None:
        """Let the value `name` be an output of the graph; its shape is inferred if none is given."""
        sizes = None if shape is None else list(shape)
        info = helper.make_tensor_value_info(name, element_by_type[dtype], sizes)
        self._outputs.append(info)

    def constant(self, value: Any, name: str = "") -> str:
        """A constant value."""
        name = name or self._new_name("constant")
        self._constants[name] = np.array(value)
        return name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """An operator with one output, by the name it is given or a new one."""
        output = output or self._new_name(kind.lower())
        self.nodes(kind, inputs, [output], **attributes)
        return output

    def nodes(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> None:
        """An operator with any number of outputs."""
        self._nodes.append(helper.make_node(kind, list(inputs), list(outputs), **attributes))

    def _new_name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"

    def write(self, path: Path) -> None:
        """Write the file; constants that nothing uses are left out.

        Raises:
            onnx.checker.ValidationError: the graph is not a valid one.
            onnx.shape_inference.InferenceError: its shapes do not fit one another.
        """
        used = {name for node in self._nodes for name in node.input}
        graph = helper.make_graph(
            self._nodes,
            self._name,
            self._inputs,
            self._outputs,
            [
                numpy_helper.from_array(value, name)
                for name, value in self._constants.items()
                if name in used
            ],
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())
