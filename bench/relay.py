"""A bare two-hop relay: HTTP over uvloop, the body over a Unix socket to a process and back.

What any server with a worker process must do at least for a tensor, and nothing else: no keys, no
limits, no journal, no routes, no time-outs, no checks, one request after the other a connection.
`python -m bench.relay PORT` answers every POST with the mean of the numbers after the JSON part.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from collections import deque
from typing import Any

import httptools
import numpy as np
import uvloop

LENGTHS = struct.Struct("<II")
"""Of one message: bytes of its JSON part, bytes in all."""
SOCKET_BYTES = 4 << 20


def answer(json_bytes: int, body: memoryview) -> bytes:
    """The Open Inference answer to a binary request, as JSON."""
    tensor = json.loads(bytes(body[:json_bytes]))["inputs"][0]
    batch = np.frombuffer(body, np.float32, offset=json_bytes).reshape(tensor["shape"])
    mean = batch.reshape(len(batch), -1).mean(axis=1, dtype=np.float32)
    output = {
        "name": "output",
        "datatype": "FP32",
        "shape": [len(mean), 1],
        "data": mean.tolist(),
    }
    return json.dumps({"model_name": "model", "outputs": [output]}).encode()


def work(peer: socket.socket) -> None:
    """The worker process: read a message, answer it."""
    while True:
        head = peer.recv(LENGTHS.size, socket.MSG_WAITALL)
        if len(head) < LENGTHS.size:
            return
        json_bytes, size = LENGTHS.unpack(head)
        body = bytearray(size)
        view, got = memoryview(body), 0
        while got < size:
            got += peer.recv_into(view[got:])
        reply = answer(json_bytes, view)
        peer.sendall(LENGTHS.pack(0, len(reply)) + reply)


class Link(asyncio.Protocol):
    """The front's end of the Unix socket; answers come in the order of the questions."""

    def __init__(self) -> None:
        self.waiting: deque[Front] = deque()
        self._buffer = bytearray()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, front: Front, json_bytes: int, parts: list[bytes]) -> None:
        self.waiting.append(front)
        size = sum(map(len, parts))
        self._transport.writelines([LENGTHS.pack(json_bytes, size), *parts])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= LENGTHS.size:
            _, size = LENGTHS.unpack_from(self._buffer)
            end = LENGTHS.size + size
            if len(self._buffer) < end:
                return
            self.waiting.popleft().reply(bytes(self._buffer[LENGTHS.size : end]))
            del self._buffer[:end]


class Front(asyncio.Protocol):
    """One HTTP connection."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._parser = httptools.HttpRequestParser(self)
        self._parts: list[bytes] = []
        self._json_bytes = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self._json_bytes = int(value)

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        parts, self._parts = self._parts, []
        self._link.send(self, self._json_bytes, parts)

    def reply(self, body: bytes) -> None:
        if self._transport.is_closing():
            return  # its client has gone; an error here would close the link
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)


async def serve(port: int, peer: socket.socket) -> None:
    """The front process."""
    loop = asyncio.get_running_loop()
    _, link = await loop.create_unix_connection(Link, sock=peer)
    server = await loop.create_server(lambda: Front(link), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Fork the worker, serve."""
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    if os.fork() == 0:
        ours.close()
        work(theirs)
        os._exit(0)
    theirs.close()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1]), ours))


if __name__ == "__main__":
    main()
