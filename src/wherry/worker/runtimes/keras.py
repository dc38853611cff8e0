# pyright: standard, reportMissingImports=false
"""Keras models (`.keras`, `.h5`) with Keras 3 over torch. Tasks: `wherry.worker.runtimes.graphs`.

Only Keras's own layers: the configuration is looked at before Keras sees the file, and nothing of
training is loaded.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Keras chooses at its import, and finds TensorFlow by itself otherwise
os.environ["KERAS_BACKEND"] = "torch"  # noqa: TID251 - this process's own, read by Keras alone

import h5py
import keras
import torch

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.keras_config import check_keras_config
from wherry.models.tasks.task import type_by_datatype
from wherry.worker.runtimes.graphs.graph import Array, Graph, GraphTensor
from wherry.worker.runtimes.graphs.runtime import GraphRuntime

DATATYPES = {np.dtype(kind): name for name, kind in type_by_datatype.items()}
CONFIG = "config.json"


class KerasRuntime(GraphRuntime):
    """One model. One thread computes; more workers serve more."""

    def load(self, bundle: Bundle, device: str) -> None:
        """See `GraphRuntime.load`."""
        torch.set_num_threads(1)
        super().load(bundle, device)

    def open_graph(self, path: Path, device: str) -> Graph:
        """A model made of Keras's own layers."""
        if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
            raise InvalidInput(
                f"this torch has no device {device!r}", hint="place the model on 'cpu'"
            )
        check_keras_config(path.name, read_config(path))
        try:
            with keras.device(device.replace("cuda", "gpu")):
                model = keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # layers of any kind raise errors of any kind
            raise FormatNotAllowed(
                f"{path.name!r} cannot be opened with Keras {keras.__version__}: "
                f"{_first_line(error)}",
                hint="save it again with this version",
            ) from error
        return KerasGraph(model, path.name)


class KerasGraph(Graph):
    """A model that was built when it was saved."""

    def __init__(self, model: Any, file_name: str) -> None:
        if not getattr(model, "inputs", None):
            raise FormatNotAllowed(
                f"{file_name!r} does not say what it takes",
                hint="begin the model with keras.Input(shape), or call it once before it is saved",
            )
        # one that is a plain sequence of layers has no names for outputs
        names = _unique(getattr(model, "output_names", [model.layers[-1].name]))
        super().__init__(
            file_name,
            [_read_tensor(file_name, _name_of_input(each), each) for each in model.inputs],
            [
                _read_tensor(file_name, name, each)
                for name, each in zip(names, model.outputs, strict=True)
            ],
        )
        self._model = model
        # a list or a dictionary of inputs; a plain sequence of layers has one
        self._structure = getattr(model, "input", model.inputs[0])

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """See `Graph.run`."""
        # torch wants memory that it could write
        arrays = [np.require(feeds[each.name], requirements=("C", "W")) for each in self.inputs]
        arguments = keras.tree.pack_sequence_as(self._structure, arrays)
        try:
            with torch.inference_mode():
                found = keras.tree.flatten(self._model(arguments, training=False))
        except (RuntimeError, ValueError, IndexError) as error:
            raise InvalidInput(f"the input does not fit the model: {_first_line(error)}") from error
        if len(found) != len(self.outputs):
            raise ModelFailed("the model gave something else than its outputs")
        by_name = {
            each.name: keras.ops.convert_to_numpy(tensor)
            for each, tensor in zip(self.outputs, found, strict=True)
        }
        return [by_name[name] for name in outputs or by_name]


def read_config(path: Path) -> Any:
    """What the file says the model is made of, before anything of it is made.

    Raises:
        FormatNotAllowed: it says nothing, or not in JSON.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read(CONFIG))
        with h5py.File(path, "r") as file:
            found: Any = file.attrs.get("model_config")
        return json.loads(found) if found is not None else None
    except (OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise FormatNotAllowed(
            f"{path.name!r} holds no model of Keras: {_first_line(error)}",
            hint="save the whole model: model.save('model.keras')",
        ) from error


def _read_tensor(file_name: str, name: str, tensor: Any) -> GraphTensor:
    kind = keras.backend.standardize_dtype(tensor.dtype)
    datatype = DATATYPES.get(np.dtype(kind)) if kind != "bfloat16" else None
    if datatype is None:
        raise FormatNotAllowed(f"{file_name!r} has {name!r} of type {kind}, which is not served")
    return GraphTensor(name, datatype, tuple(tensor.shape))


def _name_of_input(tensor: Any) -> str:
    """The name of the layer, which the file keeps; a tensor's own is new in every process."""
    return tensor._keras_history.operation.name


def _unique(names: Sequence[str]) -> list[str]:
    """A layer that gives several tensors gives all of them its name."""
    return [
        name if names.count(name) == 1 else f"{name}_{names[:place].count(name)}"
        for place, name in enumerate(names)
    ]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
