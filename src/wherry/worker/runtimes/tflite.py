# pyright: standard
"""TensorFlow Lite files with LiteRT. What a graph does for a task: `wherry.worker.runtimes.graphs`.

Weights may be quantised; inputs and outputs that are (int8, uint8 with a scale) are shown as FP32 to
every task but `tensor`, whose clients get them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.task import type_by_datatype
from wherry.worker.runtimes.graphs.graph import Array, Graph, GraphTensor, Quantisation
from wherry.worker.runtimes.graphs.runtime import GraphRuntime

DATATYPE_BY_DTYPE = {np.dtype(kind): name for name, kind in type_by_datatype.items()}
QUANTISED = (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16))


class Place(msgspec.Struct, frozen=True):
    """Where a tensor is in the interpreter, and what its whole numbers mean."""

    index: int
    dtype: np.dtype[Any]
    scale: float = 0.0
    """`value = (number - zero) * scale`; 0 = the numbers are the values."""
    zero: int = 0


class TfliteRuntime(GraphRuntime):
    """One model. One thread computes; more workers serve more."""

    _shows_numbers = False

    def load(self, bundle: Bundle, device: str) -> None:
        """See `GraphRuntime.load`."""
        self._shows_numbers = bundle.manifest.task == "tensor"
        super().load(bundle, device)

    def open_graph(self, path: Path, device: str) -> Graph:
        """A TensorFlow Lite file in an interpreter of its own."""
        if device != "cpu":
            raise InvalidInput(
                f"the tflite runtime has no device {device!r}", hint="place the model on 'cpu'"
            )
        try:
            interpreter = Interpreter(model_path=str(path), num_threads=1)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise FormatNotAllowed(
                f"{path.name!r} cannot be opened as a TensorFlow Lite model: {_first_line(error)}",
                hint="convert it again, with built-in operators only",
            ) from error
        return TfliteGraph(interpreter, path.name, shows_numbers=self._shows_numbers)


class TfliteGraph(Graph):
    """An interpreter of LiteRT."""

    def __init__(self, interpreter: Interpreter, file_name: str, *, shows_numbers: bool) -> None:
        self._interpreter: Any = interpreter  # its annotations are too wide to use
        self._places: dict[str, Place] = {}
        self._shows_numbers = shows_numbers
        super().__init__(
            file_name,
            [self._read(each, file_name) for each in interpreter.get_input_details()],
            [self._read(each, file_name) for each in interpreter.get_output_details()],
        )

    def _read(self, details: Mapping[str, Any], file_name: str) -> GraphTensor:
        dtype = np.dtype(details["dtype"])
        if dtype not in DATATYPE_BY_DTYPE:
            raise FormatNotAllowed(
                f"{file_name!r} has {details['name']!r} of type {dtype}, which is not served"
            )
        scale, zero = map(float, details["quantization"])
        if self._shows_numbers or dtype not in QUANTISED:
            scale, zero = 0.0, 0
        self._places[details["name"]] = Place(details["index"], dtype, scale, int(zero))
        datatype = "FP32" if scale else DATATYPE_BY_DTYPE[dtype]
        signature = details["shape_signature"].tolist() or details["shape"].tolist()
        shape = tuple(None if size < 0 else size for size in signature)
        kept = Quantisation(scale, int(zero), int(np.iinfo(dtype).min)) if scale else None
        return GraphTensor(details["name"], datatype, shape, kept)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """See `Graph.run`."""
        try:
            self._resize(feeds)
            for name, array in feeds.items():
                place = self._places[name]
                self._interpreter.set_tensor(place.index, _to_numbers(array, place))
        except (ValueError, RuntimeError) as error:
            raise InvalidInput(f"the input does not fit the model: {_first_line(error)}") from error
        try:
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise ModelFailed("the model failed on this input") from error
        names = outputs or [each.name for each in self.outputs]
        return [self._get(self._places[name]) for name in names]

    def _resize(self, feeds: Mapping[str, Array]) -> None:
        """Free dimensions take the size of the input; the others refuse another."""
        is_changed = False
        shapes = {each["name"]: each["shape"] for each in self._interpreter.get_input_details()}
        for tensor in self.inputs:
            wanted = feeds[tensor.name].shape
            if tuple(shapes[tensor.name]) == wanted:
                continue
            self._interpreter.resize_tensor_input(
                self._places[tensor.name].index, wanted, strict=True
            )
            is_changed = True
        if is_changed:
            self._interpreter.allocate_tensors()

    def _get(self, place: Place) -> Array:
        numbers = self._interpreter.get_tensor(place.index)
        if not place.scale:
            return numbers
        return (numbers.astype(np.float32) - np.float32(place.zero)) * np.float32(place.scale)


def _to_numbers(array: Array, place: Place) -> Array:
    if not place.scale:
        return np.ascontiguousarray(array)
    limits = np.iinfo(place.dtype)
    numbers = np.rint(array / np.float32(place.scale)) + place.zero
    return np.clip(numbers, limits.min, limits.max).astype(place.dtype)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
