"""What a bundle says of its columns, and every plain form of a table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from wherry.errors import InvalidInput
from wherry.models.bundle import Manifest, decode_manifest, encode_manifest
from wherry.models.registry.manifest import check_manifest
from wherry.models.tasks.table_columns import Column, number_of_text, read_columns
from wherry.models.tasks.table_forms import read_table
from wherry.models.tasks.tabular import TABULAR_CLASSIFICATION as TASK
from wherry.models.tasks.task import Signature, TaskConfig, TensorSpec

COLUMNS: list[dict[str, Any]] = [
    {"name": "age", "required": False},
    {"name": "rooms", "kind": "integer"},
    {"name": "city", "kind": "category", "categories": ["Köln", "北京"], "required": False},
    {"name": "new", "kind": "boolean"},
    {"name": "note", "kind": "text"},
]
CONFIG = TaskConfig(options={"columns": COLUMNS})
ROW = {"age": 3.5, "rooms": 2, "city": "北京", "new": True, "note": ""}


def arrays(body: Any, config: TaskConfig = CONFIG) -> dict[str, list[Any]]:
    return {name: array.tolist() for name, array in TASK.from_plain(body, config).tensors.items()}


def test_each_column_is_a_tensor_of_its_kind():
    assert [(each.name, each.datatype) for each in TASK.signature(CONFIG).inputs] == [
        ("age", "FP64"),
        ("rooms", "INT64"),
        ("city", "BYTES"),
        ("new", "BOOL"),
        ("note", "BYTES"),
    ]


def test_what_may_be_missing_has_a_datatype_with_a_missing_value():
    for kind in ("integer", "boolean"):
        assert Column("x", kind, required=False).datatype == "FP64"


@pytest.mark.parametrize(
    "body",
    [
        ROW,
        {"row": ROW},
        {"rows": [ROW]},
        {"row": list(ROW.values())},
        {"columns": {name: [value] for name, value in ROW.items()}},
        {"data": {name: [value] for name, value in ROW.items()}},
        {"data": [list(ROW.values())]},
        {"columns": list(ROW), "data": [list(ROW.values())], "index": [7]},
        {
            "table": {
                "age": ["3.5"],
                "rooms": ["2"],
                "city": ["北京"],
                "new": ["True"],
                "note": [""],
            }
        },
    ],
    ids=lambda body: ",".join(body),
)
def test_all_forms_say_the_same(body: Any):
    assert arrays(body) == {
        name: [value.encode() if isinstance(value, str) else value] for name, value in ROW.items()
    }
    assert TASK.from_plain({"inputs": body}, CONFIG)


def test_a_missing_value_is_left_out_or_null():
    bare = {"rooms": 1, "new": False, "note": "a"}
    for body in (bare, {**bare, "age": None, "city": None}):
        found = arrays(body)
        assert math.isnan(found["age"][0])
        assert found["city"] == [b""]


def test_a_category_may_be_called_like_a_missing_value():
    config = TaskConfig(options={"columns": [{**COLUMNS[2], "categories": ["EU", "NA"]}]})
    assert arrays({"table": {"city": ["NA", "nan"]}}, config)["city"] == [b"NA", b""]


def test_numbers_as_text_are_read_in_a_table_of_texts_alone():
    assert [number_of_text(each) for each in ("3", "-1e3", "nan", "", "1_0", "x", "9" * 80)] == [
        3,
        -1000.0,
        None,
        None,
        "1_0",
        "x",
        "9" * 80,
    ]
    with pytest.raises(InvalidInput, match="not a finite number"):
        arrays({**ROW, "age": "3.5"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"age": math.inf}, "finite"),
        ({"age": 10**400}, "finite"),
        ({"age": False}, "finite"),
        ({"rooms": 1.5}, "whole number"),
        ({"rooms": 2**63}, "whole number"),
        ({"rooms": None}, "the model needs it"),
        ({"new": 1}, "true or false"),
        ({"city": "Bonn"}, "unknown category 'Bonn'"),
        ({"city": 3}, "a string"),
        ({"note": None}, "the model needs it"),
        ({"note": {}}, "a JSON object"),
        ({"more": 1}, "unknown feature 'more'"),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_names_its_column(change: dict[str, Any], said: str):
    with pytest.raises(InvalidInput) as refused:
        arrays({**ROW, **change})
    assert said in refused.value.message
    assert refused.value.param == next(iter(change))


def test_an_unknown_category_may_be_the_encoders_matter():
    config = TaskConfig(options={"columns": [{**COLUMNS[2], "accepts_unknown": True}]})
    assert arrays({"city": "Bonn"}, config)["city"] == [b"Bonn"]


def test_tensors_are_held_to_the_same():
    good = {
        "age": np.array([np.nan]),
        "rooms": np.array([1]),
        "city": np.array([b""], dtype=object),
        "new": np.array([True]),
        "note": np.array([b""], dtype=object),
    }
    assert TASK.from_tensors(good, CONFIG)
    for change in (
        {"age": np.array([np.inf])},
        {"city": np.array([b"Bonn"], dtype=object)},
        {"rooms": np.array([1.0])},
        {"new": np.array([True, False])},
    ):
        with pytest.raises(InvalidInput):
            TASK.from_tensors({**good, **change}, CONFIG)


def test_columns_of_numbers_may_come_as_a_matrix():
    columns = [{"name": "a"}, {"name": "b", "required": False}]
    matrix = Signature((TensorSpec("input", "FP32", (-1, 2)),))
    config = TaskConfig(signature=matrix, options={"columns": columns})
    assert arrays({"a": 1}, config)["input"][0][0] == 1.0
    with pytest.raises(InvalidInput, match="the model needs it"):
        TASK.from_tensors({"input": np.array([[np.nan, 1]], np.float32)}, config)


def test_a_matrix_without_declared_columns_takes_null_for_nan():
    config = TaskConfig(signature=Signature((TensorSpec("input", "FP32", (-1, 2)),)))
    for body in ({"row": [1, None]}, {"rows": [[1, None]]}):
        found = arrays(body, config)["input"][0]
        assert found[0] == 1.0
        assert math.isnan(found[1])


@pytest.mark.parametrize(
    "columns",
    [
        [{"name": "a"}, {"name": "a"}],
        [{"name": ""}],
        [{"name": "a", "kind": "date"}],
        [{"name": "a", "more": 1}],
        ["a"],
        "a",
    ],
    ids=str,
)
def test_columns_that_cannot_be_are_refused_at_import(columns: Any):
    options = {"columns": columns}
    manifest = Manifest("tabular-regression", "sklearn", files=("m",), options=options)
    with pytest.raises(InvalidInput):
        check_manifest(manifest, ["m"])


def test_columns_and_signature_must_agree():
    for inputs in (
        (TensorSpec("x", "FP32", (-1, 3)),),
        (TensorSpec("a", "FP32", (-1,)), TensorSpec("c", "FP32", (-1,))),
    ):
        manifest = Manifest(
            "tabular-regression",
            "sklearn",
            files=("m",),
            signature=Signature(inputs),
            options={"columns": [{"name": "a"}, {"name": "b"}]},
        )
        with pytest.raises(InvalidInput, match="signature"):
            check_manifest(manifest, ["m"])


def test_columns_survive_the_manifest():
    manifest = Manifest("tabular-regression", "sklearn", options={"columns": COLUMNS})
    again = decode_manifest(encode_manifest(manifest))
    assert read_columns(again.task_config()) == read_columns(CONFIG)


def test_a_column_may_be_called_like_a_form():
    config = TaskConfig(options={"columns": [{"name": "data"}, {"name": "columns"}]})
    assert arrays({"data": 1, "columns": 2}, config) == {"data": [1.0], "columns": [2.0]}


def test_short_rows_cannot_stand_for_a_large_table():
    columns = [{"name": f"c{index}", "required": False} for index in range(1000)]
    with pytest.raises(InvalidInput, match="over"):
        arrays({"rows": [{}] * 10_000}, TaskConfig(options={"columns": columns}))


@pytest.mark.parametrize(
    "body", [{"columns": {"a": 1}}, {"columns": ["a"]}, {"columns": [1], "data": []}]
)
def test_forms_that_are_half_are_refused(body: Any):
    with pytest.raises(InvalidInput):
        read_table(body)
