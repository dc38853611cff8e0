"""Hugging Face's shapes of tables: columns of texts in, one value a row out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.models.codecs.hf_asking import answer, decode

from wherry.errors import InvalidInput
from wherry.models.tasks.tabular import RegressionOutput, TableOutput
from wherry.models.tasks.task import Signature, TaskConfig, TensorSpec

CLASSIFY, REGRESS = "tabular-classification", "tabular-regression"
TABLE = {"a": ["1", "2.5"], "b": ["-3e1", "4"]}
NAMED = TaskConfig(labels=("no", "yes"), options={"feature_names": ["b", "a"]})
MIXED = TaskConfig(
    labels=("no", "yes"),
    signature=Signature((TensorSpec("a", "FP64", (-1,)), TensorSpec("b", "BYTES", (-1,)))),
)


def matrix(body: dict[str, Any], config: TaskConfig, task: str = CLASSIFY) -> list[Any]:
    (item,) = decode(task, body, config).items
    (array,) = item.tensors.values()
    return array.tolist()


@pytest.mark.parametrize(
    "body",
    [
        {"table": TABLE},
        {"inputs": None, "table": TABLE, "parameters": {}},
        {"inputs": {"table": TABLE}},
        {"inputs": {"data": TABLE}},
    ],
    ids=["later", "0.x", "under inputs", "as data"],
)
def test_a_table_is_read_by_the_names_of_its_columns(body: dict[str, Any]):
    assert matrix(body, NAMED) == [[-30, 1], [4, 2.5]]


def test_a_model_without_names_takes_columns_in_their_order():
    assert matrix({"table": TABLE}, TaskConfig()) == [[1, -30], [2.5, 4]]


def test_texts_stay_texts_where_the_model_wants_them():
    (item,) = decode(CLASSIFY, {"table": {"b": ["7", ""], "a": ["1", 2]}}, MIXED).items
    assert item.tensors["a"].tolist() == [1, 2]
    assert item.tensors["b"].tolist() == [b"7", b""]


def test_rows_may_come_as_they_are():
    assert matrix({"inputs": [[1, 2], [3, 4]]}, TaskConfig()) == [[1, 2], [3, 4]]
    assert matrix({"inputs": {"row": [1, 2]}}, TaskConfig(), REGRESS) == [[1, 2]]


def test_each_row_gets_a_label_or_a_number():
    decoded = decode(CLASSIFY, {"table": TABLE}, NAMED)
    assert answer(CLASSIFY, decoded, [TableOutput(classes=np.array([1, 0]))]) == ["yes", "no"]
    decoded = decode(REGRESS, {"table": TABLE}, NAMED)
    output = RegressionOutput(values=np.array([1.5, 2.0]))
    assert answer(REGRESS, decoded, [output]) == [1.5, 2.0]


def test_a_number_that_json_does_not_have_is_refused():
    decoded = decode(REGRESS, {"table": TABLE}, NAMED)
    with pytest.raises(InvalidInput, match="NaN"):
        answer(REGRESS, decoded, [RegressionOutput(values=np.array([np.nan, 2.0]))])


@pytest.mark.parametrize(
    "table",
    [
        {},
        [],
        "a",
        {"a": "1"},
        {"a": ["1"], "b": []},
        {"a": ["1"], "b": ["x"]},
        {"a": ["1"], "b": [{}]},
        {"a": ["1"], "c": ["1"]},
        {"a": ["1"]},
        {"a": [], "b": []},
        {"a": ["1" * 100], "b": ["1"]},
        {"a": ["9" * 60], "b": ["1"]},
        {"a": ["inf"], "b": ["1"]},
    ],
)
def test_what_is_no_table_is_refused(table: Any):
    with pytest.raises(InvalidInput):
        decode(CLASSIFY, {"table": table}, NAMED)
