"""Fixtures that many tests share: a running server, and one with the demo's models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

START_SECONDS = 30


class LiveServer:
    """A `wherry serve` process of the test's own, on a port the system chose."""

    def __init__(self, process: subprocess.Popen[bytes], home: Path, data: Path) -> None:
        self.process = process
        self.home = home
        self.data = data
        found = _wait_for_file(process, home / ".wherry" / "servers")
        self.url: str = found["url"]
        self.key: str = found["key"]
        self.grpc: str = found["grpc"]
        self.http = httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=60
        )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                if self.http.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"the server did not become ready:\n{self.log()}")

    def environment(self) -> dict[str, str]:
        """Variables under which CLI and SDK find this server."""
        return {**clean_environment(), "HOME": str(self.home)}

    def run_cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `wherry …` against this server."""
        return subprocess.run(
            [sys.executable, "-m", "wherry", *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=180,
            check=check,
        )

    def log(self) -> str:
        """What the server printed so far."""
        return (self.home / "serve.log").read_text(errors="replace")[-8000:]

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def clean_environment() -> dict[str, str]:
    """Our environment without what would change a server's or a client's settings."""
    unwanted = ("WHERRY_", "OPENAI_", "ANTHROPIC_")
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(unwanted) or name == "WHERRY_TEST_CACHE"
    }


def _wait_for_file(process: subprocess.Popen[bytes], folder: Path) -> dict[str, str]:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for file in folder.glob("*.json"):
            return json.loads(file.read_text())
        if process.poll() is not None:
            break
        time.sleep(0.02)
    log = (folder.parents[1] / "serve.log").read_text(errors="replace")
    raise AssertionError(f"the server did not start:\n{log}")


@contextmanager
def run_server(
    folder: Path, *arguments: str, python: str = sys.executable, **variables: str
) -> Iterator[LiveServer]:
    """A server with its own home and data folder; ended, with its children, afterwards."""
    home, data = folder / "home", folder / "data"
    home.mkdir(exist_ok=True)
    with (home / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [
                python,
                "-m",
                "wherry",
                "serve",
                "--data",
                str(data),
                "--port",
                "0",
                *arguments,
            ],
            env={**clean_environment(), "HOME": str(home), **variables},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        server = LiveServer(process, home, data)
        yield server
        status = server.stop()
        assert status == 0, f"the server ended with {status}:\n{server.log()}"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for all tests that only need an empty one or bring their own names."""
    with run_server(tmp_path_factory.mktemp("server"), "--allow-code") as live:
        yield live
