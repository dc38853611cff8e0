"""Inputs that are made up to try a model: each is accepted by its task."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wherry.frames import Call
from wherry.jobs.samples import make_sample, resize_sample
from wherry.models.bundle import Manifest
from wherry.models.codecs.catalog import find_codec
from wherry.models.tasks.catalog import find_task, task_names
from wherry.models.tasks.task import Signature, TensorSpec

TENSORS = Signature(
    inputs=(
        TensorSpec("ids", "INT64", (-1, 3)),
        TensorSpec("mask", "BOOL", (-1,)),
        TensorSpec("texts", "BYTES", (-1, 2)),
        TensorSpec("half", "FP16", (2, -1)),
    )
)
COLUMNS = Signature(inputs=(TensorSpec("age", "FP32", (-1,)), TensorSpec("city", "BYTES", (-1, 1))))


def decode(manifest: Manifest, sample: dict[str, Any]) -> Any:
    """The sample as a worker reads it."""
    call = Call("predict", "r", "d", "1", 0, {"content-type": "application/json"})
    body = memoryview(json.dumps(sample).encode())
    task = find_task(manifest.task)
    return find_codec("predict").decode(body, call, task, manifest.task_config()).items[0]


@pytest.mark.parametrize("task", task_names())
def test_every_task_accepts_what_is_made_up_for_it(task: str) -> None:
    if task.startswith("image"):
        pytest.importorskip("PIL")
    signature = TENSORS if task == "tensor" else Signature()
    manifest = Manifest(task=task, runtime="x", signature=signature)
    sample = make_sample(manifest)
    assert sample
    decode(manifest, sample)


def test_a_table_of_named_columns_gets_a_value_for_each() -> None:
    manifest = Manifest(task="tabular-regression", runtime="x", signature=COLUMNS)
    assert make_sample(manifest) == {"row": {"age": 0.0, "city": "a"}}
    decode(manifest, {"row": {"age": 0.0, "city": "a"}})


def test_a_row_is_as_wide_as_the_signature_or_the_names_say() -> None:
    wide = Signature(inputs=(TensorSpec("x", "INT32", (-1, 5)),))
    manifest = Manifest(task="tabular-classification", runtime="x", signature=wide)
    assert make_sample(manifest) == {"row": [0] * 5}
    named = Manifest(
        task="tabular-classification", runtime="x", options={"feature_names": ["a", "b"]}
    )
    assert make_sample(named) == {"row": [0.0, 0.0]}


def test_a_picture_has_the_size_that_the_model_wants() -> None:
    pytest.importorskip("PIL")
    manifest = Manifest(task="image-classification", runtime="x", options={"image_size": [8, 12]})
    sample = make_sample(manifest)
    assert sample
    assert decode(manifest, sample).pixels.shape[:2] == (8, 12)


def test_a_refusal_that_tells_the_width_is_understood() -> None:
    refusal = "a row has 1 features, the model takes 4"
    assert resize_sample({"row": [0.0]}, refusal) == {"row": [0.0] * 4}
    assert resize_sample({"row": [0.0] * 4}, refusal) is None
    assert resize_sample({"row": [0.0]}, "no") is None
    assert resize_sample({"text": "x"}, refusal) is None


def test_no_giant_tensor_is_made_up() -> None:
    giant = Signature(inputs=(TensorSpec("x", "FP32", (1 << 20, 1 << 10)),))
    assert make_sample(Manifest(task="tensor", runtime="x", signature=giant)) is None
