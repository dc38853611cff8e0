"""Requests that hold files: read a few at a time, and only while what was read fits into memory.

A picture of kilobytes may have 16 million pixels. Sixty-four that come together are no more than
the gateway may send, but more than the worker could hold, so they wait as they came: in their files.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from wherry.models.tasks.task import held_bytes
from wherry.worker.peer import Work

READERS = min(4, os.cpu_count() or 1)
"""Files that are read at once: decoding keeps a processor busy, and needs memory of its own."""
MAX_BYTES = 512 << 20
"""For all that is being read, and all that was read and has not ended; one alone may take more."""
READING_BYTES = 128 << 20
"""Set aside for each that is being read: what it holds is known only afterwards."""

Items = Sequence[Any] | None
Understand = Callable[[Work, memoryview], Items]
Admit = Callable[[Work, Items, BaseException | None], None]


class FileRoom:
    """Where requests with files wait to be read.

    Args:
        understand: reads a request's body, in a thread of this room.
        admit: takes what was read, or the error, on the loop; neither if nobody waits any more.
    """

    def __init__(self, understand: Understand, admit: Admit) -> None:
        self._understand = understand
        self._admit = admit
        self._loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(READERS, "files")
        self._waiting: deque[tuple[Work, memoryview]] = deque()
        self._reading = 0
        self._held: dict[Work, int] = {}
        self._held_bytes = 0

    def enter(self, work: Work, body: memoryview) -> None:
        """A request has come."""
        self._waiting.append((work, body))
        self._read_next()

    def leave(self, work: Work) -> None:
        """A request has ended, and with it all that it held."""
        self._held_bytes -= self._held.pop(work, 0)
        self._read_next()

    def _has_room(self) -> bool:
        if not self._reading and not self._held_bytes:
            return True
        wanted = self._held_bytes + (self._reading + 1) * READING_BYTES
        return self._reading < READERS and wanted <= MAX_BYTES

    def _read_next(self) -> None:
        while self._waiting and self._has_room():
            work, body = self._waiting.popleft()
            self._reading += 1
            future = self._loop.run_in_executor(self._readers, self._read, work, body)
            future.add_done_callback(partial(self._was_read, work))

    def _read(self, work: Work, body: memoryview) -> tuple[Items, int]:
        if work.is_unwanted(time.monotonic()):
            return None, 0
        items = self._understand(work, body)
        return items, held_bytes(work.decoded.items) + held_bytes(items)

    def _was_read(self, work: Work, result: asyncio.Future[tuple[Items, int]]) -> None:
        self._reading -= 1
        error = result.exception()
        items, size = (None, 0) if error is not None else result.result()
        if not work.finished:
            self._held[work] = size
            self._held_bytes += size
            self._admit(work, items, error)
        self._read_next()
