"""The bounds of a connection that uvicorn lacks, on a server with a small application."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from wherry.doors import http_guard
from wherry.doors.http_guard import MAX_FIELDS, MAX_HEAD_BYTES, MAX_PIPELINED, GuardedProtocol

STALL_SECONDS = 0.2
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"


async def tell(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the path, the names of the header fields, and the size of the body."""
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * STALL_SECONDS)
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    names = b",".join(name for name, _ in scope["headers"])
    body = b"<%b %b %d>" % (scope["raw_path"], names, size)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    patch = pytest.MonkeyPatch()
    patch.setattr(http_guard, "STALL_SECONDS", STALL_SECONDS)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        tell,
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=1,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join(10)
    patch.undo()


def send(address: tuple[str, int], *pieces: bytes, pause_seconds: float = 0.0) -> bytes:
    """Everything that comes back until the server closes."""
    received = b""
    with socket.create_connection(address, timeout=5) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_seconds)
            while piece := connection.recv(1 << 16):
                received += piece
        except ConnectionError:
            pass
    return received


def test_a_good_request_passes_whole_and_byte_by_byte(address: tuple[str, int]):
    body = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    whole = POST + body
    for pieces in ([whole], [whole[at : at + 1] for at in range(len(whole))]):
        assert send(address, *pieces).endswith(b"</ host,transfer-encoding 5>")


def test_a_large_body_is_not_a_large_head(address: tuple[str, int]):
    body = b"x" * 5_000_000
    answer = send(address, POST + b"Content-Length: 5000000\r\n\r\n" + body)
    assert answer.endswith(b" 5000000>")
    tiny = b"1\r\nx\r\n" * 100_000
    answer = send(address, POST + b"Transfer-Encoding: chunked\r\n\r\n" + tiny + b"0\r\n\r\n")
    assert answer.endswith(b" 100000>")


@pytest.mark.parametrize(
    "beginning",
    [
        GET + b"X: ",
        b"GET /",
        GET + b"A: b\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nTrailer: ",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;",
    ],
)
def test_an_endless_head_is_refused(address: tuple[str, int], beginning: bytes):
    filler = b"A: b\r\n" if beginning.endswith(b"\n") else b"a"
    pieces = [filler * (MAX_HEAD_BYTES // len(filler))] * 20
    answer = send(address, beginning, *pieces)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    assert b"200 OK" not in answer


def test_too_many_fields_are_refused(address: tuple[str, int]):
    fields = b"".join(b"X%d: a\r\n" % number for number in range(MAX_FIELDS))
    answer = send(address, GET + fields + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large")
    assert b'"message":"the request has more than' in answer


def test_a_trailer_is_not_a_header(address: tuple[str, int]):
    trailer = b"1\r\nx\r\n0\r\nAuthorization: Bearer other\r\n\r\n"
    answer = send(address, POST + b"Transfer-Encoding: chunked\r\n\r\n" + trailer)
    assert answer.endswith(b"</ host,transfer-encoding 1>")


@pytest.mark.parametrize("target", [b"http://other/", b"*", b"http://other/livez?x"])
def test_a_target_that_is_no_path_is_refused(address: tuple[str, int], target: bytes):
    assert send(address, b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target).startswith(b"HTTP/1.1 400")


def test_no_other_protocol_is_spoken(address: tuple[str, int]):
    upgrade = b"Connection: upgrade\r\nUpgrade: h2c\r\n"
    assert send(address, GET + upgrade + b"\r\n").endswith(b"</ host,connection,upgrade 0>")
    refused = send(address, POST + upgrade + b"Content-Length: 1\r\n\r\nx")
    assert refused.startswith(b"HTTP/1.1 400")


def test_answers_come_before_the_refusal_of_a_later_fault(address: tuple[str, int]):
    assert send(address, SLOW + b"nonsense\r\n\r\n").endswith(b"</slow host 0>")
    answer = send(address, SLOW + GET + b"\r\n" + b"nonsense\r\n\r\n")
    assert answer.count(b"200 OK") == 2
    assert b" 400 " not in answer


def test_requests_piled_up_behind_an_answer_are_bounded(address: tuple[str, int]):
    answer = send(address, SLOW + (GET + b"\r\n") * 1000)
    assert answer.count(b"200 OK") == MAX_PIPELINED + 1


@pytest.mark.parametrize(
    "beginning",
    [b"GET", GET, POST + b"Content-Length: 9\r\n\r\nabc", POST + b"Content-Length: 9\r\n\r\n"],
)
def test_a_client_that_stops_in_mid_request_is_not_waited_for(
    address: tuple[str, int], beginning: bytes
):
    begun = time.monotonic()
    answer = send(address, beginning)
    assert time.monotonic() - begun < 5 * STALL_SECONDS
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout")


def test_a_client_that_says_nothing_or_little_is_not_waited_for(address: tuple[str, int]):
    begun = time.monotonic()
    assert send(address) == b""
    drops = [b"GET / HTTP/1.1\r\n"] + [b"X: y\r\n"] * 40
    assert b"200 OK" not in send(address, *drops, pause_seconds=STALL_SECONDS / 5)
    assert time.monotonic() - begun < 20 * STALL_SECONDS


def test_a_slow_answer_and_a_quiet_connection_are_no_stalls(address: tuple[str, int]):
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(SLOW)
        assert read_answer(connection).endswith(b"</slow host 0>")
        time.sleep(2.5 * STALL_SECONDS)
        connection.sendall(GET + b"\r\n")
        assert read_answer(connection).endswith(b"</ host 0>")


def read_answer(connection: socket.socket) -> bytes:
    """One whole answer; less if the server closes."""
    received = b""
    while not received.endswith(b">") and (piece := connection.recv(1 << 16)):
        received += piece
    return received
