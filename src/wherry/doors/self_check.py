# pyright: standard
"""Whether the installed uvicorn is one that our protocols can stand on; asked once, at the start.

They extend a class that is no public API. Its version is bounded in pyproject.toml to what the
tests have seen; this check is for who installs another one: the parts that are used are there, and
some exchanges over a socket pair go as they must. A fast lane that fails is left out; a guard that
fails must not serve.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import socket
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from wherry import errors
from wherry.doors.http_guard import MAX_FIELDS, GuardedProtocol
from wherry.telemetry import get_logger

log = get_logger("http")

CHECK_SECONDS = 5.0
METHODS = {
    "connection_made": ["transport"],
    "connection_lost": ["exc"],
    "eof_received": [],
    "data_received": ["data"],
    "on_message_begin": [],
    "on_url": ["url"],
    "on_header": ["name", "value"],
    "on_headers_complete": [],
    "on_body": ["body"],
    "on_message_complete": [],
    "on_response_complete": [],
    "pause_writing": [],
    "resume_writing": [],
    "shutdown": [],
    "_unset_keepalive_if_required": [],
}
"""Methods of uvicorn's class that ours override or call, and their parameters."""
ATTRIBUTES = {"app", "connections", "cycle", "expect_100_continue", "flow", "headers", "loop"} | {
    *("parser", "pipeline", "server_state", "timeout_keep_alive", "transport")
}

FINAL_STATUS = re.compile(rb"HTTP/1\.1 ([2-5]\d\d) ")
HOST = b"Host: localhost\r\n"
LIVE = b"GET /livez HTTP/1.1\r\n" + HOST
LAST = b"Connection: close\r\n\r\n"
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Api-Key: a\r\n\r\n"

Exchange = tuple[bytes, list[int]]
"""What is sent on a connection, and the statuses of all answers until it is closed."""

EXCHANGES: list[Exchange] = [
    (LIVE + LAST, [200]),
    ((LIVE + b"\r\n") * 3 + LIVE + LAST, [200] * 4),
    (b"POST /livez HTTP/1.1\r\n" + HOST + CHUNKS + LIVE + LAST, [405, 200]),
    (LIVE + b"\r\n" + b"no request\r\n\r\n", [200, 400]),
    (LIVE + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [400]),
    (LIVE + b"A: b\r\n" * MAX_FIELDS + LAST, [431]),
]


async def choose_protocol(
    application: Any,
    guarded: type[GuardedProtocol],
    fast: type[GuardedProtocol] | None = None,
    *,
    exchanges: list[Exchange] = EXCHANGES,
    fast_exchanges: list[Exchange] = EXCHANGES,
    seconds: float = CHECK_SECONDS,
) -> type[GuardedProtocol]:
    """The protocol to serve with: `fast` if it works here, else `guarded`.

    Args:
        application: that is served, and answers the exchanges.
        guarded: must work.
        fast: may not work here; the reason is logged then.
        exchanges: that `guarded` must pass.
        fast_exchanges: that `fast` must pass.
        seconds: that one exchange may take.

    Raises:
        Internal: even `guarded` does not work.
    """
    await check_protocol(guarded, application, exchanges, seconds)
    if fast is None:
        return guarded
    try:
        await check_protocol(fast, application, fast_exchanges, seconds)
    except errors.Internal as error:
        log.warning("the fast lane is left out", error=error.text)
        return guarded
    return fast


async def check_protocol(
    protocol: type[GuardedProtocol],
    application: Any,
    exchanges: list[Exchange] = EXCHANGES,
    seconds: float = CHECK_SECONDS,
) -> None:
    """Pass if a protocol works with the installed uvicorn.

    Raises:
        Internal: it does not, and how that shows.
    """
    changed = find_changed(protocol)
    if changed:
        raise _unfit(protocol, "changed: " + ", ".join(changed))
    for request, expected in exchanges:
        try:
            answer = await exchange_bytes(protocol, application, request, seconds)
        except Exception as error:  # an unknown class may fail in any way
            what = "no end of the answers" if isinstance(error, TimeoutError) else repr(error)
            raise _unfit(protocol, f"{what} after {request[:60]!r}") from error
        found = [int(status) for status in FINAL_STATUS.findall(answer)]
        if found != expected:
            raise _unfit(protocol, f"{found} instead of {expected} after {request[:60]!r}")


def find_changed(protocol: type[GuardedProtocol]) -> list[str]:
    """Methods of uvicorn's class that are gone, or take other arguments than ours expect."""
    base = next(each for each in protocol.__mro__ if each.__module__.startswith("uvicorn."))
    changed: list[str] = []
    for name, expected in METHODS.items():
        method = getattr(base, name, None)
        if method is None:
            changed.append(name)
        elif list(inspect.signature(method).parameters)[1:] != expected:
            changed.append(f"{name}{inspect.signature(method)}")
    return changed


async def exchange_bytes(
    protocol: type[GuardedProtocol], application: Any, request: bytes, seconds: float
) -> bytes:
    """Everything that is answered on a connection of its own until it is closed.

    Raises:
        TimeoutError: it was not closed.
        LookupError: the connection lacks an attribute that ours use.
    """
    loop = asyncio.get_running_loop()
    config = uvicorn.Config(application, http=protocol, ws="none", lifespan="off", log_config=None)
    config.load()
    made = protocol(config=config, server_state=ServerState(), app_state={}, _loop=loop)
    missing = ATTRIBUTES - set(dir(made))
    if missing:
        raise LookupError(f"no {', '.join(sorted(missing))}")
    server, client = socket.socketpair()
    client.setblocking(False)
    answer = b""
    try:
        async with asyncio.timeout(seconds):
            transport, _ = await loop.connect_accepted_socket(lambda: made, server)
            try:
                await loop.sock_sendall(client, request)
                while piece := await loop.sock_recv(client, 1 << 16):
                    answer += piece
            finally:
                transport.abort()
    finally:
        client.close()
    return answer


def _unfit(protocol: type[GuardedProtocol], how: str) -> errors.Internal:
    return errors.Internal(
        f"{protocol.__name__} does not work with uvicorn {uvicorn.__version__}: {how}",
        hint="install a version that pyproject.toml allows",
    )
