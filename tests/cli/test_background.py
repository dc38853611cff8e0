"""A server in the background: started once, found, left behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from wherry import Client, errors
from wherry.cli.background import find_or_start_server, log_file
from wherry.client.local import LocalServer, is_alive, write_server

SERVER = """
import os, time
from tests.client.twin import KEY, run_twin
from wherry.client.local import LocalServer, write_server
print("twin starts", flush=True)
with run_twin() as twin:
    write_server(LocalServer(twin.url, KEY, "", os.getpid(), "1"))
    time.sleep(60)
"""


@pytest.fixture
def started() -> Iterator[list[LocalServer]]:
    servers: list[LocalServer] = []
    yield servers
    for pid in {server.pid for server in servers}:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_server_is_started_once_and_found_then(started: list[LocalServer]):
    command = [sys.executable, "-c", SERVER]
    answers: list[tuple[LocalServer, bool]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(find_or_start_server(command)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started += [server for server, _ in answers]
    assert len({server.pid for server in started}) == 1
    assert sorted(is_new for _, is_new in answers) == [False, True]
    with Client() as client:
        assert client.is_ready()
    assert os.getsid(started[0].pid) == started[0].pid, "it does not end with our terminal"
    assert log_file().read_text() == "twin starts\n"
    assert log_file().stat().st_mode & 0o077 == 0


def test_a_dead_server_whose_number_another_process_has_is_not_taken(started: list[LocalServer]):
    write_server(LocalServer("http://127.0.0.1:9", "k", "", os.getpid(), "1"))
    server, is_new = find_or_start_server([sys.executable, "-c", SERVER])
    started.append(server)
    assert is_new


def test_a_server_that_ends_at_once_is_told_with_its_words():
    script = "import sys; print('error: the disk is full', file=sys.stderr); sys.exit(1)"
    with pytest.raises(errors.Unavailable, match="the disk is full") as caught:
        find_or_start_server([sys.executable, "-c", script])
    assert str(log_file()) in caught.value.hint


def test_no_process_is_alive_by_a_wrong_number():
    assert not is_alive(0)
    assert not is_alive(-1)
    assert is_alive(os.getpid())
