"""A client of raw bytes, and answers taken apart by the letter of RFC 9112."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

KEY = b"wherry-conformance-0123456789-0123456789"
HOST = b"Host: 127.0.0.1\r\n"
AUTHORIZATION = b"Authorization: Bearer " + KEY + b"\r\n"
PROBE = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: probe\r\n\r\n"
SECONDS = 30.0
"""Longer than any answer takes here."""
QUIET_SECONDS = 0.3
"""How long nothing must come where nothing may come."""

STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) ([A-Za-z -]+)\r\n")
FIELD = re.compile(rb"([a-z0-9-]+): ([\x20-\x7e]*)\r\n")
CHUNK = re.compile(rb"([0-9a-f]+)\r\n")
CHANGING = {"date", "x-request-id", "server-timing", "openai-processing-ms"}
REQUEST_ID = re.compile(rb"req-[0-9a-z]+")


@dataclass
class Reply:
    """One answer, without what differs from request to request."""

    status: int
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = True


def read_reply(data: bytes, is_head: bool = False) -> tuple[Reply, bytes] | None:
    """The first answer and what follows it; None if there is none yet.

    Raises:
        AssertionError: this is not HTTP.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        assert b"HTTP/1.1 ".startswith(data[:9]), data
        return None
    line = STATUS_LINE.match(head + b"\r\n")
    assert line, head
    fields: dict[str, str] = {}
    position = line.end()
    lines = head + b"\r\n"
    while position < len(lines):
        found = FIELD.match(lines, position)
        assert found, lines[position:]
        name = found[1].decode()
        assert name not in fields, f"{name} occurs twice"
        fields[name] = found[2].decode()
        position = found.end()
    reply = Reply(int(line[1]), fields)
    if reply.status < 200:
        return reply, rest
    assert ("content-length" in fields) != ("transfer-encoding" in fields), head
    assert "date" in fields, head
    body = read_body(rest, fields, is_head)
    if body is None:
        return None
    reply.body, rest = body
    reply.body = REQUEST_ID.sub(b"req", reply.body)
    reply.fields = {name: value for name, value in fields.items() if name not in CHANGING}
    return reply, rest


def read_body(data: bytes, fields: dict[str, str], is_head: bool) -> tuple[bytes, bytes] | None:
    """A whole body and what follows it."""
    if is_head:
        return b"", data
    if "content-length" in fields:
        length = int(fields["content-length"])
        return (data[:length], data[length:]) if len(data) >= length else None
    assert fields["transfer-encoding"] == "chunked"
    body = b""
    while found := CHUNK.match(data):
        length = int(found[1], 16)
        piece, data = data[found.end() : found.end() + length], data[found.end() + length :]
        if data[:2] != b"\r\n":
            assert len(data) < 2
            return None
        body, data = body + piece, data[2:]
        if not length:
            return body, data
    return None


class Connection:
    """One connection, whose answers are read while more is sent."""

    def __init__(self, address: tuple[str, int], is_head: bool = False) -> None:
        self.socket = socket.create_connection(address, timeout=SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.replies: list[Reply] = []
        self.unread = b""
        self.is_closed = False
        self._is_head = is_head

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send all, or what the server still takes."""
        position, deadline = 0, time.monotonic() + SECONDS
        while position < len(data) and not self.is_closed:
            assert time.monotonic() < deadline, "the server takes nothing more"
            readable, writable, _ = select.select([self.socket], [self.socket], [], 1.0)
            if readable:
                self._receive()
            if writable:
                try:
                    position += self.socket.send(data[position : position + (1 << 16)])
                except ConnectionError:
                    return

    def _receive(self) -> None:
        try:
            piece = self.socket.recv(1 << 18)
        except ConnectionError:
            piece = b""
        self.is_closed = not piece
        self.unread += piece
        while self.unread and (found := read_reply(self.unread, self._is_head)):
            reply, self.unread = found
            self.replies.append(reply)

    def read(self, count: int) -> None:
        """Wait for so many final answers, or the end."""
        deadline = time.monotonic() + SECONDS
        while not self.is_closed and len(self.final) < count:
            self.wait(deadline - time.monotonic())
            assert time.monotonic() < deadline, f"only {self.statuses} came"

    def read_to_end(self) -> None:
        """Wait until the server closes."""
        self.read(1 << 30)

    def wait(self, seconds: float) -> None:
        """Take what comes within some time."""
        if not self.is_closed and select.select([self.socket], [], [], max(0.0, seconds))[0]:
            self._receive()

    @property
    def final(self) -> list[Reply]:
        """Answers that are not interim ones."""
        return [each for each in self.replies if each.status >= 200]

    @property
    def statuses(self) -> list[int]:
        """All statuses, in order."""
        return [each.status for each in self.replies]

    def is_kept(self) -> bool:
        """Whether the connection serves another request; its answer is not kept."""
        before = len(self.replies)
        self._is_head = False
        self.send(PROBE)
        self.read(len(self.final) + 1)
        if self.is_closed:
            return False
        assert len(self.replies) == before + 1, self.statuses
        probe = self.replies.pop()
        assert probe.body == b'{"live":true}', probe
        return True


@dataclass
class Outcome:
    """What came of an exchange; equal on both paths."""

    replies: list[Reply]
    end: str
    """`kept`, `closed`, or `waits`: for more of the request."""

    @property
    def statuses(self) -> list[int]:
        """All statuses, in order."""
        return [each.status for each in self.replies]


def talk(
    address: tuple[str, int],
    pieces: Sequence[bytes | float],
    count: int,
    *,
    is_head: bool = False,
    waits: bool = False,
) -> Outcome:
    """Send pieces (numbers are pauses in seconds) and see what comes of it.

    Args:
        address: of the server.
        pieces: what is sent.
        count: final answers that come.
        is_head: they are answers to HEAD.
        waits: the last request is not whole.
    """
    with Connection(address, is_head) as connection:
        for piece in pieces:
            if isinstance(piece, bytes):
                connection.send(piece)
            else:
                time.sleep(piece)
        connection.read(count)
        if waits:
            connection.wait(QUIET_SECONDS)
            end = "closed" if connection.is_closed else "waits"
        else:
            end = "kept" if connection.is_kept() else "closed"
        assert not connection.unread, connection.unread[:200]
        return Outcome(connection.replies, end)


def post(
    path: bytes,
    body: bytes,
    *fields: bytes,
    line: bytes = b"POST %b HTTP/1.1\r\n",
    host: bytes = HOST,
    key: bytes = AUTHORIZATION,
    length: int | None = -1,
) -> bytes:
    """A request with the fields that it needs, and others.

    Args:
        path: its target.
        body: its body, as it is sent.
        fields: more lines of the head, without their ends.
        line: the request line.
        host: the line with the host.
        key: the line with the key.
        length: Content-Length; -1 = that of `body`, None = no such field.
    """
    head = (line % path if b"%b" in line else line) + host + key
    if length is not None:
        head += b"Content-Length: %d\r\n" % (len(body) if length < 0 else length)
    return head + b"".join(each + b"\r\n" for each in fields) + b"\r\n" + body


def in_chunks(body: bytes, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    """A body in two chunks and the last one."""
    half = len(body) // 2
    parts = [
        b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in (body[:half], body[half:])
    ]
    return b"".join(parts) + b"0" + extension + b"\r\n" + trailer + b"\r\n"
