"""The room in which requests with files wait to be read."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

import numpy as np

from wherry.frames import Call
from wherry.models.codecs.codec import Decoded
from wherry.worker import file_room
from wherry.worker.file_room import FileRoom, Items
from wherry.worker.peer import Peer, Work
from wherry.worker.runtimes.runtime import Prepared

PIXELS = 96 << 20
"""Bytes that a large picture holds."""


class Desk:
    """Reads each request as a picture of a size that its body tells, and keeps what was admitted."""

    def __init__(self) -> None:
        self.room = FileRoom(self.understand, self.admit)
        self.admitted: list[tuple[Work, Items, BaseException | None]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def understand(self, work: Work, body: memoryview) -> Items:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(0.01)
        with self._lock:
            self._at_once -= 1
        if not body:
            raise ValueError("no picture")
        # never touched, so the system gives no memory for it
        work.decoded = Decoded([np.empty(int(bytes(body)), np.uint8)])
        return [Prepared("small")]

    def admit(self, work: Work, items: Items, error: BaseException | None) -> None:
        self.admitted.append((work, items, error))

    def send(self, size: int | None, left_ms: int = 60_000) -> Work:
        work = Work(
            cast(Peer, None), 1, Call("predict", "", "model", "1"), time.monotonic(), left_ms
        )
        self.room.enter(work, memoryview(b"" if size is None else str(size).encode()))
        return work

    def end(self, work: Work) -> None:
        work.finished = True
        self.room.leave(work)

    async def until_admitted(self, count: int) -> None:
        for _ in range(1000):
            if len(self.admitted) >= count:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it never came")


def play(story: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await story(Desk())

    asyncio.run(run())


def test_large_files_are_read_only_while_there_is_room_and_all_in_the_end() -> None:
    async def story(desk: Desk) -> None:
        for _ in range(20):
            desk.send(PIXELS)
        for ended in range(20):
            await desk.until_admitted(ended + 1)
            await asyncio.sleep(0.03)
            assert (len(desk.admitted) - ended) * PIXELS <= file_room.MAX_BYTES
            desk.end(desk.admitted[ended][0])
        assert desk.most_at_once <= file_room.READERS

    play(story)


def test_one_that_is_larger_than_the_room_is_read_alone() -> None:
    async def story(desk: Desk) -> None:
        huge = desk.send(2 * file_room.MAX_BYTES)
        await desk.until_admitted(1)
        desk.send(1)
        await asyncio.sleep(0.05)
        assert len(desk.admitted) == 1
        desk.end(huge)
        await desk.until_admitted(2)

    play(story)


def test_what_cannot_be_read_keeps_no_room() -> None:
    async def story(desk: Desk) -> None:
        for _ in range(50):
            desk.send(None)
        await desk.until_admitted(50)
        assert all(isinstance(error, ValueError) for _, _, error in desk.admitted)

    play(story)


def test_what_nobody_waits_for_any_more_is_not_read() -> None:
    async def story(desk: Desk) -> None:
        large = desk.send(file_room.MAX_BYTES)
        await desk.until_admitted(1)
        late, left, gone = desk.send(1, left_ms=1), desk.send(1), desk.send(1)
        left.cancel()
        gone.finished = True
        desk.room.leave(gone)
        await asyncio.sleep(0.01)
        desk.end(large)
        await desk.until_admitted(3)
        assert [(work, items, error) for work, items, error in desk.admitted[1:]] == [
            (late, None, None),
            (left, None, None),
        ]

    play(story)
