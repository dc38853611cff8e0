"""The controller's end of the lines to all gateways."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from wherry import errors, frames
from wherry.frames import Connection, Frame, Kind
from wherry.gateway.route import EMPTY, Snapshot
from wherry.gateway.uplink import Join, LoadReport, Question, Told
from wherry.telemetry import get_logger

log = get_logger("control.hub")

decode_join = msgspec.msgpack.Decoder(Join).decode
decode_report = msgspec.msgpack.Decoder(LoadReport).decode
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_epoch = msgspec.msgpack.Decoder(int).decode
decode_wake = msgspec.msgpack.Decoder(tuple[str, str]).decode
decode_hung = msgspec.msgpack.Decoder(tuple[str, str]).decode

PEER = struct.Struct("iII")
"""What the kernel tells of a peer: process, user, group."""
SILENT_SECONDS = 15.0
"""Gateways report twice a second; one that says nothing for so long hangs."""

Ask = Callable[[Question], Awaitable[Any]]


class GatewayLine:
    """One gateway."""

    def __init__(self, hub: Hub, connected: socket.socket) -> None:
        self._hub = hub
        self.name = ""
        self.pid = 0
        self.acked_epoch = 0
        self.heard_at = time.monotonic()
        self.load: LoadReport | None = None
        self.connection = Connection(connected, self._on_frame, self._on_close)

    def _on_close(self) -> None:
        self._hub.forget(self)

    def _on_frame(self, frame: Frame) -> None:
        self.heard_at = time.monotonic()
        if frame.kind == Kind.JOIN:
            join = decode_join(frame.header)
            self.name, self.pid = join.gateway, join.pid
            self._hub.welcome(self)
        elif frame.kind == Kind.ACK:
            self.acked_epoch = decode_epoch(frame.header)
            if self.acked_epoch:
                self._hub.first_acknowledgement.set()
            self._hub.on_change()
        elif frame.kind == Kind.REPORT:
            self.load = decode_report(frame.payload)
        elif frame.kind == Kind.WAKE:
            self._hub.on_wake(*decode_wake(frame.header))
        elif frame.kind == Kind.HUNG:
            self._hub.on_hung(*decode_hung(frame.header))
        elif frame.kind == Kind.POISON:
            self._hub.pass_on(self, bytes(frame.payload))
        elif frame.kind == Kind.NUDGE:
            self._hub.on_nudge()
        elif frame.kind == Kind.ASK:
            self._hub.answer(self, frame.request_id, decode_question(frame.payload))


class Hub:
    """All gateways.

    Args:
        address: path of the socket, in a 0700 folder.
        on_change: a gateway came, went or acknowledged.
        on_nudge: desired state has changed.
        on_wake: somebody waits for a deployment (team id, name).
        on_hung: a worker hangs (id, why), as a gateway sees it.
        on_silent: a gateway hangs (pid); its line is closed.
        ask: answers gateways' questions.
        is_gateway: whether a process (pid) is one of ours; nobody else is listened to.
    """

    def __init__(
        self,
        address: Path,
        *,
        on_change: Callable[[], None],
        on_nudge: Callable[[], None],
        on_wake: Callable[[str, str], None],
        on_hung: Callable[[str, str], None],
        on_silent: Callable[[int], None],
        ask: Ask,
        is_gateway: Callable[[int], bool],
    ) -> None:
        self.on_change = on_change
        self.on_nudge = on_nudge
        self.on_wake = on_wake
        self.on_hung = on_hung
        self.on_silent = on_silent
        self._ask = ask
        self._is_gateway = is_gateway
        self.lines: set[GatewayLine] = set()
        self.first_acknowledgement = asyncio.Event()
        """Set once a gateway works by real routes: the server answers."""
        self._looked_at = time.monotonic()
        self._snapshot = EMPTY
        self._answers: set[asyncio.Task[None]] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(address))
        address.chmod(0o600)
        self._listener.listen(64)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except OSError:
            return
        # a model whose sandbox the operator switched off has our user, and could come by here
        pid = pid_of_peer(connected)
        if pid is not None and not self._is_gateway(pid):
            log.warning("a stranger called at the controller's socket", pid=pid)
            connected.close()
            return
        GatewayLine(self, connected)

    def welcome(self, line: GatewayLine) -> None:
        """A gateway joined: it gets what holds now."""
        self.lines.add(line)
        self._send_snapshot(line)
        self.on_change()

    def forget(self, line: GatewayLine) -> None:
        """A gateway is gone; its acknowledgement is not waited for any more."""
        self.lines.discard(line)
        self.on_change()

    def drop_silent(self) -> None:
        """Close the lines of gateways that hang, so that nothing waits for what they never do."""
        now = time.monotonic()
        was_paused = now - self._looked_at > SILENT_SECONDS / 2  # then their silence proves nothing
        self._looked_at = now
        for line in list(self.lines):
            if was_paused:
                line.heard_at = now
            elif now - line.heard_at > SILENT_SECONDS:
                log.warning("gateway hangs", gateway=line.name, pid=line.pid)
                line.connection.close()
                self.on_silent(line.pid)

    def broadcast(self, snapshot: Snapshot) -> None:
        """Send newer routes to all."""
        self._snapshot = snapshot
        for line in self.lines:
            self._send_snapshot(line)

    def tell_ended(self, worker: str, *, is_crash: bool) -> None:
        """Tell all gateways how a worker ended, so that they know what to think of its requests."""
        for line in self.lines:
            line.connection.send(Kind.ENDED, header=(worker, is_crash), now=True)

    def pass_on(self, sender: GatewayLine, digest: bytes) -> None:
        """Tell all other gateways of a poisonous input."""
        for line in self.lines - {sender}:
            line.connection.send(Kind.POISON, payload=digest, now=True)

    def _send_snapshot(self, line: GatewayLine) -> None:
        line.connection.send(Kind.SNAPSHOT, payload=frames.encode(self._snapshot), now=True)

    def is_acknowledged(self, epoch: int) -> bool:
        """Whether every live gateway works by this epoch or a later one."""
        return all(line.acked_epoch >= epoch for line in self.lines)

    def answer(self, line: GatewayLine, number: int, question: Question) -> None:
        """Find the answer without keeping other frames waiting."""
        task = asyncio.get_running_loop().create_task(self._answer(line, number, question))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, line: GatewayLine, number: int, question: Question) -> None:
        try:
            told = Told(await self._ask(question))
        except errors.WherryError as error:
            told = Told(None, error.code, error.message, error.hint)
        except Exception:
            log.exception("cannot answer a gateway", what=question.what)
            told = Told(None, "internal", "an unexpected error in the controller")
        line.connection.send(Kind.ANSWER, number, payload=frames.encode(told))

    def close(self) -> None:
        """Close all lines."""
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        for line in list(self.lines):
            line.connection.close()


def pid_of_peer(connected: socket.socket) -> int | None:
    """The process at the other end of a Unix socket, by the kernel's word; None where it has none."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    return PEER.unpack(found)[0]
