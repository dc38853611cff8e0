"""Checks that a JSON value has the shape of a guarded schema (see `json_schema_guard`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]


def conforms(value: Any, schema: Schema) -> bool:
    """Whether a value has the shape of a guarded schema.

    Patterns and formats are left to the grammar: checking them here would run a client's
    regular expression.
    """
    return _conforms(value, schema, schema.get("$defs", {}))


def _conforms(value: Any, schema: Schema, definitions: Mapping[str, Schema]) -> bool:
    if "$ref" in schema:
        return _conforms(value, definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema:
        return any(type(value) is type(each) and value == each for each in schema["enum"])
    if "anyOf" in schema:
        return any(_conforms(value, branch, definitions) for branch in schema["anyOf"])
    kind = schema["type"]
    if not is_of_type(value, kind):
        return False
    match kind:
        case "object":
            return _object_conforms(value, schema, definitions)
        case "array":
            return _array_conforms(value, schema, definitions)
        case "string":
            return schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
        case "integer" | "number":
            above = schema.get("exclusiveMinimum", -math.inf) < value
            below = value < schema.get("exclusiveMaximum", math.inf)
            return above and below and schema["minimum"] <= value <= schema["maximum"]
        case _:
            return True


def _object_conforms(
    value: dict[str, Any], schema: Schema, definitions: Mapping[str, Schema]
) -> bool:
    properties = schema.get("properties", {})
    others = schema["additionalProperties"]
    return all(name in value for name in schema.get("required", [])) and all(
        _conforms(each, properties[name], definitions)
        if name in properties
        else others is not False and _conforms(each, others, definitions)
        for name, each in value.items()
    )


def _array_conforms(value: list[Any], schema: Schema, definitions: Mapping[str, Schema]) -> bool:
    first = schema.get("prefixItems", [])
    items = schema["items"]
    return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf) and all(
        _conforms(each, first[index], definitions)
        if index < len(first)
        else items is not False and _conforms(each, items, definitions)
        for index, each in enumerate(value)
    )


def is_of_type(value: Any, kind: str) -> bool:
    """Whether a decoded JSON value has a JSON schema type; 1.0 is an integer, true is not."""
    match kind:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return not isinstance(value, bool) and (
                isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            )
        case _:
            return isinstance(value, int | float) and not isinstance(value, bool)
