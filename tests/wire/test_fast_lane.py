"""Which requests take the fast lane, and that they are answered as all others are.

That both ways answer alike in every detail of HTTP is what the conformance suite compares.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import re
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from tests.conftest import LiveServer

INFER = "/v2/models/iris/infer"
ROW = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [5, 3, 1, 0.2]}]}
COUNTER = re.compile(r"^wherry_fast_lane_requests_total (\d+)$", re.MULTILINE)
VARYING = {"date", "x-request-id", "server-timing", "openai-processing-ms"}


def lane_count(live: LiveServer) -> int:
    """Requests that took the lane so far; a gateway reports twice a second."""
    found = COUNTER.search(live.http.get("/metrics").text)
    return int(found[1]) if found else 0


@pytest.fixture
def fresh(live: LiveServer) -> Any:
    """A client with a connection of its own."""
    headers = {"authorization": f"Bearer {live.key}"}
    with httpx.Client(base_url=live.url, headers=headers) as client:
        yield client


@pytest.mark.parametrize(
    "path", [INFER, "/v2/models/iris/versions/1/infer", "/predict/iris", "/predict/default/iris"]
)
def test_the_ordinary_way_answers_the_same(fresh: httpx.Client, path: str) -> None:
    body = {"row": [5, 3, 1, 0.2]} if path.startswith("/predict") else ROW
    first = fresh.post(path, json=body)
    again = fresh.post(path, json=body)  # known by its head now
    ordinary = fresh.post(path, json=body, headers={"prefer": "wait=60"})
    assert first.status_code == again.status_code == ordinary.status_code == 200, first.text
    assert first.content == again.content == ordinary.content
    seen = [
        [(name, value) for name, value in answer.headers.items() if name not in VARYING]
        for answer in (first, again, ordinary)
    ]
    assert seen[0] == seen[1] == seen[2]
    names = [list(answer.headers) for answer in (first, again, ordinary)]
    assert names[0] == names[1] == names[2]
    assert len({answer.headers["x-request-id"] for answer in (first, again, ordinary)}) == 3


def test_an_error_of_the_model_is_told_the_same_way(fresh: httpx.Client) -> None:
    wrong = {"inputs": [{"name": "other", "shape": [1], "datatype": "FP32", "data": [1]}]}
    fast = fresh.post(INFER, json=wrong)
    ordinary = fresh.post(INFER, json=wrong, headers={"prefer": "wait=60"})
    assert fast.status_code == ordinary.status_code == 400
    assert fast.content == ordinary.content
    assert list(fast.headers) == list(ordinary.headers)


def test_a_key_that_is_revoked_is_refused_though_its_head_is_known(live: LiveServer) -> None:
    made = live.http.post("/platform/v1/keys", json={"name": "short-lived"}).json()
    with httpx.Client(
        base_url=live.url, headers={"authorization": f"Bearer {made['secret']}"}
    ) as client:
        for _ in range(3):
            assert client.post(INFER, json=ROW).status_code == 200
        live.http.delete(f"/platform/v1/keys/{made['id']}").raise_for_status()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if client.post(INFER, json=ROW).status_code == 401:
                return
        pytest.fail("the key still works")


def test_usual_requests_take_the_lane_and_unusual_ones_do_not(
    live: LiveServer, fresh: httpx.Client
) -> None:
    for _ in range(20):
        fresh.post(INFER, json=ROW).raise_for_status()
    before = wait_for(live, 20)
    for _ in range(20):
        fresh.post(INFER, json=ROW, headers={"x-request-timeout-seconds": "9"}).raise_for_status()
    for _ in range(3):
        fresh.post(INFER, json=ROW).raise_for_status()
    assert wait_for(live, before + 3) == before + 3


def wait_for(live: LiveServer, least: int) -> int:
    """The count when it is at least so large and no longer grows."""
    last = -1
    for _ in range(50):
        time.sleep(0.7)
        now = lane_count(live)
        if now >= least and now == last:
            return now
        last = now
    raise AssertionError(f"{last} requests took the lane, {least} should have")


def connect(live: LiveServer) -> socket.socket:
    address = urlsplit(live.url)
    assert address.hostname
    assert address.port
    return socket.create_connection((address.hostname, address.port), timeout=30)


def request_for(key: str, row: list[float]) -> bytes:
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": row}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def read_answer(connected: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(connected, method="POST")
    response.begin()
    return response.status, response.read()


def test_requests_of_many_connections_in_one_moment_each_get_their_own_answer(
    live: LiveServer,
) -> None:
    draw = random.Random(5)
    rows = [[round(draw.random() * 7, draw.choice([1, 3])) for _ in range(4)] for _ in range(40)]
    connections = [connect(live) for _ in rows]
    try:
        expected = []
        for connected, row in zip(connections, rows, strict=True):
            connected.sendall(request_for(live.key, row))
            expected.append(read_answer(connected))
        assert {status for status, _ in expected} == {200}
        assert len({body for _, body in expected}) > 30
        for _ in range(20):
            for connected, row in zip(connections, rows, strict=True):
                connected.sendall(request_for(live.key, row))
            assert [read_answer(connected) for connected in connections] == expected
        # some leave while they are waited for, and the others do not notice
        leaving = connections[::3]
        for connected, row in zip(connections, rows, strict=True):
            connected.sendall(request_for(live.key, row))
        for connected in leaving:
            connected.close()
        for index, connected in enumerate(connections):
            if connected not in leaving:
                assert read_answer(connected) == expected[index]
    finally:
        for connected in connections:
            connected.close()


def test_a_limit_holds_though_requests_come_in_one_moment(live: LiveServer) -> None:
    limits = {"requests_per_minute": 60}
    made = live.http.post(
        "/platform/v1/keys", json={"name": "sixty a minute", "limits": limits}
    ).json()
    row = [5.0, 3.0, 1.0, 0.2]
    connections = [connect(live) for _ in range(40)]
    try:
        statuses: list[int] = []
        began = time.monotonic()
        for _ in range(3):
            for connected in connections:
                connected.sendall(request_for(made["secret"], row))
            statuses += [read_answer(connected)[0] for connected in connections]
        refilled = math.ceil(time.monotonic() - began)
        assert set(statuses) == {200, 429}
        assert 60 <= statuses.count(200) <= 60 + refilled
    finally:
        for connected in connections:
            connected.close()
        live.http.delete(f"/platform/v1/keys/{made['id']}").raise_for_status()


def test_nothing_is_kept_of_heads_whose_key_is_unknown(live: LiveServer) -> None:
    (gateway,) = [
        each
        for each in psutil.Process(live.process.pid).children()
        if "gateway" in " ".join(each.cmdline())
    ]
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [5, 3, 1, 0.2]}
    body = json.dumps({"inputs": [tensor]})
    long = "9" * 50_000

    def ask(number: int) -> int:
        head = {
            "Authorization": f"Bearer nobody-{number}-{time.monotonic()}",
            "Content-Type": "application/json",
            "Inference-Header-Content-Length": long,
        }
        connection = http.client.HTTPConnection(urlsplit(live.url).netloc, timeout=30)
        try:
            connection.request("POST", INFER, body, head)
            return connection.getresponse().status
        finally:
            connection.close()

    for number in range(100):  # what is made once
        ask(number)
    before = gateway.memory_info().rss
    statuses = {ask(number) for number in range(1200)}
    assert 200 not in statuses
    grown = (gateway.memory_info().rss - before) >> 20
    assert grown < 30, f"{grown} MiB for 1200 requests of 50 kB"
