"""The results of a batch of messages: the lines of its two files, as Anthropic's clients read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from wherry import errors
from wherry.doors.errors import anthropic_error, status_of
from wherry.jobs.batches.outputs import CANCELLED, EXPIRED

PIECE_BYTES = 256 << 10


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw


class _Failure(msgspec.Struct):
    code: str
    message: str


class _Entry(msgspec.Struct):
    """A line as the batch wrote it."""

    id: str
    custom_id: str
    response: _Response | None
    error: _Failure | None


class Succeeded(msgspec.Struct, tag="succeeded"):
    """A message was made."""

    message: msgspec.Raw


class Errored(msgspec.Struct, tag="errored"):
    """The request was refused, or failed."""

    error: Any


class Canceled(msgspec.Struct, tag="canceled"):
    """The batch was stopped before the request was answered."""


class Expired(msgspec.Struct, tag="expired"):
    """The day had passed before the request was answered."""


Result = Succeeded | Errored | Canceled | Expired


class ResultLine(msgspec.Struct):
    """A line of the results."""

    custom_id: str
    result: Result


_decode = msgspec.json.Decoder(_Entry).decode
_encode = msgspec.json.Encoder().encode


def read_results(paths: Iterable[Path]) -> Iterator[bytes]:
    """The lines of a batch's files, translated, in pieces of many; blocking."""
    waiting = bytearray()
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                waiting += _encode(_translate(_decode(line))) + b"\n"
                if len(waiting) >= PIECE_BYTES:
                    yield bytes(waiting)
                    waiting.clear()
    if waiting:
        yield bytes(waiting)


def _translate(entry: _Entry) -> ResultLine:
    return ResultLine(entry.custom_id, _result_of(entry))


def _result_of(entry: _Entry) -> Result:
    if entry.response is not None:
        body = entry.response.body
        return Succeeded(body) if entry.response.status_code < 400 else Errored(body)
    failure = entry.error or _Failure("internal", "this request was not answered")
    if failure.code == CANCELLED.code:
        return Canceled()
    if failure.code == EXPIRED.code:
        return Expired()
    error = errors.from_code(failure.code, failure.message)
    return Errored(anthropic_error(error, status_of(error), entry.id))
