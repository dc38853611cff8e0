"""What scoring protocols share: a list of instances in, a list of predictions out, for every task.

An instance is a row of a table (a list, or an object by the features' names), a row of a tensor, or
what the plain form of another task takes: its text or picture alone, or an object.

A prediction is the value that the plain answer calls `prediction`, else its only value, else the
whole answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Reply
from wherry.models.codecs.plain_json import encode_plain
from wherry.models.tasks.generation import MAX_TEXTS, TextGeneration
from wherry.models.tasks.tabular import TabularTask
from wherry.models.tasks.task import Task, TaskConfig, TaskInput, TensorSpec, held_bytes
from wherry.models.tasks.tensor import TensorTask, plain_from_array

MAX_ROWS = 1 << 16
MAX_ITEMS = 2048
"""Most instances that are not rows: each is prepared, and answered, by itself."""
MAX_HELD_BYTES = 256 << 20
"""Most memory for what the files of one request hold."""

Columns = Mapping[str, Sequence[Any]]


def read_instances(
    instances: Sequence[Any],
    task: Task,
    config: TaskConfig,
    parameters: Mapping[str, Any] | None = None,
) -> list[TaskInput]:
    """Items of a list of instances: one for all rows, else one each.

    `parameters` go to each item of a task that generates texts; others take none.
    """
    if not instances:
        raise InvalidInput("there are no instances", hint="send at least one")
    if isinstance(task, TabularTask):
        _check_count(instances, MAX_ROWS, parameters, task)
        rows = [each if isinstance(each, (list, dict)) else [each] for each in instances]
        return [task.from_plain({"rows": rows}, config)]
    if isinstance(task, TensorTask):
        _check_count(instances, MAX_ROWS, parameters, task)
        return [task.from_plain(_stack(instances, task.signature(config).inputs), config)]
    if isinstance(task, TextGeneration):
        _check_count(instances, MAX_TEXTS, None, task)
    else:
        _check_count(instances, MAX_ITEMS, parameters, task)
    name = task.signature(config).inputs[0].name
    bodies = (each if isinstance(each, dict) else {name: each} for each in instances)
    return _read_each([{**body, **(parameters or {})} for body in bodies], task, config)


def read_columns(
    columns: Columns, task: Task, config: TaskConfig, parameters: Mapping[str, Any] | None = None
) -> list[TaskInput]:
    """Items of a table given by its columns."""
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise InvalidInput(
            f"the columns have different lengths: {', '.join(map(str, sorted(lengths)))}"
        )
    names = list(columns)
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return read_instances(instances_of_table(names, rows, task, config), task, config, parameters)


def instances_of_table(
    names: Sequence[str], rows: Sequence[Sequence[Any]], task: Task, config: TaskConfig
) -> list[Any]:
    """Rows under the names of their columns, where the model knows these names.

    A table's model without names, and a tensor's with others, takes values in their order. Of other
    tasks one column may have any name: it is what the model takes.
    """
    known = known_names(task, config)
    if isinstance(task, TabularTask):
        is_named = bool(known)
    elif isinstance(task, TensorTask):
        is_named = set(names) == set(known)
    elif len(names) == 1 == len(known) and names[0] not in known:
        return [row[0] for row in rows]
    else:
        is_named = True
    return [dict(zip(names, row, strict=True)) if is_named else list(row) for row in rows]


def known_names(task: Task, config: TaskConfig) -> tuple[str, ...]:
    """Names that a table's columns may have; none if the model takes its values by their order."""
    inputs = task.signature(config).inputs
    if isinstance(task, TabularTask) and len(inputs) == 1:
        return tuple(config.options.get("feature_names", ()))
    return tuple(spec.name for spec in inputs)


def write_predictions(outputs: Sequence[Any], task: Task, config: TaskConfig) -> Reply:
    """`{"predictions": …}`; a number that JSON does not have is refused."""
    if isinstance(task, TensorTask):
        predictions = _unstack(task.to_tensors(outputs, config))
    else:
        predictions = [
            _shorten(each)
            for output in outputs
            for each in _plain_answers(task.to_plain(output, config), task)
        ]
    return Reply(encode_plain({"predictions": predictions}))


def _check_count(
    instances: Sequence[Any], limit: int, parameters: Mapping[str, Any] | None, task: Task
) -> None:
    if len(instances) > limit:
        raise InvalidInput(
            f"there are {len(instances)} instances, the limit is {limit}",
            hint="send several requests",
        )
    if parameters:
        raise InvalidInput(f"a model that does {task.name} takes no 'params'", param="params")


def _read_each(bodies: Sequence[dict[str, Any]], task: Task, config: TaskConfig) -> list[TaskInput]:
    """An item of each; small files may hold large pictures, so what they hold is counted."""
    found: list[TaskInput] = []
    size = 0
    for body in bodies:
        found.append(task.from_plain(body, config))
        size += held_bytes(found[-1])
        if size > MAX_HELD_BYTES:
            raise InvalidInput(
                f"the instances hold more than {MAX_HELD_BYTES} bytes together when they are read",
                hint="send several requests",
            )
    return found


def _stack(instances: Sequence[Any], inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Rows of tensors as whole tensors by name."""
    objects = [each for each in instances if isinstance(each, dict)]
    if not objects:
        return {inputs[0].name: list(instances)}
    if len(objects) != len(instances) or any(set(each) != set(objects[0]) for each in objects):
        raise InvalidInput("the instances do not all have the same fields")
    return {name: [each[name] for each in objects] for name in objects[0]}


def _unstack(tensors: Mapping[str, np.ndarray]) -> Any:
    """Rows of whole tensors; objects if there are several, the tensors if they have no rows."""
    plain = {name: plain_from_array(name, array) for name, array in tensors.items()}
    if len(plain) == 1:
        return next(iter(plain.values()))
    counts = {array.shape[0] if array.ndim else -1 for array in tensors.values()}
    if len(counts) > 1 or -1 in counts:
        return plain
    return [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]


def _plain_answers(answer: dict[str, Any], task: Task) -> list[Any]:
    return answer["predictions"] if isinstance(task, TabularTask) else [answer]


def _shorten(answer: Any) -> Any:
    if not isinstance(answer, dict):
        return answer
    if "prediction" in answer:
        return answer["prediction"]
    return next(iter(answer.values())) if len(answer) == 1 else answer
