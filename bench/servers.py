"""Servers under measurement: how one is started, asked whether it answers right, and ended."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from bench.environments import PEERS, python_of
from bench.load import Target
from bench.machine import cpu_seconds, memory_mib

REAPER = Path(__file__).with_name("reaper.py")
START_SECONDS = 120.0
STOP_SECONDS = 40.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A server has one core here: threads of a numerical library would only wait for each other."""

Check = Callable[[bytes], bool]
"""Whether the body of an answer is right."""


@dataclass(frozen=True)
class Launch:
    """What a server's process is told."""

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Request:
    """The one request that tells whether a server answers, and that it is loaded with."""

    path: str
    bodies: Path
    check: Check
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    is_whole: bool = False
    many: bool = False
    method: str = "POST"


@dataclass(frozen=True)
class Contestant:
    """One server in one setting."""

    name: str
    """Short and without spaces: names a file and a row."""
    label: str
    setting: str
    """What is particular about it, for the page."""
    launch: Callable[[int], Launch]
    """The process, given a port."""
    request: Request
    is_resident: bool = True
    """False: started for its visit and stopped again, because it uses a core even when idle."""


class Server:
    """A running contestant."""

    def __init__(self, contestant: Contestant, cores: set[int], logs: Path) -> None:
        self.contestant = contestant
        self._cores = cores
        self._log_path = logs / f"{contestant.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.start_seconds: float | None = None
        self.memory: dict[str, float] = {}

    @property
    def root(self) -> int:
        """The reaper, below which the server's whole tree is."""
        assert self._process is not None
        return self._process.pid

    @property
    def target(self) -> Target:
        """What wrk is told."""
        request = self.contestant.request
        url = f"http://127.0.0.1:{self.port}{request.path}"
        headers = {"Content-Type": "application/json", **request.headers}
        return Target(url, headers, request.bodies, request.is_whole, request.many)

    def start(self) -> None:
        """Start it and return when it has given the right answer."""
        self.port = free_port()
        launch = self.contestant.launch(self.port)
        self._log = self._log_path.open("ab")
        cores = ",".join(map(str, sorted(self._cores)))
        started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, str(REAPER), cores, *launch.command],
            env=clean_environment() | ONE_THREAD | dict(launch.environment),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=self._log_path.parent,
        )
        try:
            self._wait_until_right()
        except BaseException:
            self.stop()
            raise
        if self.start_seconds is None:
            self.start_seconds = round(time.monotonic() - started, 2)

    def _wait_until_right(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        last = "no answer"
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                last = "it ended"
                break
            try:
                status, body = self.ask()
                if status == 200 and self.contestant.request.check(body):
                    return
                last = f"{status}: {body[:300]!r}"
            except (OSError, http.client.HTTPException) as error:
                last = repr(error)
            time.sleep(0.02)
        tail = self._log_path.read_text(errors="replace")[-1500:]
        raise RuntimeError(f"{self.contestant.name} gives no right answer: {last}\n{tail}")

    def ask(self) -> tuple[int, bytes]:
        """One request with the first body."""
        target = self.target
        text = target.bodies.read_bytes()
        body = text if target.is_whole else text.split(b"\n", 1)[0]
        parts = urlsplit(target.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=START_SECONDS)
        try:
            connection.request(
                self.contestant.request.method, parts.path, body or None, dict(target.headers)
            )
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def check(self) -> None:
        """Fail unless it still answers right."""
        status, body = self.ask()
        if status != 200 or not self.contestant.request.check(body):
            raise RuntimeError(f"{self.contestant.name} answers {status}: {body[:300]!r}")

    def measure_memory(self) -> None:
        """Remember RSS and PSS of the tree."""
        self.memory = memory_mib(self.root)

    def idle_cpu_share(self, seconds: float) -> float:
        """Share of one core that it uses while nobody asks it."""
        before = cpu_seconds(self.root)
        time.sleep(seconds)
        return round((cpu_seconds(self.root) - before) / seconds, 4)

    def stop(self) -> None:
        """End it and everything below it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None


def clean_environment() -> dict[str, str]:
    """Our environment without what would change how a server runs."""
    unwanted = ("WHERRY_", "OPENAI_", "RAY_", "BENTOML_", "MLSERVER_", "BENCH_", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def peer_launch(
    peer: str, mode: str, workload: str, *arguments: str, **variables: str
) -> Callable[[int], Launch]:
    """The process of a peer: `{port}` in an argument stands for the port."""

    def launch(port: int) -> Launch:
        python = python_of(peer)
        environment = {
            "PATH": f"{python.parent}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": f"{PEERS}:{PEERS / peer}",
            "BENCH_WORKLOAD": workload,
            "BENCH_MODE": mode,
            "BENCH_PORT": str(port),
            **variables,
        }
        filled = [each.replace("{port}", str(port)) for each in arguments]
        return Launch([str(python), *filled], environment)

    return launch


def close_to(expected: list[float], tolerance: float = 2e-3) -> Check:
    """A check that an answer holds these numbers somewhere, in this order."""

    def numbers_in(value: Any) -> list[list[float]]:
        if isinstance(value, list):
            found = [each for item in value for each in numbers_in(item)]
            if value and all(isinstance(each, (int, float)) for each in value):
                found.append(value)
            return found
        if isinstance(value, dict):
            return [each for item in value.values() for each in numbers_in(item)]
        return []

    def check(body: bytes) -> bool:
        return any(
            len(found) >= len(expected)
            and all(abs(a - b) <= tolerance for a, b in zip(expected, found, strict=False))
            for found in numbers_in(json.loads(body))
        )

    return check
