"""What an operator is told of the sandbox, and may choose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.conftest import LiveServer, clean_environment

from wherry import Client, errors
from wherry.doors.problems import find_sandbox_problems
from wherry.worker.sandbox.probe import probe_sandbox
from wherry.worker.sandbox.sandbox import Confinement, Sandbox

ECHO = "class Model:\n    def predict(self, batch):\n        return batch\n"
REPOSITORY = Path(__file__).parents[2]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")


@contextmanager
def serve(folder: Path, *prefix: str, sandbox: str) -> Iterator[LiveServer]:
    """A server behind a command that takes something away from it."""
    folder.mkdir()
    home = folder / "home"
    home.mkdir()
    command = [*prefix, sys.executable, "-m", "wherry", "serve", "--allow-code", "--port", "0"]
    with (home / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--data", str(folder / "data"), "--sandbox", sandbox],
            env={**clean_environment(), "HOME": str(home)},
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        server = LiveServer(process, home, folder / "data")
        yield server
        assert server.stop() == 0
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()


def without(part: str) -> list[str]:
    return [sys.executable, "-m", "tests.sandbox.without", part]


def wait_until_probed(client: Client) -> str:
    for _ in range(300):
        told = client.overview().sandbox
        if ":" in told:
            return told
        import time

        time.sleep(0.1)
    raise AssertionError("the server never said what holds its models")


def write_echo(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.py").write_text(ECHO)
    return folder


@on_linux
def test_the_probe_finds_what_this_kernel_has():
    found = probe_sandbox()
    assert found.lacks == [], found
    assert ("user" in found.parts) == (os.geteuid() == 0)
    assert "memory" in found.parts


@on_linux
@pytest.mark.parametrize(("part", "lost"), [("landlock", "files"), ("seccomp", "calls")])
def test_the_probe_finds_what_a_kernel_lacks(part: str, lost: str):
    code = "from wherry.worker.sandbox.probe import *; print(probe_sandbox().lacks)"
    done = subprocess.run(
        [*without(part), sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str([lost])


@on_linux
@pytest.mark.slow
def test_a_server_tells_what_holds_its_models(tmp_path: Path):
    with (
        serve(tmp_path / "server", sandbox="auto") as server,
        Client(server.url, server.key) as client,
    ):
        assert "files" in wait_until_probed(client)
        client.models.import_model(str(write_echo(tmp_path / "echo")), name="echo", task="tensor")
        client.deployments.deploy("echo")
        (worker,) = client.workers()
        assert {"files", "calls", "privileges", "memory"} <= set(worker.sandbox)
        assert "files" in server.run_cli("ps", "--workers").stdout
        assert "auto: " in server.run_cli("status").stdout
        doctor = json.loads(server.run_cli("doctor", "-o", "json", check=False).stdout)
        told = [each for each in doctor if each["subject"] == "sandbox"]
        assert [each["severity"] for each in told] == ["info"]


@on_linux
@pytest.mark.slow
def test_a_server_on_a_lesser_kernel_tells_it_and_required_refuses(tmp_path: Path):
    with (
        serve(tmp_path / "server", *without("landlock"), sandbox="required") as server,
        Client(server.url, server.key) as client,
    ):
        wait_until_probed(client)
        with pytest.raises(errors.SandboxMissing, match="Landlock") as refusal:
            client.models.import_model(
                str(write_echo(tmp_path / "echo")), name="echo", task="tensor"
            )
        assert "WHERRY_SANDBOX" in refusal.value.hint
        told = server.run_cli("status").stdout
        assert "the part 'files' of the sandbox is missing" in told
        assert server.run_cli("doctor", check=False).returncode == 1


def test_what_is_missing_is_told_with_what_follows():
    files = Sandbox(parts={"privileges": "", "calls": ""}, missing={"files": "no Landlock"})
    (lost, held) = find_sandbox_problems("auto", files)
    assert (lost.severity, lost.cause) == ("warning", "no Landlock")
    assert "'files'" in lost.what
    assert "required" in lost.remedy
    assert held.severity == "info"
    (lost, _) = find_sandbox_problems("required", files)
    assert lost.severity == "error"
    (off,) = find_sandbox_problems("off", None)
    assert off.severity == "warning"
    whole = Sandbox(
        parts={"privileges": "", "files": "", "calls": ""}, missing={"user": "EPERM"}, is_root=True
    )
    (user, _) = find_sandbox_problems("auto", whole)
    assert "users of their own" in user.what


def test_the_memory_limit_follows_what_was_measured():
    assert Confinement().memory_limit_mib(100, 8000) == 1224
    assert Confinement().memory_limit_mib(5000, 8000) == 8000
    assert Confinement(worker_memory_mib=500).memory_limit_mib(100, 8000) == 500
    assert Confinement(worker_memory_mib=1).memory_limit_mib(100, 8000) == 256
