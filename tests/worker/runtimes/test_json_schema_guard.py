from typing import Any

import pytest

from wherry.errors import InvalidInput
from wherry.worker.runtimes.json_conformance import conforms
from wherry.worker.runtimes.json_schema_guard import MAX_NODES, guard_schema

CITY = {
    "type": "object",
    "title": "City",
    "properties": {
        "name": {"type": "string", "description": "its name"},
        "population": {"type": "integer", "minimum": 0},
        "unit": {"enum": ["c", "f"]},
    },
    "required": ["name", "population"],
}
TREE = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
    "$ref": "#/$defs/Node",
}


def nested(levels: int, key: str = "items") -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", key: schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            CITY,
            [{"name": "a", "population": 3}, {"name": "", "population": 0, "unit": "c"}],
            [{}, {"name": "a", "population": -1}, {"name": "a", "population": 1, "x": 1}, []],
        ),
        (
            TREE,
            [{"value": 1.5, "next": {"value": -2, "next": None}}],
            [{"value": 1, "next": {"value": 1}}, {"value": "1", "next": None}],
        ),
        ({"type": "object"}, [{}, {"a": [1, {"b": None}]}], [[], 1]),
        ({}, [1, "a", [None], {"a": True}], []),
        (True, [1, None], []),
        ({"type": ["string", "null"]}, ["a", None], [1, True]),
        ({"type": "integer", "exclusiveMinimum": 3, "maximum": 5}, [4, 5], [3, 6, 4.5, True]),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, [4], [3]),
        ({"type": "number", "minimum": -1, "maximum": 1}, [-1, 0.25, 1], [1.5, -2, "1"]),
        ({"type": "number", "exclusiveMaximum": 0}, [-1], [0, 1]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "你好啊"], ["a", "abcd"]),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 1}, [[], [None]], [[None, None]]),
        (
            {"prefixItems": [{"type": "null"}], "items": False},
            [[], [None]],
            [[1], [None, None]],
        ),
        ({"const": {"a": 1}}, [{"a": 1}], [{"a": 2}]),
        ({"enum": [1, "x"], "type": "string"}, ["x"], [1]),
        ({"allOf": [{"type": "boolean"}]}, [True], [1]),
        ({"oneOf": [{"type": "boolean"}, {"type": "null"}]}, [True, None], [0]),
        ({"required": ["a"]}, [{"a": 1}], [{}, {"b": 1}]),
        ({"additionalProperties": {"type": "integer"}}, [{}, {"a": 1}], [{"a": "1"}]),
        ({"items": {"$ref": "#"}}, [[], [[], [[]]]], [[1], 1]),
        (
            {"definitions": {"a/b": {"type": "null"}}, "$ref": "#/definitions/a~1b"},
            [None],
            [1],
        ),
    ],
)
def test_a_guarded_schema_means_the_same(schema: Any, good: list[Any], bad: list[Any]) -> None:
    guarded = guard_schema(schema)
    assert all(conforms(value, guarded) for value in good)
    assert not any(conforms(value, guarded) for value in bad)


@pytest.mark.parametrize(
    "schema",
    [
        nested(20_000),
        nested(100, "contains") | {"items": nested(100)},
        {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(MAX_NODES)}},
        {"anyOf": [{"const": i} for i in range(10_000)]},
        {"enum": list(range(501))},
        {"enum": ["x" * 70_000]},
        {"enum": []},
        {"type": "nonsense"},
        {"type": []},
        {"type": None},
        {"type": ["string", ["null"]]},
        {"type": "string", "pattern": "^((a?){40}){40}b$"},
        {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"},
        {"type": "string", "pattern": "(a+)+$"},
        {"type": "string", "pattern": "unanchored"},
        {"type": "string", "pattern": "^(?=a)$"},
        {"type": "string", "pattern": 5},
        {"type": "string", "minLength": 5, "maxLength": 4},
        {"type": "string", "maxLength": 10**9},
        {"type": "string", "maxLength": -1},
        {"type": "array", "minItems": 5000},
        {"type": "array", "maxItems": True},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "integer", "minimum": "5"},
        {"type": "number", "minimum": float("nan")},
        {"$ref": "http://127.0.0.1:1/x"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "#/properties/a", "properties": {"a": {}}},
        {"$ref": 5},
        {"$ref": "#"},
        {"$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]}}, "$ref": "#/$defs/A"},
        {"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"},
        {"anyOf": []},
        {"allOf": [{"type": "string"}, {"minLength": 1}]},
        {"anyOf": [{"type": "string"}], "properties": {"a": {}}},
        {"properties": []},
        {"properties": {"a": 5}},
        {"properties": {"a": False}},
        {"required": "a"},
        {"required": [1]},
        {"prefixItems": []},
        {"items": [{"type": "null"}]},
        "string",
        None,
        [],
    ],
)
def test_a_schema_that_harms_or_means_nothing_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidInput):
        guard_schema(schema)


def test_what_cannot_be_held_is_left_out_unless_strict() -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    assert "uniqueItems" not in guard_schema(schema)
    with pytest.raises(InvalidInput, match="uniqueItems"):
        guard_schema(schema, strict=True)
    assert guard_schema({"type": "array", "uniqueItems": False}, strict=True)["type"] == "array"


def test_a_simple_anchored_pattern_is_kept() -> None:
    for pattern in (r"^[a-z]{3}-\d+$", "^A?B*[0-9_]{1,4}$"):
        assert guard_schema({"type": "string", "pattern": pattern})["pattern"] == pattern


def test_objects_are_closed_and_numbers_finite() -> None:
    guarded = guard_schema(CITY)
    assert guarded["additionalProperties"] is False
    assert guarded["properties"]["population"]["maximum"] == 10**15
    assert guard_schema({"type": "object"})["additionalProperties"] == {"$ref": "#/$defs/any"}


def test_an_infinitely_deep_value_is_no_reason_to_crash() -> None:
    value: Any = []
    for _ in range(100):
        value = [value]
    assert conforms(value, guard_schema({"items": {"$ref": "#"}}))
