"""Turns a client's JSON schema into one that the grammar engine holds, or refuses it.

Three dangers are met here, before a schema reaches native code: nesting that overflows its
stack, patterns that explode, and parts that it would ignore without a word. What is left is
small, bounded and always terminates where the client's own schema allows it: numbers get a
finite number of digits, objects no keys that are not named.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from wherry.errors import InvalidInput
from wherry.worker.runtimes.json_conformance import Schema, is_of_type

MAX_DEPTH = 32
MAX_NODES = 2000
MAX_BRANCHES = 128
MAX_ENUM_VALUES = 500
MAX_TEXT_CHARACTERS = 64 * 1024
"""Of all names, constants and patterns together."""
MAX_LENGTH = 10_000
MAX_ITEMS = 1000
MAX_NUMBER = 1e15
LEAST_STEP = 1e-6
"""Numbers from 0 up are written with six decimals at most: each of those is a `number`."""

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
LONGEST_OF_FORMAT: Mapping[str, int] = {
    "date": 10,
    "uuid": 36,
    "ipv4": 15,
    "ipv6": 45,
    "time": 20,
    "date-time": 35,
    "duration": 32,
    "email": 254,
}
"""Formats the engine knows, with an end: seconds could have fractions for ever."""
KEYWORDS_OF: Mapping[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
UNENFORCED = (
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "patternProperties",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
    "minProperties",
    "maxProperties",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "multipleOf",
    "$dynamicRef",
    "$recursiveRef",
)
"""Keywords that constrain but cannot be held while text is generated."""

SIMPLE_PATTERN = re.compile(
    r"\^(?:(?:\[[A-Za-z0-9_ .:/@#%+-]{1,64}\]|\\[dw.]|[A-Za-z0-9_ :/@#%-])"
    r"(?:[?+*]|\{\d{1,2}(?:,\d{0,2})?\})?){0,16}\$"
)
"""Anchored at both ends; characters, sets and repeats, but no groups, so nothing nests."""
LOCAL_REFERENCE = re.compile(r"#(?:/(?:\$defs|definitions)/([^/]{1,200}))?")

ANY_NAME = "any"


def guard_schema(schema: Any, *, strict: bool = False) -> Schema:
    """An equivalent schema that can be held while generating.

    Args:
        schema: the client's schema; only references into its own `$defs` are followed.
        strict: refuse keywords that cannot be held, instead of leaving them out.

    Raises:
        InvalidInput: too deep, too large, malformed, or asking for what cannot be held.
    """
    return _Guard(schema, strict=strict).guard()


class _Guard:
    """One schema on its way through."""

    def __init__(self, root: Any, *, strict: bool) -> None:
        self._root = root
        self._strict = strict
        self._nodes = 0
        self._characters = 0
        self._definitions: dict[str, Schema] = {}
        self._name_of: dict[str, str] = {}
        self._pending: list[str] = []

    def guard(self) -> Schema:
        """Visit the root and every definition it reaches."""
        root = self._visit(self._root, 0)
        while self._pending:
            reference = self._pending.pop()
            self._definitions[self._name_of[reference]] = self._visit(self._find(reference), 0)
        _refuse_empty_cycles(self._definitions)
        return {**root, "$defs": self._definitions} if self._definitions else root

    def _visit(self, schema: Any, depth: int) -> Schema:
        self._nodes += 1
        if depth > MAX_DEPTH:
            raise InvalidInput(f"the schema is nested more than {MAX_DEPTH} deep")
        if self._nodes > MAX_NODES:
            raise InvalidInput(f"the schema has more than {MAX_NODES} parts")
        if schema is True:
            return self._any()
        if not isinstance(schema, dict):
            raise InvalidInput(f"a schema must be an object, not {_shown(schema)}")
        self._check_keywords(schema)
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "const" in schema or "enum" in schema:
            return self._constants(schema)
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema:
                return self._combination(schema, keyword, depth)
        return self._typed(schema, depth)

    def _check_keywords(self, schema: Schema) -> None:
        unenforced = [key for key in UNENFORCED if schema.get(key, False) is not False]
        if unenforced and self._strict:
            raise InvalidInput(
                f"the schema uses {unenforced[0]!r}, which cannot be held while generating",
                hint="leave it out, or set strict to false and check it yourself",
            )

    def _any(self) -> Schema:
        """Any JSON value; as a definition, so that numbers inside have an end too."""
        anything = {"$ref": f"#/$defs/{ANY_NAME}"}
        self._definitions[ANY_NAME] = {
            "anyOf": [
                {"type": "object", "additionalProperties": anything},
                {"type": "array", "items": anything},
                {"type": "string"},
                _number_range({}, "number"),
                {"type": "boolean"},
                {"type": "null"},
            ]
        }
        return dict(anything)

    def _reference(self, reference: Any) -> Schema:
        if not isinstance(reference, str) or not LOCAL_REFERENCE.fullmatch(reference):
            raise InvalidInput(
                f"the schema refers to {_shown(reference)}", hint="use $ref into its own $defs"
            )
        if reference not in self._name_of:
            self._name_of[reference] = f"d{len(self._name_of)}"
            self._pending.append(reference)
        return {"$ref": f"#/$defs/{self._name_of[reference]}"}

    def _find(self, reference: str) -> Any:
        found = self._root
        for key in reference.split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise InvalidInput(f"the schema refers to {reference!r}, which it does not have")
            found = found[key]
        return found

    def _constants(self, schema: Schema) -> Schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(values, list) or not 1 <= len(values) <= MAX_ENUM_VALUES:
            raise InvalidInput(f"'enum' must be a list of 1 to {MAX_ENUM_VALUES} values")
        kinds = self._types_of(schema) if "type" in schema else list(TYPES)
        for value in values:
            self._count_text(repr(value))
        fitting = [value for value in values if any(is_of_type(value, kind) for kind in kinds)]
        if not fitting:
            raise InvalidInput("the schema's constants do not have its own 'type'")
        return {"enum": fitting}

    def _combination(self, schema: Schema, keyword: str, depth: int) -> Schema:
        branches = schema[keyword]
        if not isinstance(branches, list) or not 1 <= len(branches) <= MAX_BRANCHES:
            raise InvalidInput(f"{keyword!r} must be a list of 1 to {MAX_BRANCHES} schemas")
        beside = [key for keys in KEYWORDS_OF.values() for key in keys if key in schema]
        if beside or (keyword == "allOf" and len(branches) > 1):
            raise InvalidInput(
                f"the schema combines {keyword!r} with {(beside or ['more schemas'])[0]!r}",
                hint="write the combined schema out",
            )
        visited = [self._visit(branch, depth + 1) for branch in branches]
        return visited[0] if len(visited) == 1 else {"anyOf": visited}

    def _typed(self, schema: Schema, depth: int) -> Schema:
        kinds = self._types_of(schema)
        if not kinds:
            return self._any()
        build = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
        }
        built = [build[kind](schema, depth) if kind in build else {"type": kind} for kind in kinds]
        return built[0] if len(built) == 1 else {"anyOf": built}

    def _types_of(self, schema: Schema) -> list[str]:
        """The types a schema names, or the one its keywords imply, or none."""
        if "type" not in schema:
            implied = [kind for kind, keys in KEYWORDS_OF.items() if any(k in schema for k in keys)]
            return implied[:1]
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not named or len(named) > len(TYPES):
            raise InvalidInput("'type' of a schema must name at least one type")
        for kind in named:
            if kind not in TYPES:
                raise InvalidInput(
                    f"the schema has unknown type {_shown(kind)}", hint="known: " + ", ".join(TYPES)
                )
        return list(dict.fromkeys(named))

    def _object(self, schema: Schema, depth: int) -> Schema:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict):
            raise InvalidInput("'properties' of a schema must be an object")
        if not isinstance(required, list) or any(not isinstance(each, str) for each in required):
            raise InvalidInput("'required' of a schema must be a list of names")
        properties = properties | {name: True for name in required if name not in properties}
        for name in properties:
            self._count_text(name)
        others = schema.get("additionalProperties", not properties)
        return {
            "type": "object",
            "properties": {name: self._visit(each, depth + 1) for name, each in properties.items()},
            "required": list(dict.fromkeys(required)),
            # keys nobody named are kept out, so that a small model comes to an end
            "additionalProperties": others is not False and self._visit(others, depth + 1),
        }

    def _array(self, schema: Schema, depth: int) -> Schema:
        least = _size(schema, "minItems", 0, MAX_ITEMS)
        most = _size(schema, "maxItems", MAX_ITEMS, MAX_ITEMS)
        _check_order(least, most, "minItems")
        array: Schema = {"type": "array", "minItems": least}
        if "maxItems" in schema:
            array["maxItems"] = most
        first = schema.get("prefixItems")
        if first is not None:
            if not isinstance(first, list) or not 1 <= len(first) <= MAX_BRANCHES:
                raise InvalidInput(f"'prefixItems' must be a list of 1 to {MAX_BRANCHES} schemas")
            array["prefixItems"] = [self._visit(each, depth + 1) for each in first]
        items = schema.get("items", first is None)
        array["items"] = items is not False and self._visit(items, depth + 1)
        return array

    def _string(self, schema: Schema, depth: int) -> Schema:
        del depth
        string: Schema = {"type": "string"}
        least = _size(schema, "minLength", 0, MAX_LENGTH)
        most = _size(schema, "maxLength", MAX_LENGTH, MAX_LENGTH)
        _check_order(least, most, "minLength")
        if least:
            string["minLength"] = least
        if "maxLength" in schema:
            string["maxLength"] = most
        if schema.get("format") in LONGEST_OF_FORMAT:
            string["format"] = schema["format"]
            string["maxLength"] = min(most, LONGEST_OF_FORMAT[schema["format"]])
        if "pattern" in schema:
            string["pattern"] = self._pattern(schema["pattern"])
        return string

    def _integer(self, schema: Schema, depth: int) -> Schema:
        del depth
        return _number_range(schema, "integer")

    def _number(self, schema: Schema, depth: int) -> Schema:
        del depth
        return _number_range(schema, "number")

    def _pattern(self, pattern: Any) -> str:
        if not isinstance(pattern, str) or not SIMPLE_PATTERN.fullmatch(pattern):
            raise InvalidInput(
                f"the schema's pattern {_shown(pattern)} is not supported",
                hint="use ^…$ with characters, sets like [a-z] and repeats like {3}; no groups",
            )
        self._count_text(pattern)
        return pattern

    def _count_text(self, text: str) -> None:
        self._characters += len(text)
        if self._characters > MAX_TEXT_CHARACTERS:
            raise InvalidInput(f"the schema has more than {MAX_TEXT_CHARACTERS} characters of text")


def _number_range(schema: Schema, kind: str) -> Schema:
    """A number between bounds that are always finite."""
    built: Schema = {
        "type": kind,
        "minimum": _bound(schema, "minimum", -MAX_NUMBER),
        "maximum": _bound(schema, "maximum", MAX_NUMBER),
    }
    for keyword, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if schema.get(keyword) is True:  # how draft 4 of JSON schema wrote it
            built[keyword] = built[inclusive]
        elif schema.get(keyword, False) is not False:
            built[keyword] = _bound(schema, keyword, 0)
    low = max(built["minimum"], built.get("exclusiveMinimum", -math.inf))
    high = min(built["maximum"], built.get("exclusiveMaximum", math.inf))
    if low > high:
        raise InvalidInput(f"the schema has a {kind} from {low} to {high}")
    built = {key: _whole(value) for key, value in built.items()}
    return built if kind == "integer" else _end_decimals(built)


def _end_decimals(number: Schema) -> Schema:
    """Let decimals end after six digits, which the engine can do for numbers from 0 up only."""
    stepped = {"multipleOf": LEAST_STEP}
    if number["minimum"] >= 0:
        return number | stepped
    if number["maximum"] < 0:
        return number
    negative = number | {"maximum": 0, "exclusiveMaximum": 0}
    if number.get("exclusiveMinimum", -1) >= 0:
        return number | {"minimum": 0} | stepped
    positive = {key: each for key, each in number.items() if key != "exclusiveMinimum"}
    return {"anyOf": [positive | {"minimum": 0} | stepped, negative]}


def _bound(schema: Schema, keyword: str, default: float) -> float:
    value = schema.get(keyword, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput(f"{keyword!r} of a schema must be a number, not {_shown(value)}")
    return min(max(value, -MAX_NUMBER), MAX_NUMBER)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _size(schema: Schema, keyword: str, default: int, most: int) -> int:
    value = schema.get(keyword, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidInput(f"{keyword!r} of a schema must be a whole number from 0 to {most}")
    return value


def _check_order(least: int, most: int, keyword: str) -> None:
    if least > most:
        raise InvalidInput(f"{keyword!r} of a schema is over its maximum")


def _refuse_empty_cycles(definitions: Mapping[str, Schema]) -> None:
    """Refuse a definition that leads back to itself without a bracket in between."""

    def reached_from(schema: Schema) -> list[str]:
        if "$ref" in schema:
            return [schema["$ref"].rpartition("/")[2]]
        return [name for branch in schema.get("anyOf", []) for name in reached_from(branch)]

    for start in definitions:
        seen: set[str] = set()
        pending = reached_from(definitions[start])
        while pending:
            name = pending.pop()
            if name == start:
                raise InvalidInput("the schema refers to itself without end")
            if name not in seen:
                seen.add(name)
                pending += reached_from(definitions[name])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
