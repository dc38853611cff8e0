"""What a gateway and a worker say to each other about a response that is kept.

The gateway reads none of what it keeps: the request is passed on as it came, with the earlier turns
of its conversation; what comes back is the response as clients read it, its input items, and what
the turn adds to the conversation, packed. Only the outermost fields of a response are ever looked
at, when one ends otherwise than its worker could say.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from wherry.errors import InvalidInput, ModelFailed, TooLarge
from wherry.models.tasks.packing import FrameReader, unpack

Status = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]


class TurnRequest(msgspec.Struct, array_like=True):
    """Body of a request by the codec `openai.responses.turn`."""

    id: str
    """Of the response, `resp_…`."""
    body: bytes
    """The request as it came."""
    history: list[bytes] = []
    """`Turn.messages` of the conversation so far, oldest first."""
    is_announced: bool = False
    """Nothing is generated: the answer is the turn as it begins."""


class InputItem(msgspec.Struct, array_like=True):
    """An item of a request's input."""

    id: str
    json: bytes


class Turn(msgspec.Struct, array_like=True):
    """A response, and all that must be kept of it."""

    status: Literal["in_progress", "completed", "incomplete"]
    response: bytes
    """JSON, as clients read it."""
    input_items: list[InputItem]
    messages: bytes
    """Packed `list[Message]`: what the turn adds to its conversation."""


class TurnPiece(msgspec.Struct, array_like=True):
    """A framed message of a stream."""

    events: bytes
    """For the client, finished; to be passed on when `turn` is kept."""
    turn: Turn | None = None


class TurnFailure(msgspec.Struct):
    """`error` of a response that failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


def read_turn(data: bytes | memoryview) -> Turn:
    """A turn as its worker packed it; `ModelFailed` for anything else: workers are not trusted."""
    try:
        return unpack(data, Turn)
    except InvalidInput as error:
        raise _unreadable() from error


class TurnReader:
    """Reads the pieces of a stream, however it was cut."""

    def __init__(self) -> None:
        self._reader = FrameReader()

    def feed(self, chunk: bytes | memoryview) -> list[TurnPiece]:
        """The pieces that are whole now; `ModelFailed` if these are none."""
        try:
            return [unpack(message, TurnPiece) for message in self._reader.feed(chunk)]
        except (InvalidInput, TooLarge) as error:
            raise _unreadable() from error


def _unreadable() -> ModelFailed:
    return ModelFailed("what the model's worker answered cannot be read")


def with_outcome(
    response: bytes, status: Literal["failed", "cancelled"], failure: TurnFailure | None = None
) -> bytes:
    """A response that had begun, as it ended; nothing below its outermost fields is read."""
    try:
        fields: dict[str, Any] = msgspec.json.decode(response, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the kept response is not valid JSON: {error}") from error
    return msgspec.json.encode(fields | {"status": status, "error": failure})
