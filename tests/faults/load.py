"""Load for a server, with a log of every request: plain sockets, keep-alive, bounded."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.faults.oracle import Command

NO_ANSWER = 0
"""Status of a request whose connection ended without one."""
CLIENT_SECONDS = 90.0


@dataclass
class Entry:
    """One request as its client saw it."""

    nonce: int
    deployment: str
    sent_at: float
    status: int = NO_ANSWER
    request_id: str = ""
    version: str = ""
    """Of the answer's header, `model@number`."""
    answer: list[int] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0


class HttpConnection:
    """One keep-alive connection that reads just enough of HTTP."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._key = key
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._reader = self._writer = None

    async def send(self, path: str, body: bytes, **headers: str) -> None:
        """Send a POST; connects first if need be."""
        if self._writer is None:
            await self.connect()
        assert self._writer is not None
        lines = [
            f"POST {path} HTTP/1.1",
            f"host: {self._host}:{self._port}",
            f"authorization: Bearer {self._key}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        ]
        self._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await self._writer.drain()

    async def read_head(self) -> tuple[int, dict[str, str]]:
        assert self._reader is not None
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def read_body(self, headers: dict[str, str]) -> bytes:
        assert self._reader is not None
        if "content-length" in headers:
            return await self._reader.readexactly(int(headers["content-length"]))
        pieces = b""
        while size := int(await self._reader.readline(), 16):
            pieces += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return pieces


class Load:
    """Clients that call oracles, and the log of what they saw.

    Args:
        url: of the server.
        key: whose requests these are.
    """

    nonces = itertools.count(1)

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        self.log: list[Entry] = []
        self._stopped = asyncio.Event()

    def make_body(self, nonce: int, command: Command, argument: int) -> bytes:
        """What an oracle is asked."""
        data = [nonce, int(command), argument]
        tensor = {"name": "X", "shape": [3], "datatype": "INT64", "data": data}
        return json.dumps({"inputs": [tensor]}).encode()

    def read_answer(self, entry: Entry, content: bytes) -> list[int]:
        """What it answered: its hash of the nonce, and its version."""
        return json.loads(content)["outputs"][0]["data"]

    def stop(self) -> None:
        """Let every client end after the request that it has."""
        self._stopped.set()

    @property
    def answered(self) -> int:
        """Requests with a final success."""
        return sum(entry.status == 200 for entry in self.log)

    async def wait_for_answers(self, count: int) -> None:
        """Until so many succeeded, however busy the machine is."""
        async with asyncio.timeout(CLIENT_SECONDS):
            while self.answered < count:
                await asyncio.sleep(0.05)

    def counts(self, since: float = 0.0) -> Counter[int]:
        """Requests by status."""
        return Counter(entry.status for entry in self.log if entry.sent_at >= since)

    async def call(
        self,
        deployment: str,
        command: Command = Command.ANSWER,
        argument: int = 0,
        *,
        nonce: int = 0,
        connection: HttpConnection | None = None,
        **headers: str,
    ) -> Entry:
        """One request, logged."""
        own = connection is None
        connection = connection or HttpConnection(self.url, self.key)
        entry = Entry(nonce or next(self.nonces), deployment, time.monotonic())
        self.log.append(entry)
        body = self.make_body(entry.nonce, command, argument)
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                path = f"/v2/models/{deployment}/infer"
                await connection.send(path, body, **headers)
                status, answered = await connection.read_head()
                content = await connection.read_body(answered)
        except (OSError, EOFError, TimeoutError) as error:
            entry.error = repr(error)
            connection.close()
        else:
            entry.status = status
            entry.request_id = answered.get("x-request-id", "")
            entry.version = answered.get("x-wherry-version", "")
            if status == 200:
                entry.answer = self.read_answer(entry, content)
            else:
                entry.error = content.decode("utf-8", "replace")
            if answered.get("connection") == "close":
                connection.close()
        finally:
            entry.seconds = time.monotonic() - entry.sent_at
            if own:
                connection.close()
        return entry

    async def client(
        self,
        deployment: str,
        *,
        pause: float = 0.0,
        argument: Callable[[], int] = lambda: 0,
        limit: int = 1_000_000,
        **headers: str,
    ) -> None:
        """One client: request after request on one connection, until stopped."""
        connection = HttpConnection(self.url, self.key)
        try:
            for _ in range(limit):
                if self._stopped.is_set():
                    return
                wanted = argument()
                command = Command.SLEEP if wanted else Command.ANSWER
                entry = await self.call(
                    deployment, command, wanted, connection=connection, **headers
                )
                # a client that is refused, or finds nobody, waits a moment as clients do
                await asyncio.sleep(pause if entry.status == 200 else max(pause, 0.02))
        finally:
            connection.close()
