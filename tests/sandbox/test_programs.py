"""What a runtime that is a server of its own (vLLM) can do in its sandbox, and what it cannot.

A process puts the sandbox on itself and tells as JSON what it then could do.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from wherry.worker.sandbox import landlock

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or landlock.version() < 6, reason="Linux with Landlock of 2024"
)

PROGRAM = """
import json, os, signal, socket, subprocess, sys
from pathlib import Path
from wherry.worker.sandbox.sandbox import Cage, confine, seal

bundle, scratch, private, outside, port, parent = sys.argv[1:]
os.chdir(scratch)
sandbox = confine(Cage(
    python=Path(sys.executable), bundle=Path(bundle), scratch=Path(scratch),
    private=Path(private), server=True,
))
seal(sandbox)
could = {}

def attempt(name):
    def run(action):
        try:
            action()
            could[name] = True
        except OSError as error:
            could[name] = False
    return run

@attempt("run a program")
def _():
    assert subprocess.run(["/bin/echo", "hi"], capture_output=True, check=True).stdout == b"hi\\n"

@attempt("run Python, which sees itself")
def _():
    code = "import os; assert open('/proc/self/status').read()"
    subprocess.run([sys.executable, "-c", code], check=True)

@attempt("talk to itself by TCP")
def _():
    listener = socket.create_server(("127.0.0.1", 0))
    socket.create_connection(listener.getsockname(), 5).sendall(b"x")

@attempt("talk to itself by a Unix socket")
def _():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(scratch + "/own.sock")
    listener.listen()
    socket.socket(socket.AF_UNIX).connect(scratch + "/own.sock")

@attempt("read the bundle")
def _():
    Path(bundle, "model").read_text()

@attempt("read the server's data")
def _():
    Path(private, "secret").read_text()

@attempt("read it by another program")
def _():
    if subprocess.run(["/bin/cat", private + "/secret"], stderr=subprocess.DEVNULL).returncode:
        raise OSError

@attempt("write elsewhere")
def _():
    Path(outside, "new").write_text("x")

@attempt("read the server's environment")
def _():
    Path(f"/proc/{parent}/environ").read_bytes()

@attempt("kill the server")
def _():
    os.kill(int(parent), 0)

@attempt("make a namespace")
def _():
    os.unshare(os.CLONE_NEWUSER) if hasattr(os, "unshare") else subprocess.run(
        ["/usr/bin/unshare", "-r", "true"], check=True, stderr=subprocess.DEVNULL)

@attempt("reach another server")
def _():
    socket.create_connection(("127.0.0.1", int(port)), 5)

print(json.dumps({"could": could, "parts": sandbox.parts, "missing": sandbox.missing}))
"""
CAN = {
    "run a program",
    "run Python, which sees itself",
    "talk to itself by TCP",
    "talk to itself by a Unix socket",
    "read the bundle",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("programs")
    places = {name: folder / name for name in ("bundle", "scratch", "private", "outside")}
    for each in places.values():
        each.mkdir()
    (places["bundle"] / "model").write_text("weights")
    (places["private"] / "secret").write_text("pepper")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = [*map(str, places.values()), str(listener.getsockname()[1]), str(os.getpid())]
        code = textwrap.dedent(PROGRAM).replace(
            "except OSError", "except (OSError, subprocess.CalledProcessError)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_can_do_what_a_server_needs(told: dict[str, Any]) -> None:
    assert {name for name in CAN if not told["could"][name]} == set()


def test_it_cannot_do_what_other_workers_cannot(told: dict[str, Any]) -> None:
    could = {name for name, done in told["could"].items() if done}
    reaches_out = {"reach another server"} if "network" in told["missing"] else set()
    assert could - CAN == reaches_out


def test_the_exception_is_told(told: dict[str, Any]) -> None:
    assert told["parts"]["calls"] == "seccomp, with programs and sockets of its own"
    assert "files" in told["parts"]
    assert ("network" in told["parts"]) is (os.geteuid() == 0)
