# pyright: standard, reportMissingImports=false, reportMissingModuleSource=false
"""SavedModels with TensorFlow. What a graph does for a task: `wherry.worker.runtimes.graphs`.

A SavedModel has named functions; `[options] function` names the one that is served (default:
`serving_default`). Its operators were checked when it was imported (`models/trust/saved_model.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tensorflow as tf

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options
from wherry.worker.runtimes.graphs.graph import Array, Graph, GraphTensor
from wherry.worker.runtimes.graphs.runtime import GraphRuntime

DATATYPES = {
    tf.bool: "BOOL",
    tf.uint8: "UINT8",
    tf.uint16: "UINT16",
    tf.uint32: "UINT32",
    tf.uint64: "UINT64",
    tf.int8: "INT8",
    tf.int16: "INT16",
    tf.int32: "INT32",
    tf.int64: "INT64",
    tf.float16: "FP16",
    tf.float32: "FP32",
    tf.float64: "FP64",
    tf.string: "BYTES",
}


class TensorflowOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    function: str = "serving_default"


class TensorflowRuntime(GraphRuntime):
    """One SavedModel. One thread computes; more workers serve more."""

    _function = TensorflowOptions().function

    def load(self, bundle: Bundle, device: str) -> None:
        """See `GraphRuntime.load`."""
        self._function = read_options(bundle.manifest.options, TensorflowOptions).function
        super().load(bundle, device)

    def open_graph(self, path: Path, device: str) -> Graph:
        """The folder that a `saved_model.pb` is in."""
        if device != "cpu":
            raise InvalidInput(
                f"the tensorflow runtime has no device {device!r}", hint="place it on 'cpu'"
            )
        try:
            loaded: Any = tf.saved_model.load(str(path.parent))
            functions = dict(loaded.signatures)
        except (tf.errors.OpError, OSError, ValueError, AttributeError, KeyError) as error:
            raise FormatNotAllowed(
                f"{path.name!r} cannot be opened with TensorFlow {tf.__version__}: "
                f"{_first_line(error)}",
                hint="export it again: model.export(folder), or tf.saved_model.save",
            ) from error
        if self._function not in functions:
            raise FormatNotAllowed(
                f"the SavedModel has no function {self._function!r}",
                hint=f"it has {', '.join(map(repr, functions)) or 'none'}: [options] function",
            )
        return TensorflowGraph(loaded, functions[self._function], path.name)


class TensorflowGraph(Graph):
    """One function of a SavedModel.

    Args:
        loaded: the SavedModel, which owns the variables.
        function: takes and gives tensors by name.
        file_name: for messages.
    """

    def __init__(self, loaded: Any, function: Any, file_name: str) -> None:
        _, inputs = function.structured_input_signature
        super().__init__(
            file_name,
            [_read_tensor(file_name, name, inputs[name]) for name in sorted(inputs)],
            [
                _read_tensor(file_name, name, spec)
                for name, spec in sorted(function.structured_outputs.items())
            ],
        )
        self._loaded = loaded
        self._function = function
        self._kinds = {name: spec.dtype for name, spec in inputs.items()}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """See `Graph.run`."""
        try:
            tensors = {name: tf.constant(feeds[name], kind) for name, kind in self._kinds.items()}
            found = self._function(**tensors)
        except (tf.errors.InvalidArgumentError, ValueError, TypeError) as error:
            raise InvalidInput(f"the input does not fit the model: {_first_line(error)}") from error
        except tf.errors.OpError as error:
            raise ModelFailed("the model failed on this input") from error
        return [_to_array(found[name]) for name in outputs or [each.name for each in self.outputs]]


def _to_array(tensor: Any) -> Array:
    found = tensor.numpy()
    return found if isinstance(found, np.ndarray) else np.asarray(found, dtype=_kind_of(found))


def _kind_of(value: Any) -> Any:
    """Of a tensor without dimensions: a text is an object, a number has its own type."""
    return object if isinstance(value, bytes) else getattr(value, "dtype", None)


def _read_tensor(file_name: str, name: str, spec: Any) -> GraphTensor:
    datatype = DATATYPES.get(spec.dtype)
    if datatype is None or spec.shape.rank is None:
        kind = getattr(spec.dtype, "name", spec.dtype)
        raise FormatNotAllowed(
            f"{file_name!r} has {name!r} of type {kind} and shape {spec.shape}, which is not served",
            hint="give the function an input_signature with types and numbers of dimensions",
        )
    return GraphTensor(name, datatype, tuple(spec.shape.as_list()))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
