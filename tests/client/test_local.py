"""How a client finds the server of its own machine."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from wherry.client.local import (
    DEFAULT_URL,
    LocalServer,
    find_address,
    find_server,
    list_servers,
    remove_server,
    write_server,
)
from wherry.errors import InvalidInput


def local_server(port: int, pid: int | None = None, key: str = "wk-1") -> LocalServer:
    return LocalServer(
        url=f"http://127.0.0.1:{port}", key=key, data="/data", pid=pid or os.getpid(), version="1"
    )


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_file_is_for_its_user_only():
    path = write_server(local_server(8123))
    assert path.name == "127.0.0.1_8123.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_is_written_is_found_and_removed():
    path = write_server(local_server(8123))
    assert find_server() == local_server(8123)
    remove_server(path, os.getpid())
    assert find_server() is None


def test_a_server_does_not_remove_the_word_of_its_successor():
    path = write_server(local_server(8123))
    remove_server(path, dead_pid())
    assert find_server() is not None


def test_a_dead_server_is_not_found():
    write_server(local_server(8123, pid=dead_pid()))
    assert list_servers() == []


def test_the_newest_server_comes_first():
    old = write_server(local_server(8123))
    write_server(local_server(8124))
    os.utime(old, (1, 1))
    assert [server.url[-4:] for server in list_servers()] == ["8124", "8123"]
    assert find_address().url == "http://127.0.0.1:8124"


def test_a_broken_file_is_passed_over():
    path = write_server(local_server(8123))
    path.write_text("{")
    assert list_servers() == []


def test_without_any_word_the_default_is_taken():
    address = find_address()
    assert (address.url, address.key) == (DEFAULT_URL, "")


def test_arguments_come_before_variables_before_files(monkeypatch):
    write_server(local_server(8123, key="wk-file"))
    assert find_address().key == "wk-file"
    monkeypatch.setenv("WHERRY_API_KEY", "wk-variable")
    assert find_address().key == "wk-variable"
    monkeypatch.setenv("WHERRY_URL", "https://models.example.org/")
    assert find_address().url == "https://models.example.org"
    address = find_address("http://127.0.0.1:8123", "wk-argument")
    assert (address.url, address.key) == ("http://127.0.0.1:8123", "wk-argument")


def test_a_local_key_goes_to_no_other_server(monkeypatch):
    write_server(local_server(8123, key="wk-file"))
    assert find_address("http://example.org:8123").key == ""
    assert find_address("http://127.example.org:8123").key == ""
    assert find_address("http://127.0.0.1:8124").key == ""
    assert find_address("http://localhost:8123").key == "wk-file"
    monkeypatch.setenv("WHERRY_URL", "http://127.0.0.1:8123")
    assert find_address().key == "wk-file"


@pytest.mark.parametrize("url", ["example.org", "ftp://example.org", "http://", "http://h:port"])
def test_what_is_no_url_is_refused(url: str):
    with pytest.raises(InvalidInput, match="is not the URL"):
        find_address(url)


@pytest.mark.parametrize("key", ["wk 1", "wk\n1", "wk–1"])
def test_a_key_that_fits_no_header_is_refused(key: str):
    with pytest.raises(InvalidInput, match="API key"):
        find_address("http://h", key)


def test_a_server_without_a_home_still_serves(tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    path = write_server(local_server(8123))
    remove_server(path, os.getpid())
    assert list_servers() == []


def test_a_file_of_ipv6_has_a_plain_name(tmp_path: Path):
    server = LocalServer("http://[::1]:8000", "wk-1", str(tmp_path), os.getpid(), "1")
    assert write_server(server).name == "__1_8000.json"
