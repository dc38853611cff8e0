"""What the wire tests look at from outside: workers, their processor time, and answers' shapes."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
from tests.conftest import LiveServer

from wherry.client.schema import WorkerInfo

LEAK = re.compile(
    r"Traceback|/(home|root|tmp|usr|proc|var)/|site-packages|\.py\b|0x[0-9a-f]{6}|wherry\.[a-z]+\."
    r"|msgspec|numpy|sklearn|skops|xllama|sqlite|asyncio|uvicorn|starlette",
    re.IGNORECASE,
)
"""What no answer may tell a stranger."""
COHERE_PATHS = ("/v1/rerank", "/v2/rerank")
PLAIN_ERRORS = ("/v2", "/api/")
"""Beginnings of paths whose clients read an error as one text."""
HF_PATHS = ("/hf/", "/models/", "/pipeline/")
MLFLOW_PATHS = ("/mlflow/", "/invocations", "/ping", "/version")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def workers(live: LiveServer) -> list[WorkerInfo]:
    """Every worker of the server."""
    return msgspec.convert(live.http.get("/platform/v1/workers").json()["items"], list[WorkerInfo])


def worker_of(live: LiveServer, deployment: str) -> WorkerInfo:
    """The one worker of a deployment."""
    (found,) = [each for each in workers(live) if each.deployment == deployment]
    return found


def gateway_pid(live: LiveServer) -> int:
    """The process that answers."""
    found = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(live.process.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [each for each in found.stdout.splitlines() if "wherry: gateway" in each]
    return int(line.split()[0])


def open_files(pid: int) -> int:
    """Descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def processor_seconds(pid: int) -> float:
    """Time that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def wait_until_idle(pid: int, seconds: float = 10) -> None:
    """Return when a process computes no more; a model that decodes never does less than this."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before = processor_seconds(pid)
        time.sleep(0.2)
        if processor_seconds(pid) - before <= 0.05:
            return
    raise AssertionError("the worker still computes")


def check_refusal(path: str, answer: httpx.Response) -> None:
    """A 4xx in the shape of its protocol, short, and without anything of our insides."""
    assert 400 <= answer.status_code < 500, f"{path}: {answer.status_code} {answer.text[:300]}"
    check_error_shape(path, answer)


def check_error_shape(path: str, answer: httpx.Response) -> None:
    """The error object that clients of a path's protocol read."""
    assert len(answer.content) < 5000, answer.text[:300]
    assert not LEAK.search(answer.text), answer.text[:300]
    assert answer.headers["x-request-id"]
    body: Any = answer.json()
    if path.startswith(MLFLOW_PATHS):
        assert set(body) == {"error_code", "message"}, body
        return
    if path in COHERE_PATHS:
        assert set(body) == {"message", "detail", "code", "param", "id"}, body
        return
    error = body["error"]
    if path.startswith(HF_PATHS):
        assert set(body) - {"error_type"} == {"error"}, body
        assert error
        assert isinstance(error, str)
    elif path == "/rerank":
        assert set(body) == {"error", "error_type"}, body
    elif path.startswith("/v1/messages"):
        assert set(body) == {"type", "error", "request_id"}, body
        assert set(error) == {"type", "message"}, error
    elif path.startswith("/v1") and ":predict" not in path:
        assert set(error) == {"message", "type", "param", "code"}, error
    elif path.startswith(PLAIN_ERRORS) or "/resolve/" in path or ":predict" in path:
        assert set(body) == {"error"}, body
        assert isinstance(error, str)
        assert error
    else:
        assert {"code", "message", "hint", "request_id"} <= set(error), error
