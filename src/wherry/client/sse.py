"""Server-sent events from bytes that may be split anywhere, also inside a character.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import msgspec

from wherry.errors import TooLarge

MAX_EVENT_BYTES = 16 << 20


class ServerEvent(msgspec.Struct, frozen=True):
    """One event; `data` is its data lines joined by line feeds."""

    data: bytes
    event: str = "message"
    id: str = ""


class EventParser:
    """Collects bytes and gives the events that are complete.

    Lines are split as bytes before anything is decoded: CR and LF never occur inside a UTF-8
    character.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._skip_line_feed = False
        self._at_start = True
        self._data: list[bytes] = []
        self._event = ""
        self.last_id = ""

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events that `chunk` completes."""
        if not chunk:
            return []
        if self._skip_line_feed:
            chunk = chunk.removeprefix(b"\n")
        self._skip_line_feed = chunk.endswith(b"\r")
        self._rest += chunk
        if self._at_start:
            if b"\xef\xbb\xbf".startswith(self._rest):
                return []  # may still become a byte order mark
            self._rest = self._rest.removeprefix(b"\xef\xbb\xbf")
            self._at_start = False
        *lines, self._rest = self._rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        events = [event for line in lines if (event := self._take_line(line)) is not None]
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise TooLarge(f"an event of the server is longer than {MAX_EVENT_BYTES} bytes")
        return events

    def _take_line(self, line: bytes) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self.last_id = value.decode("utf-8", "replace")
        return None

    def _dispatch(self) -> ServerEvent | None:
        data, self._data = self._data, []
        event, self._event = self._event or "message", ""
        if not data:
            return None
        return ServerEvent(data=b"\n".join(data), event=event, id=self.last_id)
