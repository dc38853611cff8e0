"""The lines of batches, which come from their runners rather than over HTTP.

A line is answered by the row that serves its path, exactly as if the client had sent it, but for
three things: its key is known (the controller tells whose runner this is), it has the id that the
runner gave it, and it waits until no live request would have to wait for it.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import msgspec

from wherry import errors
from wherry.doors.errors import render_platform
from wherry.doors.route import Doors, Inquiry, Response, Row
from wherry.frames import Connection, Frame, Kind
from wherry.gateway.authenticate import Authenticator
from wherry.gateway.uplink import Uplink
from wherry.jobs.batches.wire import BatchCaller, Reply, RowCall, decode_call
from wherry.telemetry import get_logger

BACKLOG = 16
MAX_CALLS = 256
"""Of one runner at once; it sends fewer."""
MAX_CALL_BYTES = 1 << 30

decode_token = msgspec.msgpack.Decoder(str).decode

log = get_logger("doors.batches")


class BatchLines:
    """Listens for runners.

    Args:
        address: path of the socket, in a 0700 folder.
        doors: all rows.
        authenticator: knows keys.
        uplink: the controller, which knows runners.
    """

    def __init__(
        self, address: Path, doors: Doors, authenticator: Authenticator, uplink: Uplink
    ) -> None:
        self.doors = doors
        self.authenticator = authenticator
        self.uplink = uplink
        self._address = address
        self._listener: socket.socket | None = None
        self._runners: set[_Runner] = set()

    def listen(self) -> None:
        """Let runners come."""
        self._address.unlink(missing_ok=True)  # of a gateway that was killed
        listener = self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._address))
        self._address.chmod(0o600)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connected, _ = self._listener.accept()
        except OSError:
            return
        self._runners.add(_Runner(self, connected))

    def forget(self, runner: _Runner) -> None:
        """A runner has gone."""
        self._runners.discard(runner)

    def close(self) -> None:
        """Let go of all: their lines are sent again, here or elsewhere."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
        for runner in list(self._runners):
            runner.connection.close()


class _Runner:
    """One runner's connection."""

    def __init__(self, lines: BatchLines, connected: socket.socket) -> None:
        self._lines = lines
        self._caller: BatchCaller | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._joining: asyncio.Task[None] | None = None
        self.connection = Connection(connected, self._on_frame, self._on_close)
        self.connection.max_frame_bytes = MAX_CALL_BYTES

    def _on_close(self) -> None:
        self._lines.forget(self)
        for task in [*self._tasks.values(), *([self._joining] if self._joining else [])]:
            task.cancel()

    def _on_frame(self, frame: Frame) -> None:
        try:
            self._take(frame)
        except msgspec.DecodeError:
            log.warning("a runner cannot be understood")
            self.connection.close()

    def _take(self, frame: Frame) -> None:
        loop, number = asyncio.get_running_loop(), frame.request_id
        if frame.kind == Kind.JOIN and self._joining is None:
            self._joining = loop.create_task(self._join(decode_token(frame.header)))
        elif self._caller is None or len(self._tasks) >= MAX_CALLS:
            self.connection.close()
        elif frame.kind == Kind.CALL:
            call, body = decode_call(frame.header), bytes(frame.payload)
            task = loop.create_task(self._answer(number, self._caller, call, body))
            self._tasks[number] = task
            task.add_done_callback(lambda _: self._tasks.pop(number, None))
        elif frame.kind == Kind.CANCEL and number in self._tasks:
            self._tasks[number].cancel()

    async def _join(self, token: str) -> None:
        """Learn from the controller for whom it speaks; a stranger is not heard."""
        try:
            found = await self._lines.uplink.ask("batch", token=token)
            self._caller = msgspec.convert(found, BatchCaller)
            self.connection.send(Kind.READY, now=True)
        except errors.Unavailable:
            self.connection.close()  # it comes again
        except errors.WherryError as error:
            log.warning("a stranger called at the runners' socket", error=error.message)
            self.connection.close()

    async def _answer(self, number: int, caller: BatchCaller, call: RowCall, body: bytes) -> None:
        try:
            reply, payload = await self._ask_row(caller, call, body)
        except Exception:
            log.exception("unexpected error", request_id=call.request_id, path=call.path)
            reply, payload = _failed(self._lines.doors.explain_bug(), call.request_id)
        self.connection.send(Kind.REPLY, number, reply, payload)

    async def _ask_row(
        self, caller: BatchCaller, call: RowCall, body: bytes
    ) -> tuple[Reply, bytes]:
        doors = self._lines.doors
        row, params = doors.find_row(call.method, call.path)
        if row is None or row.permission != "invoke" or not row.in_batches:
            missing = errors.NotFound(
                f"no endpoint {call.method} {call.path[:200]!r} for lines of batches",
                hint="GET /docs lists those that models are called by",
            )
            return _failed(missing, call.request_id, row)
        inquiry = make_inquiry(call, dict(params), body)
        try:
            find_key = self._lines.authenticator.find_key
            inquiry.caller = await find_key(caller.team_id, caller.key_id)
            response = await doors.handle(row, inquiry)
        except errors.WherryError as error:
            return _failed(error, call.request_id, row)
        return await _finished(response)


def make_inquiry(call: RowCall, params: dict[str, str], body: bytes) -> Inquiry:
    """A line as handlers see it."""
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    scope: dict[str, Any] = {
        "type": "http",
        "method": call.method,
        "path": call.path,
        "path_params": params,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # a runner that goes away cancels us
        raise errors.Cancelled("the runner went away")

    inquiry = Inquiry(scope, receive, headers)
    inquiry.id = call.request_id
    inquiry.is_background = True
    return inquiry


def _failed(
    error: errors.WherryError, request_id: str, row: Row | None = None
) -> tuple[Reply, bytes]:
    render = row.render if row is not None else render_platform
    status, body, _ = render(error, request_id)
    seconds = error.retry_after_seconds if isinstance(error, errors.TryLater) else 0.0
    return Reply(status, "application/json", error.code, seconds), body


async def _finished(response: Response) -> tuple[Reply, bytes]:
    body = response.body
    if not isinstance(body, (bytes, bytearray, memoryview)):
        pieces = [bytes(piece) async for piece in body]
        return Reply(response.status, response.content_type), b"".join(pieces)
    kinds = [value.decode() for name, value in response.fields if name == b"content-type"]
    return Reply(response.status, kinds[0] if kinds else response.content_type), bytes(body)
