"""Tells whether text that comes in pieces can still become JSON."""

from __future__ import annotations

import re

LITERALS = ("true", "false", "null")
NUMBER_BEGINNING = re.compile(r"-?(?:(?:0|[1-9]\d*)(?:\.\d*)?(?:[eE][+-]?\d*)?)?")
BLANKS = frozenset(" \t\r\n")
ATOM_CHARACTERS = frozenset("+-.0123456789eEtrufalsn")


class JsonPrefix:
    """A pushdown automaton over characters; cheap enough to run beside a generation."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._wanted = "value"
        self._atom = ""

    def take(self, text: str) -> bool:
        """Whether all text so far is the beginning of one JSON value, or all of it."""
        return all(map(self._step, text))

    def _step(self, character: str) -> bool:
        if self._wanted in ("string", "key string"):
            return self._in_string(character)
        if self._wanted == "escaped" or self._wanted == "key escaped":
            self._wanted = self._wanted.replace("escaped", "string")
            return character in '"\\/bfnrtu'
        if self._wanted == "atom":
            if character in ATOM_CHARACTERS:
                return self._in_atom(character)
            self._wanted = "comma"
        if character in BLANKS:
            return True
        return self._between(character)

    def _in_string(self, character: str) -> bool:
        if character == "\\":
            self._wanted = self._wanted.replace("string", "escaped")
        elif character == '"':
            self._wanted = "colon" if self._wanted == "key string" else "comma"
        return character >= " "

    def _in_atom(self, character: str) -> bool:
        self._atom += character
        is_literal = any(literal.startswith(self._atom) for literal in LITERALS)
        return is_literal or NUMBER_BEGINNING.fullmatch(self._atom) is not None

    def _between(self, character: str) -> bool:
        match self._wanted, character:
            case (("key" | "key or end"), '"'):
                self._wanted = "key string"
            case "colon", ":":
                self._wanted = "value"
            case "comma", "," if self._open:
                self._wanted = "key" if self._open[-1] == "}" else "value"
            case (("comma" | "key or end" | "value or end"), ("}" | "]")) if self._open:
                self._wanted = "comma"
                return self._open.pop() == character
            case (("value" | "value or end"), _):
                return self._begin_value(character)
            case _:
                return False
        return True

    def _begin_value(self, character: str) -> bool:
        match character:
            case '"':
                self._wanted = "string"
            case "{":
                self._open.append("}")
                self._wanted = "key or end"
            case "[":
                self._open.append("]")
                self._wanted = "value or end"
            case _:
                self._wanted, self._atom = "atom", ""
                return character in ATOM_CHARACTERS and self._in_atom(character)
        return True
