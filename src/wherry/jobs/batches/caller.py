"""A runner's lines to the gateways: requests out, answers in, whichever of them dies meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Sequence
from pathlib import Path

from wherry.frames import Connection, Frame, Kind
from wherry.jobs.batches.wire import Reply, RowCall, decode_reply

RECONNECT_SECONDS = 0.2


class GatewayLostError(ConnectionError):
    """The gateway ended with the request in hand; nobody knows whether it was answered."""


Answered = tuple[Reply, bytes]


class _Line:
    """The connection to one gateway; comes back by itself."""

    def __init__(self, address: Path, token: str, changed: asyncio.Event) -> None:
        self._address = address
        self._token = token
        self._changed = changed
        self._connection: Connection | None = None
        self._closed = asyncio.Event()
        self.is_ready = False
        self.waiting: dict[int, asyncio.Future[Answered]] = {}

    async def run(self) -> None:
        """Connect, and again whenever the line breaks, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connected.setblocking(False)
            try:
                await loop.sock_connect(connected, str(self._address))
            except OSError:
                connected.close()
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self._closed.clear()
            self._connection = Connection(connected, self._on_frame, self._on_close)
            self._connection.send(Kind.JOIN, header=self._token, now=True)
            try:
                await self._closed.wait()
            finally:
                self._connection.close()
            await asyncio.sleep(RECONNECT_SECONDS)

    def send(self, number: int, call: RowCall, body: bytes) -> asyncio.Future[Answered]:
        """Send a request; the future has its answer, or `GatewayLostError`."""
        assert self._connection is not None
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self.waiting[number] = future
        self._connection.send(Kind.CALL, number, call, body)
        return future

    def take_back(self, number: int) -> None:
        """Nobody waits for it any more."""
        if self.waiting.pop(number, None) is not None and self._connection is not None:
            self._connection.send(Kind.CANCEL, number, now=True)

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind == Kind.READY:
            self.is_ready = True
            self._changed.set()
        elif frame.kind == Kind.REPLY:
            future = self.waiting.pop(frame.request_id, None)
            if future is not None and not future.done():
                future.set_result((decode_reply(frame.header), bytes(frame.payload)))

    def _on_close(self) -> None:
        self.is_ready = False
        self._closed.set()
        waiting, self.waiting = self.waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(GatewayLostError())


class Gateways:
    """All gateways of this server, as a context that keeps the lines to them.

    Args:
        addresses: their sockets for runners.
        token: by which they know for whom we speak.
    """

    def __init__(self, addresses: Sequence[Path], token: str) -> None:
        self._changed = asyncio.Event()
        self._lines = [_Line(address, token, self._changed) for address in addresses]
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Gateways:
        self._tasks = [asyncio.create_task(line.run()) for line in self._lines]
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def call(self, call: RowCall, body: bytes) -> Answered:
        """What a row answers; waits as long as no gateway is there.

        Raises:
            GatewayLostError: the one that had it has ended.
        """
        line = await self._choose()
        number = next(self._numbers)
        future = line.send(number, call, body)
        try:
            return await future
        finally:
            line.take_back(number)

    async def _choose(self) -> _Line:
        while True:
            ready = [line for line in self._lines if line.is_ready]
            if ready:
                return min(ready, key=lambda line: len(line.waiting))
            self._changed.clear()
            await self._changed.wait()
