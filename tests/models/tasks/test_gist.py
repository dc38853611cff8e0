"""Two versions agree when what matters of their answers is alike."""

from __future__ import annotations

import numpy as np
import pytest

from wherry.frames import Usage
from wherry.models.tasks.classification import Classification
from wherry.models.tasks.generation import Generation, ToolCall
from wherry.models.tasks.gist import MAX_BYTES, agree, gist_of
from wherry.models.tasks.tabular import RegressionOutput, TableOutput
from wherry.models.tasks.tensor import TensorOutput
from wherry.models.tasks.text import Embedding


def scores(*values: float) -> Classification:
    return Classification(labels=("calm", "glad"), scores=np.array(values, np.float32))


def tensor(values: object) -> TensorOutput:
    return TensorOutput(tensors={"Y": np.asarray(values)})


VECTOR = np.linspace(-1, 1, 384, dtype=np.float32)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (scores(0.9, 0.1), scores(0.6, 0.4), True),
        (scores(0.9, 0.1), scores(0.4, 0.6), False),
        (Generation(text="a  b\n"), Generation(text="a b", usage=Usage(1, 2, 3)), True),
        (Generation(text="a b"), Generation(text="b a"), False),
        (
            Generation(tool_calls=[ToolCall(id="1", name="f", arguments="{}")]),
            Generation(tool_calls=[ToolCall(id="2", name="f", arguments="{}")]),
            True,
        ),
        (
            Generation(tool_calls=[ToolCall(id="1", name="f", arguments="{}")]),
            Generation(tool_calls=[ToolCall(id="1", name="g", arguments="{}")]),
            False,
        ),
        (
            TableOutput(classes=np.array([0, 1]), probabilities=np.array([[0.9, 0.1], [0.2, 0.8]])),
            TableOutput(classes=np.array([0, 1]), probabilities=np.array([[0.6, 0.4], [0.4, 0.6]])),
            True,
        ),
        (TableOutput(classes=np.array([0])), TableOutput(classes=np.array([1])), False),
        (
            RegressionOutput(values=np.array([100.0])),
            RegressionOutput(values=np.array([102.0])),
            True,
        ),
        (
            RegressionOutput(values=np.array([100.0])),
            RegressionOutput(values=np.array([120.0])),
            False,
        ),
        (Embedding(vector=VECTOR), Embedding(vector=VECTOR * 1.001), True),
        (Embedding(vector=VECTOR), Embedding(vector=VECTOR[::-1].copy()), False),
        (Embedding(vector=VECTOR), Embedding(vector=VECTOR[:100]), False),
        (tensor([1, 2, 3]), tensor([1, 2, 3]), True),
        (tensor([1, 2, 3]), tensor([1, 2, 4]), False),
        (tensor([float("nan")]), tensor([1.0]), False),
        (tensor(["a"]), tensor(["b"]), False),
        (tensor(np.zeros(5000)), tensor(np.zeros(5000)), True),
    ],
)
def test_agreement(one: object, other: object, expected: bool):
    assert agree(gist_of([one]), gist_of([other])) is expected


def test_a_gist_is_small_whatever_the_answer():
    assert len(gist_of([tensor(np.random.default_rng(1).random(100_000))])) < MAX_BYTES


@pytest.mark.parametrize("garbled", [b"", b"\xff" * 20, b"x" * 5000])
def test_a_garbled_gist_agrees_with_nothing(garbled: bytes):
    whole = gist_of([scores(0.9, 0.1)])
    assert not agree(whole, garbled)
    assert not agree(garbled, whole)
