"""A server that outlives the command that started it, for `wherry run`."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from wherry import errors
from wherry.client import Client
from wherry.client.local import LocalServer, list_servers, servers_folder
from wherry.settings import default_data_folder, load_settings

START_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.05
USUAL_PORT = 8000
LOG_LINES_SHOWN = 5


def find_or_start_server(command: Sequence[str] | None = None) -> tuple[LocalServer, bool]:
    """A server of this machine, and whether it was started now.

    Args:
        command: what starts one; default: `wherry serve` of this Python.
    """
    with _one_at_a_time():
        for server in list_servers():
            if _listens(server):  # a process with its number may be another, after a reboot
                return _wait_until_ready(server), False
        return _start_server(command or _serve_command()), True


def log_file() -> Path:
    """Where a server in the background writes."""
    return default_data_folder() / "serve.log"


def _serve_command() -> list[str]:
    # What the environment or its file says stays; only the usual port may be another's.
    port = load_settings().port
    flags = ["--port", "0"] if port == USUAL_PORT and not _is_free(port) else []
    return [sys.executable, "-m", "wherry", "serve", *flags]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _listens(server: LocalServer) -> bool:
    parts = urlsplit(server.url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=1).close()
    except OSError:
        return False
    return True


def _start_server(command: Sequence[str]) -> LocalServer:
    path = log_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,  # Ctrl-C and the end of this terminal are not for it
        )
    finally:
        os.close(descriptor)
    try:
        return _wait_until_ready(_wait_for_word(process))
    except BaseException:
        process.terminate()
        raise
    finally:
        process.returncode = process.returncode or 0  # it is not ours to wait for


def _wait_for_word(process: subprocess.Popen[bytes]) -> LocalServer:
    """Wait until the new server has said where it is."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise errors.Unavailable(
                f"the server ended at once: {_last_lines(log_file())}", hint=f"see {log_file()}"
            )
        for server in list_servers():
            if server.pid == process.pid:
                return server
        time.sleep(POLL_SECONDS)
    raise _not_ready()


def _wait_until_ready(server: LocalServer) -> LocalServer:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if _answers(server):
            return server
        time.sleep(POLL_SECONDS)
    raise _not_ready()


def _not_ready() -> errors.TimedOut:
    return errors.TimedOut(
        f"the server is not ready after {START_TIMEOUT_SECONDS:g} s", hint=f"see {log_file()}"
    )


def _answers(server: LocalServer) -> bool:
    with Client(server.url, server.key, timeout=5.0, max_retries=0) as client:
        try:
            return client.is_ready()
        except errors.WherryError:
            return False


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " / ".join(lines[-LOG_LINES_SHOWN:]) or "it said nothing"


@contextlib.contextmanager
def _one_at_a_time() -> Generator[None]:
    """Two `wherry run` at once start one server."""
    import fcntl

    folder = servers_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "start.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
