"""The bounds of a connection that uvicorn lacks, on a server with a small application."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from wherry.doors.http_guard import MAX_FIELDS, MAX_HEAD_BYTES, MAX_PIPELINED, GuardedProtocol

STALL_SECONDS = 0.5
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
MEGABYTE = b"x" * (1 << 20)
MAX_CONNECTIONS = 20
SLOW = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"


async def tell(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the path, the names of the header fields, and the size of the body."""
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * STALL_SECONDS)
    if scope["path"] == "/watch":
        await watch(receive)
        return
    if scope["path"] == "/big":
        await stream(send, 200)
        return
    size, more = 0, scope["path"] != "/early"
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


async def watch(receive: Any) -> None:
    """Answer nothing, and note when the client has left."""
    seen.append("asked")
    while (await receive())["type"] != "http.disconnect":
        pass
    seen.append("left")


async def stream(send: Any, pieces: int) -> None:
    """Answer with so many megabytes, as fast as they are taken."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(pieces):
        await send({"type": "http.response.body", "body": MEGABYTE, "more_body": True})
        seen.append("sent")
    await send({"type": "http.response.body", "body": b""})


seen: list[str] = []
"""What the application has noted."""


class Protocol(GuardedProtocol):
    stall_seconds = STALL_SECONDS
    max_connections = MAX_CONNECTIONS


@pytest.fixture(autouse=True)
def forget() -> None:
    seen.clear()


def wait_for(what: str) -> None:
    """Return when the application has noted it."""
    deadline = time.monotonic() + 10
    while what not in seen:
        assert time.monotonic() < deadline, seen
        time.sleep(0.01)


@contextmanager
def serve(keep_alive_seconds: float) -> Iterator[tuple[str, int]]:
    """A server in a thread; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        tell,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=keep_alive_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with serve(keep_alive_seconds=0.25) as address:
        yield address


def send_each(address: tuple[str, int], *requests: bytes | list[bytes]) -> list[bytes]:
    """The answers to requests that are sent at the same time, each on a connection of its own."""
    with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
        pieces = [[each] if isinstance(each, bytes) else each for each in requests]
        return list(pool.map(lambda each: send(address, *each), pieces))


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
    for answer in send_each(address, whole, [whole[at : at + 1] for at in range(len(whole))]):
        assert answer.endswith(b"</ host,transfer-encoding 5>")


def test_a_large_body_is_not_a_large_head(address: tuple[str, int]):
    body = b"x" * 5_000_000
    tiny = b"1\r\nx\r\n" * 100_000
    large, many = send_each(
        address,
        POST + b"Content-Length: 5000000\r\n\r\n" + body,
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + tiny + b"0\r\n\r\n",
    )
    assert large.endswith(b" 5000000>")
    assert many.endswith(b" 100000>")


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


def test_a_target_that_is_no_path_of_this_host_is_refused(address: tuple[str, int]):
    targets = [b"http://other/", b"*", b"http://other/livez?x", b"http://x", b"ftp://x/", b"x/"]
    lines = [b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target for target in targets]
    lines.append(b"GET http://x/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n")
    answers = send_each(address, *lines)
    assert [each[:12] for each in answers] == [b"HTTP/1.1 400"] * len(lines)


def test_an_absolute_target_of_this_host_is_its_path(address: tuple[str, int]):
    targets = [b"http://x/a?b", b"HTTP://X/a", b"https://x/a"]
    lines = [b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target for target in targets]
    assert all(each.endswith(b"</a host 0>") for each in send_each(address, *lines))


@pytest.mark.parametrize("version", [b"0.9", b"2.0"])
def test_other_versions_are_not_spoken(address: tuple[str, int], version: bytes):
    answer = send(address, b"GET / HTTP/%b\r\nHost: x\r\n\r\n" % version)
    assert answer.startswith(b"HTTP/1.1 505 HTTP Version Not Supported")


def test_http_1_0_has_neither_chunks_nor_interim_answers(address: tuple[str, int]):
    old = POST.replace(b"1.1", b"1.0")
    chunked = old + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert send(address, chunked).startswith(b"HTTP/1.1 400")
    expecting = old + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n"
    answer = send(address, expecting, b"x", pause_seconds=STALL_SECONDS / 4)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in answer


def test_no_other_protocol_is_spoken(address: tuple[str, int]):
    upgrade = b"Connection: upgrade\r\nUpgrade: h2c\r\n"
    assert send(address, GET + upgrade + b"\r\n").endswith(b"</ host,connection,upgrade 0>")
    refused = send(address, POST + upgrade + b"Content-Length: 1\r\n\r\nx")
    assert refused.startswith(b"HTTP/1.1 400")


BAD_CHUNK = b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"


FAULTS = [
    (b"nonsense\r\n\r\n", 400),
    (GET + b"A: b\r\n" * MAX_FIELDS + b"\r\n", 431),
    (GET + b"A: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
    (POST + BAD_CHUNK, 400),
    (POST + b"Content-Length: 9\r\n\r\nabc", 408),
    (GET, 408),
]


@pytest.mark.parametrize("good", [[SLOW], [SLOW, GET + b"\r\n", SLOW]])
def test_answers_come_before_the_refusal_of_a_later_fault(
    address: tuple[str, int], good: list[bytes]
):
    received = send_each(address, *[b"".join(good) + fault for fault, _ in FAULTS])
    for answer, (_, status) in zip(received, FAULTS, strict=True):
        *answers, refusal = answer.split(b"HTTP/1.1 ")[1:]
        assert [each[:3] for each in answers] == [b"200"] * len(good)
        assert [b"</slow " in each for each in answers] == [each is SLOW for each in good]
        assert refusal.startswith(b"%d " % status)
        assert b"connection: close" in refusal


def test_a_fault_in_the_body_of_an_answered_request_is_not_answered_again(
    address: tuple[str, int],
):
    answer = send(address, POST.replace(b"/", b"/early", 1) + BAD_CHUNK[:-4], b"zz\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_requests_piled_up_behind_an_answer_are_bounded(address: tuple[str, int]):
    answer = send(address, SLOW + (GET + b"\r\n") * 1000)
    assert answer.count(b"200 OK") == MAX_PIPELINED + 1
    assert answer.count(b"HTTP/1.1 ") == MAX_PIPELINED + 2
    assert b"400 Bad Request" in answer


def test_a_client_that_stops_in_mid_request_is_not_waited_for(address: tuple[str, int]):
    begun = time.monotonic()
    body = POST + b"Content-Length: 9\r\n\r\n"
    answers = send_each(address, b"GET", GET, body, body + b"abc")
    assert time.monotonic() - begun < 5 * STALL_SECONDS
    assert [each[:28] for each in answers] == [b"HTTP/1.1 408 Request Timeout"] * 4


def test_a_client_that_says_nothing_or_little_is_not_waited_for(address: tuple[str, int]):
    begun = time.monotonic()
    assert send(address) == b""
    drops = [b"GET / HTTP/1.1\r\n"] + [b"X: y\r\n"] * 20
    assert b"200 OK" not in send(address, *drops, pause_seconds=STALL_SECONDS / 5)
    assert time.monotonic() - begun < 20 * STALL_SECONDS


def test_a_slow_answer_and_a_quiet_connection_are_no_stalls():
    with serve(20) as address, socket.create_connection(address, timeout=5) as connection:
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


# ------------------------------------------------------------------------------ ends


def test_a_head_is_as_large_in_one_piece_as_in_many(address: tuple[str, int]):
    for size, status in ((MAX_HEAD_BYTES - 100, b"200"), (MAX_HEAD_BYTES + 1, b"431")):
        head = GET + b"X: " + b"a" * size + b"\r\n\r\n"
        step = len(head) // 10
        pieces = [head[at : at + step] for at in range(0, len(head), step)]
        assert send(address, head)[9:12] == status
        assert send(address, *pieces, pause_seconds=0.001)[9:12] == status


def test_an_answer_before_the_end_of_the_body_ends_the_connection(address: tuple[str, int]):
    """Or what comes later, if it comes, would be taken for a request, or a request for it."""
    early = POST.replace(b"/", b"/early", 1)
    expecting = early + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n"
    for begun in (expecting, early + b"Content-Length: 100\r\n\r\nabc"):
        answer = send(address, begun, GET + b"\r\n", pause_seconds=0.05)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"</early " in answer
        assert b"connection: close" in answer


def test_a_refused_client_that_still_sends_can_read_why(address: tuple[str, int]):
    size = 64 * len(MEGABYTE)
    early = POST.replace(b"/", b"/early", 1) + b"Content-Length: %d\r\n\r\n" % size
    for beginning, status in ((early, b"200"), (GET + b"A: b\r\n" * 200 + b"\r\n", b"431")):
        answer = send_all(address, [beginning, *[MEGABYTE] * 64])
        assert answer[9:12] == status
        assert answer.endswith((b">", b"}"))


def send_all(address: tuple[str, int], pieces: list[bytes]) -> bytes:
    """The answer to a client that sends everything before it reads, and must be able to."""
    received = b""
    with socket.create_connection(address, timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
        while piece := connection.recv(1 << 16):
            received += piece
    return received


def test_a_client_that_reads_nothing_of_its_answer_is_cut_off(address: tuple[str, int]):
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(GET.replace(b"/", b"/big", 1) + b"\r\n")
        wait_for("sent")
        time.sleep(4 * STALL_SECONDS)
        received = read_all(connection)
    assert not received.endswith(b"0\r\n\r\n")
    assert len(received) < 100 * len(MEGABYTE)


def read_all(connection: socket.socket) -> bytes:
    """What can still be read."""
    received = bytearray()
    try:
        while piece := connection.recv(1 << 16):
            received += piece
    except ConnectionError:
        pass
    return bytes(received)


def test_a_client_that_reads_slowly_is_served(address: tuple[str, int]):
    with socket.create_connection(address, timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.sendall(GET.replace(b"/", b"/big", 1) + b"\r\n")
        received, begun = 0, time.monotonic()
        while time.monotonic() - begun < 5 * STALL_SECONDS:
            received += len(connection.recv(1 << 18))
            time.sleep(0.01)
        while received < 200 * len(MEGABYTE):
            piece = connection.recv(1 << 20)
            assert piece
            received += len(piece)


@pytest.mark.parametrize("behind", [b"", GET + b"\r\n", GET, POST + b"Content-Length: 9\r\n\r\n"])
def test_work_for_a_client_that_left_is_told(address: tuple[str, int], behind: bytes):
    """Also where more requests wait behind it, of which alone uvicorn tells."""
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(GET.replace(b"/", b"/watch", 1) + b"\r\n" + behind)
        wait_for("asked")
        assert "left" not in seen
    wait_for("left")


def test_half_a_connection_is_none(address: tuple[str, int]):
    """Who closes and who only stops sending look alike: the work must end for the first."""
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(GET.replace(b"/", b"/watch", 1) + b"\r\n")
        wait_for("asked")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    wait_for("left")


def test_a_connection_kept_up_by_nothing_is_closed(address: tuple[str, int]):
    """Bytes that begin no request stop uvicorn's clock for ever."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(GET + b"\r\n")
        assert read_answer(connection).endswith(b"</ host 0>")
        connection.sendall(b"\r\n")
        assert connection.recv(1) == b""


def test_more_connections_than_allowed_are_told_to_come_later(address: tuple[str, int]):
    held = [socket.create_connection(address, timeout=5) for _ in range(MAX_CONNECTIONS)]
    try:
        for connection in held[1:]:
            connection.sendall(SLOW)
        answer = send(address)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
        assert all(read_answer(each).endswith(b"</slow host 0>") for each in held[1:])
    finally:
        for connection in held:
            connection.close()
    deadline = time.monotonic() + 5
    while not send(address, GET + b"Connection: close\r\n\r\n").endswith(b"</ host,connection 0>"):
        assert time.monotonic() < deadline
