"""MLflow's and KServe's forms of a request, over tasks of every kind."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from wherry.errors import InvalidInput
from wherry.frames import Call
from wherry.models.codecs.kserve_v1 import KSERVE_V1
from wherry.models.codecs.mlflow import MLFLOW
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.classification import Classification
from wherry.models.tasks.generation import Generation
from wherry.models.tasks.tabular import RegressionOutput, TableOutput
from wherry.models.tasks.task import Signature, TaskConfig, TensorSpec
from wherry.models.tasks.tensor import TensorOutput
from wherry.models.tasks.text import Embedding

NAMED = TaskConfig(
    labels=("no", "yes"),
    signature=Signature((TensorSpec("X", "FP32", (-1, 2)),)),
    options={"feature_names": ["age", "size"]},
)
NAMELESS = TaskConfig(
    labels=("no", "yes"), signature=Signature((TensorSpec("X", "FP32", (-1, 2)),))
)
MIXED = TaskConfig(
    signature=Signature((TensorSpec("city", "BYTES", (-1,)), TensorSpec("size", "FP64", (-1,))))
)
TENSORS = TaskConfig(
    signature=Signature((TensorSpec("X", "FP32", (-1, 2)),), (TensorSpec("Y", "FP32", (-1, 2)),))
)
ROWS = [[1.0, 2.0], [3.0, 4.0]]
JSON = {"content-type": "application/json; charset=utf-8"}


def read(body: Any, task: str, config: TaskConfig, codec: Any = MLFLOW, kind: str = "") -> Any:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    headers = {"content-type": kind} if kind else JSON
    call = Call("mlflow", "", "m", "1", headers=headers)
    return codec.decode(memoryview(data), call, find_task(task), config).items


def write(outputs: list[Any], task: str, config: TaskConfig) -> Any:
    call = Call("mlflow", "", "m", "1")
    reply = MLFLOW.encode(None, outputs, call, find_task(task), config)  # type: ignore[arg-type]
    return json.loads(reply.body)["predictions"]


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["age", "size"], "index": [7, 8], "data": ROWS}},
        {"dataframe_split": {"columns": ["size", "age"], "data": [[2, 1], [4, 3]]}},
        {"dataframe_split": {"data": ROWS}},
        {"dataframe_records": [{"age": 1, "size": 2}, {"size": 4, "age": 3}]},
        {"instances": ROWS},
        {"instances": [{"age": 1, "size": 2}, {"size": 4, "age": 3}]},
        {"inputs": ROWS},
        {"inputs": {"size": [2, 4], "age": [1, 3]}},
        "age,size\n1,2\n3,4\n",
        "\ufeffsize,age\r\n2.0,1\r\n\r\n4,3e0\r\n",
    ],
)
def test_every_form_of_a_table_is_the_same_table(body: Any):
    kind = "text/csv" if isinstance(body, str) else ""
    (item,) = read(body, "tabular-classification", NAMED, kind=kind)
    assert item.tensors["X"].tolist() == ROWS
    assert item.many


def test_a_model_without_names_takes_columns_in_their_order():
    frame = {"columns": ["a", "b"], "data": ROWS}
    for body in (
        {"dataframe_split": frame},
        {"dataframe_records": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]},
    ):
        (item,) = read(body, "tabular-regression", NAMELESS)
        assert item.tensors["X"].tolist() == ROWS


def test_columns_of_texts_stay_texts():
    (item,) = read("city,size\n10115,3\nRome,4.5\n", "tabular-regression", MIXED, kind="text/csv")
    assert item.tensors["city"].tolist() == [b"10115", b"Rome"]
    assert item.tensors["size"].tolist() == [3.0, 4.5]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"instances": ["one", "two"]}, ""),
        ({"inputs": ["one", "two"]}, ""),
        ({"inputs": {"text": ["one", "two"]}}, ""),
        ({"dataframe_split": {"columns": ["review"], "data": [["one"], ["two"]]}}, ""),
        ({"dataframe_records": [{"text": "one"}, {"text": "two"}]}, ""),
        ("anything\none\ntwo\n", "text/csv"),
    ],
)
def test_texts_come_in_every_form_too(body: Any, kind: str):
    items = read(body, "text-classification", TaskConfig(labels=("a", "b")), kind=kind)
    assert [item.text for item in items] == ["one", "two"]


def test_a_text_in_digits_stays_a_text():
    items = read("text\n123\n", "text-classification", TaskConfig(), kind="text/csv")
    assert items[0].text == "123"


def test_one_text_is_one_input_and_parameters_are_for_generation():
    (item,) = read({"inputs": "Hi", "params": {"max_tokens": 3}}, "text-generation", TaskConfig())
    assert (item.messages[0].content, item.sampling.max_tokens) == ("Hi", 3)
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    (item,) = read({"dataframe_records": [chat]}, "text-generation", TaskConfig())
    assert (item.messages[0].content, item.sampling.max_tokens) == ("Hi", 4)
    with pytest.raises(InvalidInput, match="takes no 'params'"):
        read({"inputs": ["x"], "params": {"a": 1}}, "text-classification", TaskConfig())


@pytest.mark.parametrize("codec", [MLFLOW, KSERVE_V1])
def test_rows_of_tensors_are_stacked(codec: Any):
    for body in (
        {"instances": ROWS},
        {"inputs": {"X": ROWS}},
        {"instances": [{"X": row} for row in ROWS]},
    ):
        (item,) = read(body, "tensor", TENSORS, codec)
        assert item.tensors["X"].tolist() == ROWS


def test_predictions_are_the_simplest_that_says_it():
    table = TableOutput(classes=np.array([1, 0]), probabilities=np.eye(2, dtype=np.float32))
    assert write([table], "tabular-classification", NAMED) == ["yes", "no"]
    numbers = RegressionOutput(values=np.array([1.5, 2.5]))
    assert write([numbers], "tabular-regression", NAMELESS) == [1.5, 2.5]
    scores = np.array([0.25, 0.75], dtype=np.float32)
    label = Classification(labels=("a", "b"), scores=scores)
    assert write([label], "text-classification", TaskConfig()) == ["b"]
    vector = Embedding(vector=np.array([0.5, 1.0], dtype=np.float32))
    assert write([vector, vector], "feature-extraction", TaskConfig()) == [[0.5, 1.0]] * 2
    assert write([Generation(text="Hi")], "text-generation", TaskConfig()) == ["Hi"]
    one = {"Y": np.ones((2, 2), np.float32)}
    assert write([TensorOutput(tensors=one)], "tensor", TENSORS) == [[1.0, 1.0]] * 2
    two = {**one, "Z": np.array([3, 4])}
    assert write([TensorOutput(tensors=two)], "tensor", TENSORS) == [
        {"Y": [1.0, 1.0], "Z": 3},
        {"Y": [1.0, 1.0], "Z": 4},
    ]
    three = {**one, "Z": np.array([3])}
    assert write([TensorOutput(tensors=three)], "tensor", TENSORS) == {
        "Y": [[1.0, 1.0]] * 2,
        "Z": [3],
    }


def test_a_prediction_that_is_no_number_is_refused_not_null():
    with pytest.raises(InvalidInput, match="NaN"):
        write([RegressionOutput(values=np.array([np.nan]))], "tabular-regression", NAMELESS)


def test_null_is_a_missing_value():
    (item,) = read({"instances": [[1, None]]}, "tabular-classification", NAMED)
    assert np.array_equal(item.tensors["X"], [[1.0, np.nan]], equal_nan=True)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "exactly one"),
        ({"instances": [[1, 2]], "inputs": [[1, 2]]}, "exactly one"),
        ({"instances": []}, "no instances"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}, "row 0 has 1 values"),
        ({"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}, "same name"),
        (
            {"dataframe_split": {"columns": ["age", "hue"], "data": [[1, 2]]}},
            "unknown feature 'hue'",
        ),
        ({"dataframe_records": [{"age": 1, "size": 2}, {"age": 1}]}, "same columns"),
        ({"dataframe_records": [{"age": 1}]}, "missing feature 'size'"),
        ({"inputs": {"age": [1, 2], "size": [1]}}, "different lengths"),
        ({"instances": [[1, "x"]]}, "X"),
        ({"instances": [[1, 2, 3]]}, "shape"),
        ({"instances": {"a": 1}}, "instances"),
        ({"instances": [[1, 2]] * 70_000}, "limit"),
    ],
)
def test_what_is_wrong_is_told(body: Any, told: str):
    with pytest.raises(InvalidInput, match=told):
        read(body, "tabular-classification", NAMED)


@pytest.mark.parametrize(
    "text", ["", "\n", "age,size\n", "age,size\n1\n", 'a,"b\n1,2\n', "a\x00,b\n1,2\n"]
)
def test_csv_that_is_none_is_refused(text: str):
    with pytest.raises(InvalidInput):
        read(text, "tabular-classification", NAMED, kind="text/csv")


@pytest.mark.parametrize(
    "body", [{}, {"instances": [], "inputs": []}, {"instances": []}, {"inputs": {}}]
)
def test_kserve_wants_instances(body: Any):
    with pytest.raises(InvalidInput, match="instances"):
        read(body, "tabular-classification", NAMED, KSERVE_V1)
