"""Finds tool calls in generated text, as it comes."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection
from typing import Any, Protocol

import msgspec

from wherry.models.tasks.generation import TextDelta, ToolCallDelta

OPEN_TAG, CLOSE_TAG = "<tool_call>", "</tool_call>"
MAX_HELD_CHARACTERS = 200
"""A JSON object that has not named a known tool by then is an answer, not a call."""
CALL_START = re.compile(
    r'\s*\{\s*"name"\s*:\s*"(?P<name>[^"\\]{1,128})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)


class AnswerReader(Protocol):
    """Turns generated text into deltas; made for one answer."""

    called: bool
    """Whether a tool was called."""

    def feed(self, text: str) -> TextDelta:
        """What is certain after some more text."""
        ...

    def finish(self) -> TextDelta:
        """What was held back, now that no more comes."""
        ...


class TextReader:
    """An answer in words: everything passes at once."""

    called = False

    def feed(self, text: str) -> TextDelta:
        """The text as it is."""
        return TextDelta(text=text)

    def finish(self) -> TextDelta:
        """Nothing was held back."""
        return TextDelta()


class ForcedCallReader:
    """Reads `{"name": …, "arguments": {…}}`, which the grammar guarantees, piece by piece."""

    def __init__(self) -> None:
        self.called = False
        self._start = ""
        self._value = JsonValueEnd()

    def feed(self, text: str) -> TextDelta:
        """The call's name once it is known, then its arguments as they come."""
        if self.called:
            return self._arguments(text)
        self._start += text
        found = CALL_START.match(self._start)
        if found is None:
            return TextDelta()
        self.called = True
        delta = TextDelta(tool_calls=[ToolCallDelta(0, new_call_id(), found["name"])])
        delta.tool_calls += self._arguments(self._start[found.end() :]).tool_calls
        return delta

    def finish(self) -> TextDelta:
        """Nothing: what was not a call cannot be an answer here."""
        return TextDelta()

    def _arguments(self, text: str) -> TextDelta:
        piece = self._value.take(text)
        return TextDelta(tool_calls=[ToolCallDelta(0, arguments=piece)] if piece else [])


class JsonValueEnd:
    """Tells where a JSON object ends in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._ended = False

    def take(self, text: str) -> str:
        """The part of `text` that belongs to the object."""
        for index, character in enumerate(text):
            if self._ended:
                return text[:index]
            self._step(character)
        return text

    def _step(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped = character == "\\"
            self._in_string = character != '"'
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self._ended = self._depth == 0


class CallFinder:
    """Reads an answer that may be words or calls, for templates that do not know tools.

    A call is `<tool_call>{…}</tool_call>`, or an answer that is one JSON object naming a known
    tool. Everything else, also a call that does not parse, comes out as text, letter for letter.
    """

    def __init__(self, tool_names: Collection[str], *, parallel: bool) -> None:
        self.called = False
        self._names = tool_names
        self._parallel = parallel
        self._held = ""
        self._at_start = True
        self._calls = 0

    def feed(self, text: str) -> TextDelta:
        """Text that cannot be part of a call, and calls that are complete."""
        self._held += text
        delta = TextDelta()
        while self._step(delta):
            pass
        return delta

    def finish(self) -> TextDelta:
        """The rest: a last call, or text that looked like the beginning of one."""
        delta = TextDelta()
        held, self._held = self._held, ""
        body = held.strip().removeprefix(OPEN_TAG).removesuffix(CLOSE_TAG)
        if held and not ((self._at_start or OPEN_TAG in held) and self._add_call(body, delta)):
            delta.text = held
        return delta

    def _step(self, delta: TextDelta) -> bool:
        """Settle the beginning of what is held; False when more text is needed."""
        if self._at_start and self._may_be_bare_call():
            return False
        opened = self._held.find(OPEN_TAG)
        if opened < 0:
            sure = len(self._held) - _partial_tag(self._held)
            self._release(delta, sure)
            return False
        if opened > 0:
            self._release(delta, opened)
        closed = self._held.find(CLOSE_TAG)
        if closed < 0:
            return False
        body, end = self._held[len(OPEN_TAG) : closed], closed + len(CLOSE_TAG)
        if self._add_call(body, delta):
            self._held = self._held[end:].lstrip()
        else:
            self._release(delta, end)
        return bool(self._held)

    def _may_be_bare_call(self) -> bool:
        start = self._held.lstrip()
        if not start:
            return True
        if not start.startswith("{"):
            return False
        found = CALL_START.match(start)
        return found["name"] in self._names if found else len(start) < MAX_HELD_CHARACTERS

    def _release(self, delta: TextDelta, count: int) -> None:
        text, self._held = self._held[:count], self._held[count:]
        if text and not (self.called and text.isspace()):  # blank lines between calls
            delta.text += text
            self._at_start = False

    def _add_call(self, body: str, delta: TextDelta) -> bool:
        call = _read_call(body)
        if call is None or call[0] not in self._names or (self._calls and not self._parallel):
            return False
        delta.tool_calls += [
            ToolCallDelta(self._calls, new_call_id(), call[0]),
            ToolCallDelta(self._calls, arguments=call[1]),
        ]
        self._calls += 1
        self.called = True
        self._at_start = False
        return True


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{uuid.uuid4().hex[:24]}"


def _partial_tag(text: str) -> int:
    """How many characters at the end could be the beginning of `<tool_call>`."""
    for length in range(min(len(OPEN_TAG) - 1, len(text)), 0, -1):
        if OPEN_TAG.startswith(text[-length:]):
            return length
    return 0


def _read_call(body: str) -> tuple[str, str] | None:
    """Name and arguments (JSON text) of a call, if `body` is one."""
    try:
        call: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments: Any = call.get("arguments", call.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return call["name"], msgspec.json.encode(arguments).decode()
