"""How items and results of each task look to a Python class (see `python_class.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wherry.errors import InvalidInput
from wherry.models.bundle import Manifest
from wherry.models.tasks.task import TaskOutput, TensorSpec
from wherry.models.tasks.tensor import (
    Array,
    TensorOutput,
    bytes_of,
    datatype_of,
    fits_shape,
    type_of,
)
from wherry.worker.runtimes import python_answers as answers

Pack = Callable[[Any], Any]
"""A task's item as the class sees it."""
Unpack = Callable[[Any, Any, int, Manifest], TaskOutput]
"""A result, the item, its rows and the manifest → the task's output."""

TASKS_OF_SEVERAL = frozenset({"time-series-forecasting"})
"""Whose request is packed as a list: the class sees each as an item of its own."""


def find_adapter(task: str) -> tuple[Pack, Unpack]:
    """How items and results of a task look to a class."""
    adapters: dict[str, tuple[Pack, Unpack]] = {
        "tensor": (pack_tensors, unpack_tensors),
        "tabular-classification": (pack_tensors, unpack_classes),
        "tabular-regression": (pack_tensors, unpack_values),
        "text-classification": (pack_text, unpack_scores),
        "feature-extraction": (pack_text, unpack_vector),
        "image-classification": (pack_pixels, unpack_scores),
        "image-feature-extraction": (answers.pack_picture, unpack_vector),
        "image-to-text": (answers.pack_picture, answers.unpack_text_of_picture),
        "object-detection": (answers.pack_picture, answers.unpack_boxes),
        "sentence-similarity": (answers.pack_pair, answers.unpack_pair),
        "summarization": (answers.pack_words, answers.unpack_text),
        "text-ranking": (answers.pack_pair, answers.unpack_pair),
        "text-to-speech": (answers.pack_words, answers.unpack_speech),
        "time-series-forecasting": (answers.pack_series, answers.unpack_forecasts),
        "token-classification": (answers.pack_words, answers.unpack_entities),
        "translation": (answers.pack_words, answers.unpack_text),
        "zero-shot-classification": (answers.pack_pair, answers.unpack_entailment),
    }
    if task not in adapters:
        raise InvalidInput(
            f"a Python class with 'predict' does not do the task {task!r}",
            hint="it does " + ", ".join(adapters) + "; for text-generation, the runtime is "
            "'python_stream'",
        )
    return adapters[task]


def pack_tensors(item: Any) -> dict[str, Array]:
    """Arrays by name."""
    return dict(item.tensors)


def pack_text(item: Any) -> str:
    """The text."""
    if item.text is None:
        raise InvalidInput("the model takes text, not token ids")
    return item.text


def pack_pixels(item: Any) -> Array:
    """Pixels: uint8 [height, width, channels]."""
    return item.pixels


def unpack_tensors(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """Arrays by name, as the signature declares them; lists become arrays."""
    given = expect_mapping(result)
    specs = manifest.signature.outputs or tuple(TensorSpec(name, "", ()) for name in given)
    names = [spec.name for spec in specs]
    if set(given) != set(names):
        raise ValueError(f"the result has tensors {list(given)}, the signature {names}")
    return TensorOutput(tensors={spec.name: fit_output(given[spec.name], spec) for spec in specs})


def unpack_classes(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """Class indices (rows,), or probabilities (rows, labels)."""
    from wherry.models.tasks.tabular import TableOutput

    array = expect_rows(np.asarray(result), rows)
    if array.ndim == 1:
        classes = array.astype(np.int64, casting="safe")
        if classes.size and not 0 <= classes.min() <= classes.max() < (len(manifest.labels) or 1e9):
            raise ValueError(f"class indices must lie within 0 and {len(manifest.labels) - 1}")
        return TableOutput(classes=classes, many=item.many)
    if manifest.labels and array.shape[1] != len(manifest.labels):
        raise ValueError(f"{array.shape[1]} probabilities for {len(manifest.labels)} labels")
    return TableOutput(
        classes=array.argmax(axis=1), probabilities=array.astype(np.float32), many=item.many
    )


def unpack_values(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """Values (rows,) or (rows, targets)."""
    from wherry.models.tasks.tabular import RegressionOutput

    values = expect_rows(np.asarray(result, dtype=np.float64), rows)
    return RegressionOutput(values=values, many=item.many)


def unpack_vector(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """A vector."""
    from wherry.models.tasks.text import Embedding

    vector = np.asarray(result, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError(f"a vector must have one dimension, not {vector.ndim}")
    return Embedding(vector=vector)


def unpack_scores(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """Scores by label, in the order of the bundle's labels."""
    from wherry.models.tasks.classification import Classification

    given = expect_mapping(result)
    labels = manifest.labels or tuple(given)
    if set(given) != set(labels):
        raise ValueError(f"the result has labels {list(given)}, the bundle {list(labels)}")
    scores = np.array([given[label] for label in labels], dtype=np.float32)
    return Classification(labels=labels, scores=scores)


def expect_mapping(result: Any) -> dict[str, Any]:
    """A result that must be a dict."""
    if not isinstance(result, Mapping):
        raise TypeError(f"a result must be a dict, not {type(result).__name__}")
    return {str(name): value for name, value in result.items()}


def expect_rows(array: Array, rows: int) -> Array:
    """A result that must have one entry a row."""
    if array.ndim not in (1, 2) or len(array) != rows:
        raise ValueError(f"a result has shape {list(array.shape)} for {rows} rows")
    return array


def fit_output(value: Any, spec: TensorSpec) -> Array:
    """A value as the array its spec declares; an open spec takes any."""
    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        flat = np.empty(array.size, dtype=object)
        flat[:] = [bytes_of(element) for element in array.ravel().tolist()]
        array = flat.reshape(array.shape)
    if not spec.datatype:
        datatype_of(array)  # raises for a type that no client could be sent
        return array
    wanted = type_of(spec.datatype)
    if not fits_shape(array.shape, spec.shape) or not np.can_cast(array.dtype, wanted, "same_kind"):
        raise ValueError(
            f"output {spec.name!r} is {array.dtype} {list(array.shape)}, the signature says "
            f"{spec.datatype} {list(spec.shape)}"
        )
    return array.astype(wanted, copy=False)
