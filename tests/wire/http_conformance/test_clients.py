"""Clients that are slow, and clients that leave: neither holds anything for long."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.conftest import LiveServer
from tests.wire.http_conformance.conftest import (
    KEEP_ALIVE_SECONDS,
    MAX_BODY_BYTES,
    STALL_SECONDS,
    address_of,
)
from tests.wire.http_conformance.exchange import SECONDS, Connection, post
from tests.wire.http_conformance.table import (
    CHUNKED,
    GOOD,
    GOOD_PLAIN,
    INFER,
    LIVE,
    PLAIN,
    PREDICT,
    TENSOR,
)
from tests.wire.probe import gateway_pid, open_files, resident_mib, workers

from wherry import Client
from wherry.settings import Settings
from wherry.storage.journal import OutcomeRecord, read_segment

PATIENCE = 4 * STALL_SECONDS + KEEP_ALIVE_SECONDS
"""More than any bound here; a busy machine may need it all."""


def test_the_lane_takes_what_is_plain_and_the_switch_turns_it_off(both: dict[str, LiveServer]):
    if "fast_lane" not in Settings.__struct_fields__:
        pytest.skip("this version has no fast lane")
    for path, expected in (("lane", 3), ("asgi", 0)):
        before = lane_requests(both[path])
        with Connection(address_of(both[path])) as connection:
            for count, data in enumerate((GOOD, GOOD_PLAIN, GOOD), 1):
                connection.send(data)
                connection.read(count)
        assert lane_requests(both[path]) - before == expected


def lane_requests(live: LiveServer) -> float:
    """How many the lane has answered."""
    time.sleep(1.2)  # counts of gateways come by report
    lines = live.http.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("wherry_fast_lane_requests_total")]
    return sum(float(line.split()[-1]) for line in found)


# ------------------------------------------------------------------------------ slow


def drip(connection: Connection, data: bytes, size: int, pause_seconds: float) -> None:
    """Send slowly, until the server has enough of it."""
    for at in range(0, len(data), size):
        if connection.is_closed:
            return
        connection.send(data[at : at + size])
        connection.wait(pause_seconds)


def silence(connection: Connection) -> list[int]:
    connection.read_to_end()
    return []


def half_a_head(connection: Connection) -> list[int]:
    connection.send(GOOD[:50])
    return [408]


def a_dripping_head(connection: Connection) -> list[int]:
    drip(connection, GOOD[:100], 1, STALL_SECONDS / 10)
    return [408]


def half_a_body(connection: Connection) -> list[int]:
    connection.send(GOOD[:-5])
    return [408]


def half_a_body_in_chunks(connection: Connection) -> list[int]:
    connection.send(post(INFER, b"5\r\n{", CHUNKED, length=None))
    return [408]


def a_dripping_body(connection: Connection) -> list[int]:
    drip(connection, post(PREDICT, PLAIN.ljust(200)), 4, STALL_SECONDS / 10)
    return [408]


def half_a_request_behind_a_slow_one(connection: Connection) -> list[int]:
    connection.send(post(PREDICT, b'{"X":[-0.2]}') + GOOD[:-5])
    return [200, 408]


def a_slow_body(connection: Connection) -> list[int]:
    """Ten times as fast as it must be."""
    drip(connection, post(INFER, TENSOR.ljust(20 << 10)), 1024, STALL_SECONDS / 10)
    connection.read(1)
    return [200]


def a_slow_answer(connection: Connection) -> list[int]:
    connection.send(post(PREDICT, b'{"X":[%f]}' % (-2.5 * STALL_SECONDS)))
    connection.read(1)
    return [200]


def a_quiet_connection(connection: Connection) -> list[int]:
    connection.send(GOOD_PLAIN)
    connection.read(1)
    begun = time.monotonic()
    connection.read_to_end()
    assert time.monotonic() - begun > 0.8 * KEEP_ALIVE_SECONDS
    return [200]


def a_connection_that_says_nothing_new(connection: Connection) -> list[int]:
    connection.send(GOOD + b"\r\n")
    return [200]


SLOW_CLIENTS: list[Callable[[Connection], list[int]]] = [
    silence,
    half_a_head,
    a_dripping_head,
    half_a_body,
    half_a_body_in_chunks,
    a_dripping_body,
    half_a_request_behind_a_slow_one,
    a_slow_body,
    a_slow_answer,
    a_quiet_connection,
    a_connection_that_says_nothing_new,
]


def test_no_slow_client_is_waited_for_and_no_slow_model_is_a_slow_client(
    both: dict[str, LiveServer],
):
    def play(client: Callable[[Connection], list[int]], path: str) -> None:
        with Connection(address_of(both[path])) as connection:
            expected = client(connection)
            begun = time.monotonic()
            connection.read_to_end()
            assert time.monotonic() - begun < PATIENCE, (client.__name__, path)
            assert connection.statuses == expected, (client.__name__, path)

    with ThreadPoolExecutor(2 * len(SLOW_CLIENTS)) as pool:
        played = [pool.submit(play, client, path) for client in SLOW_CLIENTS for path in both]
    for each in played:
        each.result()


def test_a_client_that_reads_no_answers_is_cut_off_and_costs_little(both: dict[str, LiveServer]):
    with ThreadPoolExecutor(len(both)) as pool:
        list(pool.map(ask_and_never_read, both.values()))


def ask_and_never_read(live: LiveServer) -> None:
    """Send large requests until the server has enough of it."""
    gateway = gateway_pid(live)
    data = b"[" + b"1.5," * (MAX_BODY_BYTES // 5) + b"1.5]"
    request = post(PREDICT, b'{"X":%b}' % data)
    before = resident_mib(gateway)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        client.settimeout(1.0)
        client.connect(address_of(live))
        sent, deadline, grown = 0, time.monotonic() + PATIENCE + SECONDS, 0.0
        while True:
            assert time.monotonic() < deadline, "it is served for ever"
            try:
                sent += client.send(request[sent % len(request) :])
            except TimeoutError:
                pass
            except ConnectionError:
                break
            grown = max(grown, resident_mib(gateway) - before)
    assert sent < 64 * len(request)
    assert grown < 64
    assert live.http.post(PREDICT.decode(), content=PLAIN).status_code == 200


# ------------------------------------------------------------------------------ gone


def records(live: LiveServer) -> list[OutcomeRecord]:
    """Everything the journal holds."""
    return [
        record
        for path in sorted((live.data / "journal").glob("*/*.journal"))
        for record, _ in read_segment(path)
    ]


def lines(live: LiveServer, name: str) -> list[str]:
    """What a model has printed."""
    with Client(live.url, live.key) as client:
        return [line.text for line in client.deployments.logs(name)]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return when it is so."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def leave(live: LiveServer, data: bytes, seconds: float = 0.0) -> None:
    """Send, wait a little, and go."""
    with Connection(address_of(live)) as connection:
        connection.send(data)
        time.sleep(seconds)


def number_of(live: LiveServer) -> int:
    """A number that no other test has sent, and its place in the journal."""
    return 1000 + len(records(live)) + int(time.monotonic() * 10) % 100_000 * 100


@pytest.mark.parametrize("behind", [b"", GOOD, GOOD[:-5]])
def test_what_a_client_that_left_asked_for_is_not_run(live: LiveServer, behind: bytes):
    """Alone on its connection, or with more requests behind, whole and not."""
    number = number_of(live)
    already = len(records(live))
    with Connection(address_of(live)) as busy:
        busy.send(post(PREDICT, b'{"X":[-1.5]}'))
        time.sleep(0.2)
        leave(live, post(PREDICT, b'{"X":[%d]}' % number) + behind, 0.3)
        busy.send(post(PREDICT, b'{"X":[%d]}' % (number + 1)))
        busy.read(2)
        assert busy.statuses == [200, 200]
    wait_until(lambda: f"ran {number + 1}.0" in lines(live, "echo"), "the log does not come")
    assert f"ran {number}.0" not in lines(live, "echo")
    wait_until(lambda: len(records(live)) >= already + 3, "a record is missing")
    codes = Counter(record.code for record in records(live)[already:])
    assert codes == {"": 2, "cancelled": 1}


def test_half_a_connection_counts_as_a_client_that_left(live: LiveServer):
    already = len(records(live))
    with Connection(address_of(live)) as connection:
        connection.send(post(PREDICT, b'{"X":[-1.5]}'))
        time.sleep(0.3)
        connection.socket.shutdown(socket.SHUT_WR)
        connection.read_to_end()
        assert connection.statuses == []
    wait_until(lambda: len(records(live)) > already, "the record is missing")
    assert [record.code for record in records(live)[already:]] == ["cancelled"]


def test_a_stream_that_nobody_reads_any_more_ends_in_the_worker(live: LiveServer):
    already = len(records(live))
    ended = len([line for line in lines(live, "stream") if line.startswith("ended at")])
    body = b'{"model":"stream","stream":true,"messages":[{"role":"user","content":"x"}]}'
    with Connection(address_of(live)) as connection:
        connection.send(post(b"/v1/chat/completions", body))
        while b"data:" not in connection.unread:
            connection.wait(1.0)
            assert not connection.is_closed

    def ends() -> list[str]:
        return [line for line in lines(live, "stream") if line.startswith("ended at")][ended:]

    wait_until(lambda: bool(ends()), "the model goes on")
    assert int(ends()[0].split()[-1]) < 1999
    wait_until(lambda: len(records(live)) > already, "the record is missing")
    (record,) = records(live)[already:]
    assert (record.code, record.status) == ("cancelled", 499)


STAGES = {
    "at once": b"",
    "in the head": GOOD[:50],
    "at the end of the head": GOOD[: -len(TENSOR)],
    "in the body": GOOD[:-5],
    "in a chunk": post(INFER, b"5\r\n{", CHUNKED, length=None),
    "after the request": GOOD,
    "after some": GOOD_PLAIN * 3,
    "after a refusal": LIVE + b"A: b\r\n" * 200 + b"\r\n",
}
ADMITTED = {"after the request": 1, "after some": 3}
"""At most so many records of each."""


def test_clients_that_leave_at_any_stage_leave_nothing_behind(live: LiveServer):
    before = {each.pid for each in workers(live)}
    files, already = open_files(gateway_pid(live)), len(records(live))
    rounds = 30  # more than the credits of a worker, together
    with ThreadPoolExecutor(8) as pool:
        for _ in range(rounds):
            list(pool.map(lambda data: leave(live, data), STAGES.values()))
    wait_until(lambda: open_files(gateway_pid(live)) <= files + 3, "connections are kept")
    wait_until(lambda: not any(each.in_flight for each in workers(live)), "work is kept")
    assert {each.pid for each in workers(live)} == before
    with Connection(address_of(live)) as connection:
        connection.send(GOOD_PLAIN * 65)
        connection.read(65)
        assert connection.statuses == [200] * 65
    found = records(live)[already:]
    assert len({record.request_id for record in found}) == len(found)
    codes = Counter(record.code for record in found)
    assert set(codes) <= {"", "cancelled"}
    assert 65 <= len(found) <= 65 + rounds * sum(ADMITTED.values())
