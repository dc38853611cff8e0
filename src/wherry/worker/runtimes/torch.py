# pyright: standard, reportMissingImports=false
"""TorchScript and exported programs (`.pt2`) with PyTorch. Tasks: `wherry.worker.runtimes.graphs`.

An exported program says what tensors it takes and gives. TorchScript knows the names of its inputs
only: the rest is the bundle's signature (task `tensor`), or for any task

```toml
[options.graphs."model.pt"]
inputs = [{ name = "pixels", datatype = "FP32", shape = [-1, 3, 224, 224] }]
outputs = [{ name = "logits", datatype = "FP32", shape = [-1, 1000] }]
```

in the order of the arguments and results. Without either, any tensor is taken, one request a run;
numbers with a point come in the type of the model's weights then.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import Signature, TensorSpec, type_by_datatype
from wherry.worker.runtimes.graphs.graph import Array, Graph, GraphTensor
from wherry.worker.runtimes.graphs.runtime import GraphRuntime

DATATYPES = {np.dtype(kind): name for name, kind in type_by_datatype.items()}
WIDER = {torch.bfloat16: torch.float32}
"""Types that no array has → what they are given as."""
LOAD_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AssertionError,
    AttributeError,
    OSError,
)


class TorchOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    graphs: dict[str, Signature] = {}
    """File → its tensors, where the file does not say."""


class TorchRuntime(GraphRuntime):
    """One graph, or a few. One thread computes; more workers serve more."""

    def load(self, bundle: Bundle, device: str) -> None:
        """See `GraphRuntime.load`."""
        torch.set_num_threads(1)
        self._declared = dict(read_options(bundle.manifest.options, TorchOptions).graphs)
        if bundle.manifest.task == "tensor":
            self._declared.setdefault(bundle.main_file.name, bundle.manifest.signature)
        super().load(bundle, device)

    def open_graph(self, path: Path, device: str) -> Graph:
        """A file in torch's interpreter."""
        place = _find_device(device)
        try:
            if _is_exported(path):
                return open_exported(path, place)
            return open_script(path, place, self._declared.get(path.name, Signature()))
        except LOAD_ERRORS as error:
            raise FormatNotAllowed(
                f"{path.name!r} cannot be opened with torch {torch.__version__}: "
                f"{_first_line(error)}",
                hint="export it again with this version, and with torch's own operators only",
            ) from error


class TorchGraph(Graph):
    """A loaded program.

    Args:
        call: takes tensors in the order of `inputs`; gives a tensor, or several.
        device: where it runs.
        file_name: for messages.
        inputs: what it takes.
        outputs: what it gives.
        open_type: of numbers for an input that does not say its type.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        device: torch.device,
        file_name: str,
        inputs: Sequence[GraphTensor],
        outputs: Sequence[GraphTensor],
        *,
        open_type: str = "float64",
    ) -> None:
        super().__init__(file_name, inputs, outputs)
        self._call = call
        self._device = device
        self._open_type = open_type

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """See `Graph.run`."""
        tensors = [self._to_tensor(each, feeds[each.name]) for each in self.inputs]
        try:
            with torch.inference_mode():
                found = _flatten(self._call(*tensors))
        except (RuntimeError, ValueError, IndexError, AssertionError, MemoryError) as error:
            if isinstance(error, MemoryError) or "allocate memory" in str(error):
                raise ModelFailed("the model ran out of memory on this input") from error
            # what a graph does is fixed: if it fails, then on this input
            is_open = any(not each.datatype for each in self.inputs)
            raise InvalidInput(
                f"the input does not fit the model: {_reason(error)}",
                hint="a signature in wherry.toml says which types and shapes fit"
                if is_open
                else "",
            ) from error
        if len(found) != len(self.outputs):
            raise ModelFailed(
                f"the model gave {len(found)} tensors, its signature names {len(self.outputs)}"
            )
        names = [each.name for each in self.outputs]
        by_name = dict(zip(names, found, strict=True))
        return [_to_array(by_name[name]) for name in outputs or names]

    def _to_tensor(self, spec: GraphTensor, array: Array) -> torch.Tensor:
        if array.dtype not in DATATYPES:
            raise InvalidInput(f"input {spec.name!r} must be numbers", param=spec.name)
        if not spec.datatype and array.dtype == np.float64:
            array = array.astype(self._open_type)  # JSON does not say how exact its numbers are
        # torch wants memory that it could write
        return torch.from_numpy(np.require(array, requirements=("C", "W"))).to(self._device)


def open_exported(path: Path, device: torch.device) -> TorchGraph:
    """A `.pt2` archive; its content was checked when it was imported."""
    program = torch.export.load(path)
    nodes = {node.name: node for node in program.graph.nodes}
    spec = program.call_spec.in_spec
    module = program.module().to(device)

    def call(*tensors: torch.Tensor) -> Any:
        assert spec is not None
        positional, named = torch.utils._pytree.tree_unflatten(list(tensors), spec)
        return module(*positional, **named)

    return TorchGraph(
        call,
        device,
        path.name,
        [_read_node(path, name, nodes) for name in program.graph_signature.user_inputs],
        [_read_node(path, name, nodes) for name in program.graph_signature.user_outputs],
    )


def open_script(path: Path, device: torch.device, declared: Signature) -> TorchGraph:
    """TorchScript: torch's own interpreter runs it, and no Python."""
    module = torch.jit.load(path, map_location=device).eval()
    schema = module.forward.schema
    names = [each.name for each in schema.arguments[1:] if not each.has_default_value()]
    if declared.inputs and len(declared.inputs) < len(names):
        raise FormatNotAllowed(
            f"{path.name!r} takes {len(names)} inputs ({', '.join(names)}), its signature names "
            f"{len(declared.inputs)}"
        )
    inputs = declared.inputs or [TensorSpec(name, "", ()) for name in names]
    outputs = declared.outputs or [
        TensorSpec(name, "", ()) for name in _output_names(path, schema.returns[0].type)
    ]
    return TorchGraph(
        module,
        device,
        path.name,
        [*map(_from_spec, inputs)],
        [*map(_from_spec, outputs)],
        open_type=_type_of_weights(module),
    )


def _type_of_weights(module: Any) -> str:
    """`float32`, `float16` or `float64`: what its layers multiply with."""
    kinds = [each.dtype for each in (*module.parameters(), *module.buffers())]
    floats = [WIDER.get(each, each) for each in kinds if each.is_floating_point]
    return str(floats[0] if floats else torch.float64).removeprefix("torch.")


def _output_names(path: Path, kind: Any) -> list[str]:
    """`output`, or `output_0`, `output_1` … of a tuple."""
    if isinstance(kind, torch.TensorType):
        return ["output"]
    if isinstance(kind, torch.TupleType):
        return [f"output_{number}" for number in range(len(kind.elements()))]
    raise FormatNotAllowed(
        f"{path.name!r} gives {kind.annotation_str}, whose tensors have no names",
        hint="name them in the signature of wherry.toml",
    )


def _from_spec(spec: TensorSpec) -> GraphTensor:
    return GraphTensor(
        spec.name, spec.datatype, tuple(None if size < 0 else size for size in spec.shape)
    )


def _read_node(path: Path, name: str, nodes: Mapping[str, Any]) -> GraphTensor:
    value: Any = nodes[name].meta.get("val") if name in nodes else None
    if not isinstance(value, torch.Tensor):
        raise FormatNotAllowed(f"{path.name!r} has {name!r}, which is no tensor")
    kind = WIDER.get(value.dtype, value.dtype)
    datatype = DATATYPES.get(np.dtype(str(kind).removeprefix("torch.")))
    if datatype is None:
        raise FormatNotAllowed(f"{path.name!r} has {name!r} of type {kind}, which is not served")
    return GraphTensor(
        name, datatype, tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    )


def _flatten(found: Any) -> list[torch.Tensor]:
    """Tensors in the order of results."""
    if isinstance(found, torch.Tensor):
        return [found]
    values = found.values() if isinstance(found, Mapping) else found
    if not isinstance(found, (Mapping, tuple, list)):
        raise ModelFailed("the model gave something else than tensors")
    return [tensor for each in values for tensor in _flatten(each)]


def _to_array(tensor: torch.Tensor) -> Array:
    kind = WIDER.get(tensor.dtype, tensor.dtype)
    return tensor.to("cpu", kind).contiguous().numpy()


def _is_exported(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/archive_format") for name in archive.namelist())


def _find_device(device: str) -> torch.device:
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InvalidInput(
            f"this torch has no device {device!r}",
            hint="install a build of torch for it, or place the model on 'cpu'",
        )
    return torch.device(device)


def _reason(error: Exception) -> str:
    """Of TorchScript's errors, the last line says what is wrong; of others the first."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("RuntimeError: ", "IndexError: "))]
    return (said[-1].partition(": ")[2] if said else _first_line(error))[:300]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
