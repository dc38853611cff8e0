"""HTTP itself, below every protocol: raw sockets, odd headers, odd paths, and who may call what."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import Any

import httpx
import pytest
from tests.conftest import LiveServer
from tests.wire.probe import (
    check_error_shape,
    check_refusal,
    gateway_pid,
    open_files,
    resident_mib,
    workers,
)

OPEN_PATHS = {
    "/",
    "/livez",
    "/readyz",
    "/v2/health/live",
    "/v2/health/ready",
    "/docs",
    "/docs/{file}",
}
FLOWER = b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,4],"data":[5.1,3.5,1.4,0.2]}]}'
FINAL_STATUS = re.compile(rb"HTTP/1\.1 ([2-5]\d\d) ")


class Wire:
    """Raw bytes to a server, with this server's headers at hand."""

    def __init__(self, live: LiveServer) -> None:
        host, _, port = live.url.removeprefix("http://").partition(":")
        self.address = (host, int(port))
        self.host = b"Host: 127.0.0.1\r\n"
        self.key = b"Authorization: Bearer " + live.key.encode() + b"\r\n"
        self.infer = b"POST /v2/models/iris/infer HTTP/1.1\r\n" + self.host + self.key
        self.models = b"GET /v1/models HTTP/1.1\r\n"

    def connect(self) -> socket.socket:
        """A connection; the caller closes it."""
        return socket.create_connection(self.address, timeout=5)

    def send(self, data: bytes, quiet_seconds: float = 0.3) -> bytes:
        """Everything that comes back until the server closes or falls silent."""
        received = b""
        with self.connect() as connection:
            try:
                connection.sendall(data)
                connection.settimeout(5)
                while piece := connection.recv(1 << 16):
                    received += piece
                    connection.settimeout(quiet_seconds)
            except (TimeoutError, ConnectionError):
                pass
        return received

    def statuses(self, data: bytes) -> list[int]:
        """Final statuses of all answers to what is sent."""
        return [int(each) for each in FINAL_STATUS.findall(self.send(data))]


@pytest.fixture
def wire(live: LiveServer) -> Wire:
    return Wire(live)


def length(number: int) -> bytes:
    return b"Content-Length: %d\r\n" % number


# ------------------------------------------------------------------------------ framing

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def test_what_is_right_is_answered(wire: Wire):
    """The oracle of the tests below: they fail for their fault, not for their form."""
    whole = wire.infer + length(len(FLOWER)) + b"\r\n" + FLOWER
    in_chunks = wire.infer + CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(FLOWER), FLOWER)
    asked = wire.models + wire.host + wire.key + b"\r\n"
    assert wire.statuses(whole) == wire.statuses(in_chunks) == wire.statuses(asked) == [200]
    assert wire.statuses(asked * 3) == [200, 200, 200]


@pytest.mark.parametrize(
    "framing",
    [
        length(5) + length(len(FLOWER)),
        length(len(FLOWER)) * 2,
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: \r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n" + length(5),
        length(5) + b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    ],
)
def test_a_body_of_doubtful_length_is_refused_and_nothing_after_it_is_run(
    wire: Wire, framing: bytes
):
    smuggled = wire.models + wire.host + wire.key + b"\r\n"
    assert wire.statuses(wire.infer + framing + b"\r\n0\r\n\r\n" + smuggled) == [400]


@pytest.mark.parametrize(
    "chunks", [b"zz\r\n", b"-5\r\nhello\r\n0\r\n\r\n", b"f" * 18 + b"\r\nhello", b"5\rhello"]
)
def test_broken_chunks_are_refused(wire: Wire, chunks: bytes):
    assert wire.statuses(wire.infer + CHUNKED + chunks) == [400]


@pytest.mark.parametrize(
    "header",
    [b"X: a\r\n b", b"X: a\rb", b"X: a\0b", b"no colon", b": no name", b"a b: c", b"X: a\nb: c\n"],
)
def test_broken_headers_are_refused(wire: Wire, header: bytes):
    assert wire.statuses(wire.models + wire.host + wire.key + header + b"\r\n\r\n") == [400]


@pytest.mark.parametrize(
    "line",
    [
        b"GET v1/models HTTP/1.1\r\n",
        b"GET /v1/mo\0dels HTTP/1.1\r\n",
        b"GET /v1/models HTTP/9.9\r\n",
        b"get /v1/models HTTP/1.1\r\n",
        b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n",
        "GET /v1/modèles HTTP/1.1\r\n".encode(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_broken_request_lines_are_refused(wire: Wire, line: bytes):
    assert wire.statuses(line + wire.host + wire.key + b"\r\n") == [400]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"", 400),
        (b"Host:\r\n", 400),
        (b"Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n", 400),
        (b"Host: x/livez?\r\n", 400),
        (b"Host: 127.0.0.1#b\r\n", 400),
        (b"Host: a@127.0.0.1\r\n", 400),
        (b"Host: 127.0.0.1:999999\r\n", 400),
        (b"Host: rebound.example\r\n", 403),
        (b"Host: 127.0.0.1.example\r\n", 403),
    ],
)
def test_a_foreign_or_malformed_host_is_refused(wire: Wire, header: bytes, status: int):
    for path in (b"/v1/models", b"/livez", b"/docs", b"/nobody"):
        line = b"GET %b HTTP/1.1\r\n" % path
        assert wire.statuses(line + header + wire.key + b"\r\n") == [status]


@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:80", b"[::1]:8000"])
def test_every_name_of_this_machine_is_served(wire: Wire, host: bytes):
    assert wire.statuses(b"GET /livez HTTP/1.1\r\nHost: %b\r\n\r\n" % host) == [200]


def test_a_body_over_the_limit_is_refused_before_it_is_read(wire: Wire):
    assert wire.statuses(wire.infer + length(10**12) + b"\r\n{") == [413]


def test_an_endless_body_is_cut_off(live: LiveServer):
    def pieces() -> Any:
        while True:
            yield b" " * (1 << 20)

    before = resident_mib(gateway_pid(live))
    try:
        answer = live.http.post("/v1/chat/completions", content=pieces())
        assert answer.status_code == 413
    except httpx.TransportError:
        pass  # it was told, and cut off, while it still sent
    assert resident_mib(gateway_pid(live)) - before < 200
    assert live.http.get("/livez").status_code == 200


# ------------------------------------------------------------------------------ paths


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/V1/MODELS",
        "/v1/models/",
        "/v1/x/../models",
        "/livez/../v1/models",
        "/v1/%2e%2e/livez",
        "/v1/models%00",
        "/v1/models;x",
        "/v1%2fmodels%3f",
        "/platform/v1//keys",
        "/docs/..%2froute.py",
        "/docs/%2e%2e%2froute.py",
        "/docs/docs.html",
        "/v1/models/" + "a" * 10_000,
        "/v2/models/" + "%2e%2e%2f" * 20 + "etc/passwd",
        "/predict/",
        "/v1/models/%e2%80%ae",
        "/v1/models/%ff",
        "/nobody",
    ],
)
def test_a_path_that_is_nearly_right_reaches_nothing(wire: Wire, path: str):
    line = f"GET {path} HTTP/1.1\r\n".encode()
    for key in (wire.key, b""):
        answer = wire.send(line + wire.host + key + b"\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        (status,) = FINAL_STATUS.findall(head + b" ")
        assert int(status) in (400, 401, 404, 405), head
        assert json.loads(body)["error"]
        assert len(body) < 2000


@pytest.mark.parametrize("query", ["a=1&" * 5000, "%ff=%ff", "&&&==", "a=" + "b" * 20_000])
def test_a_strange_query_harms_nothing(live: LiveServer, query: str):
    assert live.http.get(f"/v1/models?{query}").status_code in (200, 400)
    assert live.http.get(f"/platform/v1/keys?{query}").status_code in (200, 400)


# ------------------------------------------------------------------------------ who may call


def rows_of(live: LiveServer) -> list[tuple[str, str, str]]:
    """Method, path and permission of every row."""
    document = live.http.get("/openapi.json").json()
    return [
        (method.upper(), path, operation["x-permission"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def fill(path: str) -> str:
    """A path with names in it that nothing has."""
    return re.sub(r"\{[a-z_]+\}", "nobody", path)


def test_every_row_but_health_and_docs_needs_a_key(live: LiveServer):
    rows = rows_of(live)
    assert len(rows) > 40
    with httpx.Client(base_url=live.url) as stranger:
        for method, path, permission in rows:
            answer = stranger.request(method, fill(path))
            if path in OPEN_PATHS:
                assert permission == "open"
                assert answer.status_code != 401
                continue
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            check_refusal(path, answer)


def test_other_methods_are_no_way_in(live: LiveServer):
    rows = rows_of(live)
    served: dict[str, set[str]] = {}
    for method, path, _ in rows:
        served.setdefault(path, set()).add(method)
    with httpx.Client(base_url=live.url) as stranger:
        for path, methods in served.items():
            for method in {"HEAD", "OPTIONS", "TRACE", "PATCH", "PUT", "DELETE"} - methods:
                answer = stranger.request(method, fill(path))
                if method == "HEAD" and "GET" in methods:
                    assert not answer.content
                    assert (answer.status_code == 401) == (path not in OPEN_PATHS)
                    continue
                assert answer.status_code == 405, (method, path)
                assert set(answer.headers["allow"].split(", ")) == methods
                if method != "HEAD":
                    check_refusal(path, answer)


def test_headers_that_pretend_are_ignored(live: LiveServer):
    pretended = {
        "x-http-method-override": "DELETE",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-host": "localhost",
        "x-user": "admin",
        "x-original-url": "/livez",
    }
    assert httpx.get(f"{live.url}/v1/models", headers=pretended).status_code == 401
    assert live.http.get("/v1/models", headers=pretended).status_code == 200


def test_a_key_must_come_in_one_form_only(live: LiveServer, wire: Wire):
    key = live.key
    wrong: list[list[tuple[str, str]]] = [
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", f"Bearer {key} x")],
        [("authorization", f"Bearer  {key}")],
        [("authorization", f"Basic {key}")],
        [("authorization", key)],
        [("authorization", f"Bearer {key[:-1]}")],
        [("authorization", f"Bearer {key[:20]}")],
        [("authorization", "Bearer " + "a" * 10_000)],
        [("authorization", "Bearer ' OR 1=1--")],
        [("authorization", f"Bearer {key}"), ("authorization", f"Bearer {key}")],
        [("authorization", f"Bearer {key}"), ("authorization", "Bearer other")],
        [("authorization", f"Bearer {key}"), ("x-api-key", "other")],
        [("x-api-key", "")],
        [("x-api-key", key), ("x-api-key", key)],
        [("x-api-key", f"Bearer {key}")],
        [("cookie", f"key={key}")],
        [("proxy-authorization", f"Bearer {key}")],
    ]
    with httpx.Client(base_url=live.url) as stranger:
        for headers in wrong:
            answer = stranger.get("/v1/models", headers=headers)
            assert answer.status_code == 401, headers
            assert key not in answer.text
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert stranger.get(f"/v1/models?api_key={key}&key={key}").status_code == 401
    both = wire.key + b"X-Api-Key: " + key.encode() + b"\r\n"
    assert wire.statuses(wire.models + wire.host + both + b"\r\n") == [200]


def make_key(live: LiveServer, **fields: Any) -> httpx.Client:
    """A client with a new key."""
    made = live.http.post("/platform/v1/keys", json={"name": "wire", **fields})
    assert made.status_code == 201, made.text
    headers = {"authorization": f"Bearer {made.json()['secret']}"}
    return httpx.Client(base_url=live.url, headers=headers, timeout=30)


@pytest.mark.parametrize("scope", ["invoke", "download", "publish", "operate"])
def test_a_key_reaches_the_rows_of_its_scope_and_no_others(live: LiveServer, scope: str):
    with make_key(live, scopes=[scope]) as caller:
        for method, path, permission in rows_of(live):
            if permission in ("open", "any"):
                continue
            answer = caller.request(method, fill(path), headers={"content-type": "text/plain"})
            if permission == scope:
                assert answer.status_code not in (401, 403), (method, path, answer.text)
            else:
                assert answer.status_code == 403, (method, path)
                check_refusal(path, answer)


def test_a_key_for_one_deployment_reaches_no_other(live: LiveServer):
    row = {"row": [5.1, 3.5, 1.4, 0.2]}
    with make_key(live, deployments=["iris"]) as caller:
        assert caller.post("/predict/iris", json=row).status_code == 200
        assert caller.post("/predict/default/iris", json=row).status_code == 200
        refused = [
            caller.post("/predict/topics", json={"text": "x"}),
            caller.post("/v1/chat/completions", json={"model": "chat", "messages": []}),
            caller.post("/v1/embeddings", json={"model": "default/embeddings", "input": "x"}),
            caller.post("/v2/models/echo/infer", content=FLOWER),
            caller.get("/v2/models/echo"),
            caller.get("/v2/models/echo/ready"),
            caller.get("/v1/models/echo"),
        ]
        assert {answer.status_code for answer in refused} == {403}
        for answer in refused:
            check_error_shape(answer.request.url.path, answer)
        assert [each["id"] for each in caller.get("/v1/models").json()["data"]] == ["iris"]
        index = caller.post("/v2/repository/index").json()
        assert [each["name"] for each in index] == ["iris"]
        stats = caller.get("/v2/models/stats").json()["model_stats"]
        assert {each["name"] for each in stats} == {"iris"}


def test_a_revoked_key_is_refused_within_a_second(live: LiveServer):
    made = live.http.post("/platform/v1/keys", json={"name": "short"}).json()
    headers = {"x-api-key": made["secret"]}
    with httpx.Client(base_url=live.url, headers=headers) as caller:
        assert caller.get("/v1/models").status_code == 200
        assert live.http.delete(f"/platform/v1/keys/{made['id']}").status_code == 200
        deadline = time.monotonic() + 1.0
        while caller.get("/v1/models").status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.02)


# ------------------------------------------------------------------------------ who vanishes


def test_clients_that_vanish_leave_nothing_behind(live: LiveServer, wire: Wire):
    pids = {each.pid for each in workers(live)}
    before = open_files(gateway_pid(live))
    chat = b'{"model":"chat","messages":[{"role":"user","content":"x"}],"stream":true}'
    ask = b"POST /v1/chat/completions HTTP/1.1\r\n" + wire.host + wire.key
    beginnings = [
        b"POST",
        wire.infer,
        wire.infer + length(len(FLOWER)) + b"\r\n" + FLOWER[:20],
        wire.infer + CHUNKED + b"5\r\n{",
        wire.infer + length(len(FLOWER)) + b"\r\n" + FLOWER,
        ask + length(len(chat)) + b"\r\n" + chat,
    ]
    for _ in range(10):
        for beginning in beginnings:
            with wire.connect() as connection:
                connection.sendall(beginning)
    deadline = time.monotonic() + 10
    while open_files(gateway_pid(live)) > before + 3:
        assert time.monotonic() < deadline, "connections of those who left are kept"
        time.sleep(0.1)
    assert live.http.post("/v2/models/iris/infer", content=FLOWER).status_code == 200
    assert {each.pid for each in workers(live)} == pids
