"""What the two codecs of the Open Inference Protocol share: bounds, what is refused, outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from wherry.errors import InvalidInput
from wherry.models.tasks.task import Task, TaskConfig
from wherry.models.tasks.tensor import Array, datatype_of

MAX_TENSORS = 1024
"""Of inputs, and of requested outputs."""
MAX_NAME = 256
MAX_ID = 4096


# ------------------------------------------------------------------------------ inputs


def check_new(name: str, tensors: Collection[str]) -> None:
    """Refuse an input that was there before."""
    if name in tensors:
        raise InvalidInput(f"input {name!r} comes twice")


def check_bfloat(datatypes: Mapping[str, str], task: Task, config: TaskConfig) -> None:
    """BF16 only for inputs declared BF16: as an array it cannot be told from UINT16.

    Args:
        datatypes: of the inputs, by name.
        task: of the model.
        config: of the model.
    """
    for name, datatype in datatypes.items():
        if datatype == "BF16":
            declared = {spec.name: spec.datatype for spec in task.signature(config).inputs}
            wanted = declared.get(name, "BF16")
            if wanted != "BF16":
                raise InvalidInput(f"input {name!r} is BF16, the model takes {wanted}")


def no_shared_memory() -> InvalidInput:
    """The error for an input that is in memory of the client's."""
    return InvalidInput("shared memory is not served", hint="send the data in the request")


# ------------------------------------------------------------------------------ outputs


def check_output(
    name: str,
    taken: Collection[str],
    declared: Collection[str],
    *,
    wants_classes: bool,
    wants_shared_memory: bool,
) -> None:
    """Refuse an output that is unknown, asked for twice, or wanted in a form that is not served.

    Args:
        name: of the output.
        taken: those asked for before.
        declared: those of the model; empty = not known before it has run.
        wants_classes: whether Triton's classification extension is asked for.
        wants_shared_memory: whether it should be written to memory of the client's.
    """
    if name in taken:
        raise InvalidInput(f"output {name!r} is requested twice")
    if declared and name not in declared:
        raise unknown_output(name, declared)
    if wants_classes:
        raise InvalidInput("the classification extension is not served", hint="leave it out")
    if wants_shared_memory:
        raise InvalidInput("shared memory is not served", hint="read the response's body")


def select_outputs(tensors: Mapping[str, Array], names: Collection[str]) -> Mapping[str, Array]:
    """The requested tensors, in the order requested; all if none is named."""
    if not names:
        return tensors
    for name in names:
        if name not in tensors:
            raise unknown_output(name, tensors)
    return {name: tensors[name] for name in names}


def unknown_output(name: str, known: Collection[str]) -> InvalidInput:
    """The error for an output that the model does not have."""
    return InvalidInput(f"unknown output {name!r}", hint="outputs: " + ", ".join(map(repr, known)))


def shown_datatype(name: str, array: Array, task: Task, config: TaskConfig) -> str:
    """The datatype of an output."""
    datatype = datatype_of(array)
    if datatype == "UINT16" and is_declared_bfloat(name, task, config):
        return "BF16"
    return datatype


def is_declared_bfloat(name: str, task: Task, config: TaskConfig) -> bool:
    """Whether an output that looks like UINT16 is meant as BF16."""
    return any(
        spec.name == name and spec.datatype == "BF16" for spec in task.signature(config).outputs
    )
