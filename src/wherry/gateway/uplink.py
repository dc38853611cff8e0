"""A gateway's line to the controller: snapshots in, acknowledgements, loads and questions out."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from wherry import errors, frames
from wherry.frames import Connection, Frame, Kind
from wherry.gateway.route import DeploymentRoute, Snapshot
from wherry.gateway.tally import VersionLoad

RECONNECT_SECONDS = 0.1
ANSWER_SECONDS = 5.0

decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode
decode_ended = msgspec.msgpack.Decoder(tuple[str, bool]).decode


class Join(msgspec.Struct, array_like=True):
    """Gateway to controller: I am here."""

    gateway: str
    pid: int


class LoadReport(msgspec.Struct, array_like=True):
    """Gateway to controller, twice a second."""

    loads: dict[str, tuple[int, int, float]]
    """`team/name` → running, waiting, estimated wait in seconds."""
    last_used: dict[str, float]
    """`team/name` → seconds since the last request."""
    metrics: bytes
    """A telemetry snapshot, msgpack."""
    versions: list[VersionLoad] = []


class Question(msgspec.Struct, array_like=True):
    """Gateway to controller: something only the controller knows."""

    what: str
    arguments: dict[str, Any] = {}


class Told(msgspec.Struct, array_like=True):
    """Controller to gateway: the answer, or an error."""

    value: Any = None
    code: str = ""
    message: str = ""
    hint: str = ""


decode_told = msgspec.msgpack.Decoder(Told).decode


class Uplink:
    """The connection to the controller; reconnects by itself, for ever.

    Args:
        address: path of the controller's socket.
        gateway: our name.
        pid: our process.
        on_snapshot: called with each newer snapshot; acknowledged when it returns.
        on_ended: called with a worker's id and whether it crashed (or was killed from outside).
        on_poison: called with the digest of an input that ends workers.
    """

    def __init__(
        self,
        address: str,
        gateway: str,
        pid: int,
        on_snapshot: Callable[[Snapshot], None],
        *,
        on_ended: Callable[[str, bool], None] | None = None,
        on_poison: Callable[[bytes], None] | None = None,
    ) -> None:
        self._address = address
        self._join = Join(gateway, pid)
        self._on_snapshot = on_snapshot
        self._on_ended = on_ended
        self._on_poison = on_poison
        self._connection: Connection | None = None
        self._closed = asyncio.Event()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self.epoch = 0
        self.has_routes = asyncio.Event()
        """Set when the first snapshot has come."""

    async def run(self) -> None:
        """Connect, and again whenever the line breaks, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connected.setblocking(False)
            try:
                await loop.sock_connect(connected, self._address)
            except OSError:
                connected.close()
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self._closed.clear()
            connection = Connection(connected, self._on_frame, self._on_close)
            self._connection = connection
            connection.send(Kind.JOIN, header=self._join)
            try:
                await self._closed.wait()
            finally:
                connection.close()

    def _on_close(self) -> None:
        self._connection = None
        self._closed.set()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(_controller_away())
        self._asked.clear()

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind == Kind.SNAPSHOT:
            snapshot = decode_snapshot(frame.payload)
            self._on_snapshot(snapshot)
            self.epoch = snapshot.epoch
            self._send(Kind.ACK, header=snapshot.epoch)
            if snapshot.epoch:
                self.has_routes.set()
        elif frame.kind == Kind.ANSWER:
            future = self._asked.pop(frame.request_id, None)
            if future is not None and not future.done():
                future.set_result(decode_told(frame.payload))
        elif frame.kind == Kind.ENDED and self._on_ended is not None:
            self._on_ended(*decode_ended(frame.header))
        elif frame.kind == Kind.POISON and self._on_poison is not None:
            self._on_poison(bytes(frame.payload))

    def _send(self, kind: Kind, number: int = 0, header: Any = None, payload: bytes = b"") -> None:
        if self._connection is not None:
            self._connection.send(kind, number, header, payload)

    def wake(self, deployment: DeploymentRoute) -> None:
        """Somebody waits for this deployment."""
        self._send(Kind.WAKE, header=(deployment.team_id, deployment.name))

    def tell_hung(self, worker: str, why: str) -> None:
        """A worker hangs: end it."""
        self._send(Kind.HUNG, header=(worker, why))

    def tell_poison(self, digest: bytes) -> None:
        """An input ends workers: other gateways should refuse it too."""
        self._send(Kind.POISON, payload=digest)

    def nudge(self) -> None:
        """Desired state has changed in the database: look now rather than at the next turn."""
        self._send(Kind.NUDGE)

    async def settle(self) -> None:
        """Desired state has changed: return when all gateways follow it (or soon will)."""
        try:
            await self.ask("settle")
        except errors.Unavailable:
            return  # the change is in the database; a controller that comes back reads it

    def report(self, load: LoadReport) -> None:
        """Tell how loaded this gateway is."""
        self._send(Kind.REPORT, payload=frames.encode(load))

    async def ask(self, what: str, **arguments: Any) -> Any:
        """The controller's answer to a question.

        Raises:
            Unavailable: the controller is restarting or does not answer.
        """
        if self._connection is None:
            raise _controller_away()
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        future: asyncio.Future[Any] = loop.create_future()
        self._asked[number] = future
        timer = loop.call_later(ANSWER_SECONDS, self._give_up, number)
        self._send(Kind.ASK, number, payload=frames.encode(Question(what, arguments)))
        try:
            told: Told = await future
        finally:
            timer.cancel()
            self._asked.pop(number, None)
        if told.code:
            raise errors.from_code(told.code, told.message, told.hint)
        return told.value

    def _give_up(self, number: int) -> None:
        future = self._asked.pop(number, None)
        if future is not None and not future.done():
            future.set_exception(_controller_away())


def _controller_away() -> errors.Unavailable:
    return errors.Unavailable(
        "the controller does not answer", hint="it restarts by itself; repeat in a moment"
    )
