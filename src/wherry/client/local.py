"""How a client on the same machine finds a server and its key: `~/.wherry/servers/*.json`."""

from __future__ import annotations

import os
import re
import tempfile
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from wherry.errors import InvalidInput
from wherry.settings import client_environment

DEFAULT_URL = "http://127.0.0.1:8000"


class LocalServer(msgspec.Struct, frozen=True):
    """A server of this user on this machine."""

    url: str
    key: str
    data: str
    """Its data folder."""
    pid: int
    version: str
    grpc: str = ""
    """Host and port of its gRPC door; empty = it has none."""

    def __repr__(self) -> str:
        """Without the key, which must not reach a log."""
        return f"LocalServer(url={self.url!r}, pid={self.pid})"


class Address(msgspec.Struct, frozen=True):
    """Where a client sends its requests, and as whom."""

    url: str
    key: str = ""

    def __repr__(self) -> str:
        """Without the key, which must not reach a log."""
        return f"Address(url={self.url!r})"


def servers_folder() -> Path:
    """Where servers leave word of themselves."""
    return Path.home() / ".wherry" / "servers"


def write_server(server: LocalServer) -> Path:
    """Leave word of a running server, readable by this user only; gives the file to remove.

    A server whose user has no home that can be written still serves: its clients then need
    `WHERRY_URL` and `WHERRY_API_KEY`.
    """
    parts = urlsplit(server.url)
    host = re.sub(r"[^A-Za-z0-9.-]", "_", parts.hostname or "")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = servers_folder() / f"{host}_{port}.json"
    try:
        _write_privately(path, msgspec.json.encode(server))
    except OSError as error:
        from wherry.telemetry import get_logger  # only a server comes here

        get_logger("client").warning("clients cannot find this server", cause=str(error))
    return path


def _write_privately(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # mkstemp makes files 0600, and the rename lets no reader see half a file.
    descriptor, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_server(path: Path, pid: int) -> None:
    """Take back the word of server `pid`, unless another has taken its place."""
    server = _read(path)
    if server is not None and server.pid == pid:
        path.unlink(missing_ok=True)


def list_servers() -> list[LocalServer]:
    """Servers whose process lives, newest first."""
    try:
        paths = sorted(servers_folder().glob("*.json"), key=_written_at, reverse=True)
    except OSError:
        return []
    servers = [_read(path) for path in paths]
    return [server for server in servers if server is not None and is_alive(server.pid)]


def find_server(url: str | None = None) -> LocalServer | None:
    """The newest living server, or the one at `url`."""
    for server in list_servers():
        if url is None or _same_place(server.url, url):
            return server
    return None


def find_address(url: str | None = None, api_key: str | None = None) -> Address:
    """Where to send requests, and with which key.

    Each comes from its argument, else `WHERRY_URL` or `WHERRY_API_KEY`, else from a server of
    this machine, else it is `http://127.0.0.1:8000` without a key.
    """
    environment = client_environment()
    url = url or environment.get("WHERRY_URL")
    api_key = api_key or environment.get("WHERRY_API_KEY")
    if url is None or api_key is None:
        server = find_server(check_url(url) if url else None)
        if server is not None:
            url = url or server.url
            api_key = api_key or server.key
    return Address(check_url(url or DEFAULT_URL), check_key(api_key or ""))


def check_url(url: str) -> str:
    """The URL without a slash at its end; `InvalidInput` if it is none."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises if it is no number
    except ValueError:
        is_url = False
    if not is_url:
        raise InvalidInput(
            f"{url!r} is not the URL of a server", hint="it looks like http://127.0.0.1:8000"
        )
    return url.rstrip("/")


def check_key(key: str) -> str:
    """The key; `InvalidInput` if a header cannot hold it."""
    key = key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidInput("the API key has characters that no key has", hint="copy it again")
    return key


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it runs, as another user
    return True


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name: `127.example.org` is anybody's
        return False


def _same_place(one: str, other: str) -> bool:
    first, second = urlsplit(one), urlsplit(other)
    if (first.scheme, first.port) != (second.scheme, second.port):
        return False
    return first.hostname == second.hostname or (is_loopback(one) and is_loopback(other))


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # removed meanwhile


def _read(path: Path) -> LocalServer | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=LocalServer)
    except (OSError, msgspec.DecodeError):
        return None
