"""The input of a batch: one request a line, as OpenAI's clients write it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from wherry.client.batch_schema import Fault

MAX_FAULTS = 100
MAX_ID_CHARACTERS = 512
ANY_ENDPOINT = "*"
"""Of a batch whose lines may name any row."""
FIELD = re.compile(r"at `\$\.(\w{1,80})|field `(\w{1,80})`")
"""Where a message of msgspec's names the field that it is about."""
PATH = re.compile(r"/[A-Za-z0-9._~/@:*-]{1,1023}")
"""A path without escapes and query."""


class Line(msgspec.Struct):
    """A request."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw
    number: int = 0
    """Of the line in the file, from 1; set here."""


class Envelope(msgspec.Struct):
    """The one field of a body that concerns batches."""

    stream: Any = None


class Checked(msgspec.Struct):
    """What a look through the whole file found."""

    total: int = 0
    faults: list[Fault] = []


_decode_line = msgspec.json.Decoder(Line).decode
_decode_envelope = msgspec.json.Decoder(Envelope).decode


def read_lines(path: Path, max_line_bytes: int) -> Iterator[Line | Fault]:
    """Every line that is not empty, or what is wrong with it."""
    with path.open("rb") as file:
        number = 0
        while text := file.readline(max_line_bytes + 1):
            number += 1
            if len(text) > max_line_bytes:
                yield Fault("line_too_long", f"it has more than {max_line_bytes} bytes", number)
                return  # where the next one begins is for others to find out
            if text.strip():
                yield read_line(text, number)


def read_line(text: bytes, number: int) -> Line | Fault:
    """One line, or what is wrong with it."""
    try:
        line = _decode_line(text)
    except msgspec.ValidationError as error:
        found = FIELD.search(str(error))
        param = (found[1] or found[2]) if found else None
        return Fault("invalid_request", str(error), number, param)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Fault("invalid_json_line", f"the line is not valid JSON: {error}", number)
    line.number = number
    for param, message in _explain(line):
        return Fault("invalid_request", message, number, param)
    return line


def _explain(line: Line) -> Iterator[tuple[str, str]]:
    if not 0 < len(line.custom_id) <= MAX_ID_CHARACTERS:
        yield "custom_id", f"custom_id has 1 to {MAX_ID_CHARACTERS} characters"
    if line.method != "POST":
        yield "method", f"method is POST, not {line.method[:20]!r}"
    if not PATH.fullmatch(line.url):
        yield "url", f"{line.url[:200]!r} is not the path of an endpoint"
    if not bytes(line.body).lstrip().startswith(b"{"):
        yield "body", "body is an object"


def streams(line: Line) -> bool:
    """Whether its body asks for a stream, which no line of a file can hold."""
    try:
        return bool(_decode_envelope(line.body).stream)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # the row that it names will say what is wrong


def check_lines(path: Path, endpoint: str, max_lines: int, max_line_bytes: int) -> Checked:
    """Look through the whole file: shapes, ids that come twice, urls of other endpoints."""
    checked, seen = Checked(), set[str]()
    for line in read_lines(path, max_line_bytes):
        if isinstance(line, Fault):
            checked.faults.append(line)
        else:
            checked.total += 1
            checked.faults += _find_faults(line, endpoint, seen)
            seen.add(line.custom_id)
            if checked.total > max_lines:
                message = f"the file has more than {max_lines} requests"
                checked.faults.append(Fault("too_many_requests", message, line.number))
        if len(checked.faults) >= MAX_FAULTS or checked.total > max_lines:
            return checked
    if not checked.total and not checked.faults:
        checked.faults.append(Fault("empty_file", "the file has no requests"))
    return checked


def _find_faults(line: Line, endpoint: str, seen: set[str]) -> Iterator[Fault]:
    if line.custom_id in seen:
        message = f"custom_id {line.custom_id[:80]!r} has come before"
        yield Fault("duplicate_custom_id", message, line.number, "custom_id")
    if endpoint not in (ANY_ENDPOINT, line.url):
        message = f"the batch is for {endpoint!r}, not {line.url[:200]!r}"
        yield Fault("mismatched_endpoint", message, line.number, "url")
