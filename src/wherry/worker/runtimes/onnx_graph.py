# pyright: standard
"""One ONNX graph opened with onnxruntime: what it takes and gives, and running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from onnxruntime.capi import (
    onnxruntime_pybind11_state as errors,  # pyright: ignore[reportAttributeAccessIssue] - compiled
)

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.tasks.task import Signature, TensorSpec, type_by_datatype

Array = np.ndarray[Any, np.dtype[Any]]

ORT_ERRORS = (
    errors.EPFail,
    errors.EngineError,
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoModel,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
    RuntimeError,
    ValueError,
)
"""What onnxruntime raises; its own classes share no base."""

datatype_by_ort_type = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

SAME = 5e-3
"""Largest difference, relative to the largest value, between a row alone and in a batch: float
noise is near 1e-6 (1e-3 in half precision); dynamic quantisation moves MiniLM by 0.1."""


class GraphTensor(msgspec.Struct, frozen=True):
    """An input or output of the graph."""

    name: str
    datatype: str
    shape: tuple[int | str | None, ...]
    """A size, the name of a free dimension, or None for a free one without a name."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of its elements."""
        return np.dtype(type_by_datatype.get(self.datatype, "O"))

    @property
    def spec(self) -> TensorSpec:
        """As the Open Inference Protocol shows it."""
        shape = tuple(size if isinstance(size, int) else -1 for size in self.shape)
        return TensorSpec(self.name, self.datatype, shape)

    @property
    def has_free_rows(self) -> bool:
        """Whether the first dimension may have any size."""
        return bool(self.shape) and not isinstance(self.shape[0], int)


class Graph:
    """An opened model; `run` may be called by one thread at a time."""

    def __init__(self, session: onnxruntime.InferenceSession, file_name: str) -> None:
        self._session = session
        self.file_name = file_name
        self.inputs = tuple(_read_tensor(each, file_name) for each in session.get_inputs())
        self.outputs = tuple(_read_tensor(each, file_name) for each in session.get_outputs())

    @property
    def signature(self) -> Signature:
        """The tensors of the graph."""
        return Signature(
            tuple(each.spec for each in self.inputs), tuple(each.spec for each in self.outputs)
        )

    def find_output(self, preferred: Sequence[str]) -> GraphTensor:
        """The first output with one of these names, else the first of all."""
        by_name = {each.name: each for each in self.outputs}
        for name in preferred:
            if name in by_name:
                return by_name[name]
        return self.outputs[0]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Outputs by name, in order; all of them by default.

        Raises:
            InvalidInput: onnxruntime says that an input does not fit the graph.
            ModelFailed: a node of the graph failed.
        """
        try:
            return self._session.run(outputs and list(outputs), dict(feeds))  # type: ignore[return-value]
        except (errors.InvalidArgument, ValueError) as error:
            raise InvalidInput(f"the input does not fit the model: {_first_line(error)}") from error
        except ORT_ERRORS as error:
            raise ModelFailed("the model failed on this input") from error


def open_graph(path: Path, device: str) -> Graph:
    """Open an ONNX file.

    Raises:
        FormatNotAllowed: onnxruntime cannot read or run it.
        InvalidInput: this onnxruntime has no such device.
    """
    try:
        session = onnxruntime.InferenceSession(
            str(path), _session_options(), providers=_providers(device)
        )
    except ORT_ERRORS as error:
        reason = _first_line(error).replace(str(path), path.name)
        raise FormatNotAllowed(
            f"{path.name!r} cannot be opened as an ONNX model: {reason}",
            hint="export it again, with operators of onnxruntime only",
        ) from error
    return Graph(session, path.name)


def _session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more workers rather than more threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Both keep the memory of every shape they saw. Without them MiniLM holds 164 MiB after mixed
    # lengths rather than 221, and is as fast.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # errors are raised; warnings would fill the log
    return options


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    kind, _, number = device.partition(":")
    if kind != "cuda" or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise InvalidInput(
            f"this onnxruntime has no device {device!r}",
            hint="pip install onnxruntime-gpu, or place the model on 'cpu'",
        )
    cuda = ("CUDAExecutionProvider", {"device_id": int(number or 0)})
    return [cuda, "CPUExecutionProvider"]


def _read_tensor(found: Any, file_name: str) -> GraphTensor:
    datatype = datatype_by_ort_type.get(found.type)
    if datatype is None:
        raise FormatNotAllowed(
            f"{file_name!r} has {found.name!r} of type {found.type}, which no protocol can carry",
            hint="scikit-learn models: convert with options={'zipmap': False}",
        )
    return GraphTensor(found.name, datatype, tuple(found.shape))


def _first_line(error: Exception) -> str:
    # "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : what" → "what"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rpartition(" : ")[2][:300]


@contextmanager
def trial(graph: Graph) -> Iterator[None]:
    """Inputs of ours at load: a graph that fails on them is broken, not the input wrong."""
    try:
        yield
    except FormatNotAllowed:
        raise
    except (InvalidInput, ModelFailed) as error:
        raise ModelFailed(f"{graph.file_name!r} fails on a trial input: {error.text}") from error


def rows_agree(alone: Array, together: Array) -> bool:
    """Whether the rows of a batch are what each of them gave alone."""
    if alone.shape != together.shape or alone.dtype.kind != together.dtype.kind:
        return False
    if alone.dtype.kind != "f" or not np.isfinite(alone).all():
        return np.array_equal(alone, together, equal_nan=alone.dtype.kind == "f")
    largest = np.abs(alone).max(initial=0.0)
    return bool(np.abs(alone - together).max(initial=0.0) <= SAME * largest)
