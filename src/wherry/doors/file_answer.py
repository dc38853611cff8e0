"""Answers with a file: ranges, conditions and many at once, a piece of it in memory at a time.

https://www.rfc-editor.org/rfc/rfc9110#name-range-requests
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import BinaryIO

import msgspec

from wherry import errors
from wherry.doors.route import Inquiry, Response

PIECE_BYTES = 1 << 20
MAX_FILES_AT_ONCE = 128
"""Of one gateway: each may have a piece in memory and another in the socket's buffer."""
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class FileToSend(msgspec.Struct, frozen=True):
    """What a client may get."""

    open: Callable[[], BinaryIO]
    size: int
    """Bytes."""
    etag: str
    """Without quotes; changes with the bytes."""
    headers: Mapping[str, str] = {}


class FileAnswers:
    """The files that one gateway sends."""

    def __init__(self) -> None:
        self._sending = 0

    def answer(self, inquiry: Inquiry, file: FileToSend) -> Response:
        """The file, or the range of it that was asked for; only headers where that is enough.

        Raises:
            Overloaded: too many are being sent.
        """
        headers = {
            **file.headers,
            "etag": f'"{file.etag}"',
            "accept-ranges": "bytes",
            "cache-control": "private, no-cache",
        }
        if _names(inquiry.headers.get("if-none-match", ""), file.etag):
            return Response(_nothing(), 304, headers=headers)
        wanted = _read_range(inquiry.headers, file)
        if wanted is None:
            headers["content-range"] = f"bytes */{file.size}"
            return Response(status=416, headers=headers)
        start, end = wanted
        headers["content-length"] = str(end - start)
        status = 200
        if end - start < file.size:
            status, headers["content-range"] = 206, f"bytes {start}-{end - 1}/{file.size}"
        if inquiry.method == "HEAD":
            return Response(_nothing(), status, "application/octet-stream", headers)
        if self._sending >= MAX_FILES_AT_ONCE:
            raise errors.Overloaded(
                "too many files are being downloaded", hint="try again", retry_after_seconds=5.0
            )
        pieces = self._send(inquiry, file, start, end)
        return Response(pieces, status, "application/octet-stream", headers)

    async def _send(
        self, inquiry: Inquiry, file: FileToSend, start: int, end: int
    ) -> AsyncIterator[bytes]:
        self._sending += 1
        gone = asyncio.ensure_future(inquiry.wait_for_disconnect())
        try:
            opened = await asyncio.to_thread(file.open)
            try:
                opened.seek(start)
                while start < end and not gone.done():
                    piece = await asyncio.to_thread(opened.read, min(PIECE_BYTES, end - start))
                    if not piece:
                        raise errors.Internal("a stored file is shorter than it was")
                    start += len(piece)
                    yield piece
            finally:
                opened.close()
        finally:
            gone.cancel()
            self._sending -= 1


async def _nothing() -> AsyncIterator[bytes]:
    """The body of an answer to HEAD, whose length the headers state."""
    for piece in ():
        yield piece


def _names(condition: str, etag: str) -> bool:
    """Whether a list of entity tags has this one."""
    tags = [each.strip().removeprefix("W/").strip('"') for each in condition.split(",")]
    return etag in tags or condition.strip() == "*"


def _read_range(headers: Mapping[str, str], file: FileToSend) -> tuple[int, int] | None:
    """First byte and the one after the last; None if the file has no such range.

    What is no single range of bytes is answered with the whole file, as is a range of a file that
    has changed since (`If-Range`).
    """
    whole = (0, file.size)
    given = RANGE.fullmatch(headers.get("range", "").strip())
    condition = headers.get("if-range", "")
    if given is None or (condition and not _names(condition, file.etag)):
        return whole
    first, last = given.groups()
    if not first:
        length = int(last or 0)
        return (max(0, file.size - length), file.size) if length and file.size else None
    start = int(first)
    if last and int(last) < start:
        return whole
    end = min(int(last) + 1, file.size) if last else file.size
    return (start, end) if start < file.size else None
