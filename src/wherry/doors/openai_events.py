"""Events of a response's stream, counted, as the one that tells an error has the next number."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from wherry import errors
from wherry.doors.errors import encode, openai_error, status_of


class EventCount:
    """How many events of one stream have left."""

    def __init__(self) -> None:
        self._count = 0

    def note(self, events: bytes) -> bytes:
        """These events leave."""
        self._count += events.count(b"\n\n")
        return events

    async def follow(self, pieces: AsyncGenerator[bytes | memoryview]) -> AsyncGenerator[bytes]:
        """The stream itself."""
        async with aclosing(pieces):
            async for piece in pieces:
                yield self.note(bytes(piece))

    def error_event(self, error: errors.WherryError) -> bytes:
        """After the first byte there is no status."""
        told = openai_error(error, status_of(error))
        fields = {name: told[name] for name in ("code", "message", "param")}
        data = encode({"type": "error", "sequence_number": self._count, **fields})
        return b"event: error\ndata: " + data + b"\n\n"
