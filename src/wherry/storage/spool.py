"""Files that grow while a body comes in: bounded, written in large pieces, in threads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from wherry.errors import TooLarge, Unavailable
from wherry.storage.blobs import explain_full_disk
from wherry.storage.folders import sync_folder

WRITE_BYTES = 1 << 20
"""Pieces are joined to this size before a thread writes them."""
RESERVED_BYTES = 256 << 20
"""Left free on the disk for the database and the journal."""


class Spool:
    """A file that one request appends to.

    Args:
        name: of the file, as its sender knows it.
        folder: where it is.
        descriptor: open for appending; closed by us.
        max_bytes: most that may be in it.
        hint: what to do about a file that is larger.
    """

    def __init__(self, name: str, folder: Path, descriptor: int, max_bytes: int, hint: str) -> None:
        self._name = name
        self._folder = folder
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._hint = hint
        self._waiting = bytearray()
        self.size = os.fstat(descriptor).st_size
        """Bytes in the file."""

    def append(self, data: bytes | bytearray) -> None:
        """Write at the end, whole or with an error.

        Raises:
            TooLarge: the file would be over its limit.
            Unavailable: the disk is full, or nearly.
        """
        if self.size + len(data) > self._max_bytes:
            raise TooLarge(
                f"{self._name!r} would be larger than {self._max_bytes} bytes", hint=self._hint
            )
        status = os.fstatvfs(self._descriptor)
        if status.f_bavail * status.f_frsize < RESERVED_BYTES + len(data):
            raise Unavailable("the disk is nearly full", hint="free some space, then go on")
        view = memoryview(data)
        with explain_full_disk():
            while view:
                written = os.write(self._descriptor, view)
                self.size += written
                view = view[written:]

    def sync(self) -> None:
        """Wait until the disk has the bytes: a client that is told so does not send them again."""
        with explain_full_disk():
            os.fdatasync(self._descriptor)
            sync_folder(self._folder)

    async def feed(self, piece: bytes) -> None:
        """Take a piece of the body; a thread writes when there is enough."""
        self._waiting += piece
        if len(self._waiting) >= WRITE_BYTES:
            await self._write_waiting()

    async def finish(self) -> None:
        """Write what waits, and let the disk have it; also when the body broke off."""
        try:
            if self._waiting:
                await self._write_waiting()
        finally:
            await run_to_end(self.sync)

    async def _write_waiting(self) -> None:
        data, self._waiting = self._waiting, bytearray()
        await run_to_end(self.append, data)

    async def take(self, pieces: AsyncIterator[bytes]) -> None:
        """Append a whole body; what has arrived stays when it breaks off."""
        try:
            async for piece in pieces:
                await self.feed(piece)
        finally:
            await self.finish()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


async def run_to_end(work: Callable[..., None], *arguments: Any) -> None:
    """Run in a thread; a task that is cancelled meanwhile still waits for the thread."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
