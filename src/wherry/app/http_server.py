"""Uvicorn, as a gateway runs it."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import uvicorn

from wherry import errors
from wherry.control.supervisor import UNFIT_STATUS
from wherry.doors.fast_lane import FastLane, FastLaneProtocol
from wherry.doors.http_guard import GuardedProtocol
from wherry.doors.route import Doors
from wherry.doors.self_check import choose_protocol
from wherry.settings import Settings
from wherry.telemetry import get_logger

log = get_logger("app")

STOP_SECONDS = 20
"""What requests in flight may take to end."""
SPARE_FILES = 256
"""Descriptors that connections leave to links, journal and database."""


async def make_http_server(
    doors: Doors,
    settings: Settings,
    fast_lane: FastLane,
    stop_others: Callable[[], Coroutine[Any, Any, None]],
) -> HttpServer:
    """A server that is to be started.

    Args:
        doors: the application.
        settings: of this server.
        fast_lane: for requests that are answered inside the protocol, if the settings want it.
        stop_others: ends what else a stop must end, while it waits for requests in flight.
    """
    config = uvicorn.Config(
        doors,
        http=await _choose_protocol(doors, settings, fast_lane),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=STOP_SECONDS,
        ssl_certfile=settings.tls_cert or None,
        ssl_keyfile=settings.tls_key or None,
    )
    return HttpServer(config, stop_others)


class HttpServer(uvicorn.Server):
    """A uvicorn server that stops others, too, while it waits for requests in flight.

    A signal lets it return; what else must end is up to its caller. It wakes up once a second, for
    the date in its answers, and when it is told to stop; uvicorn's own loop looks ten times a second
    whether it is.
    """

    def __init__(
        self, config: uvicorn.Config, stop_others: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        super().__init__(config)
        self._stop_others = stop_others
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()

    async def main_loop(self) -> None:
        """Tick until told to stop."""
        while not await self.on_tick(0):
            timer = self._loop.call_later(1.0, self._told.set)
            await self._told.wait()
            timer.cancel()
            self._told.clear()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop by a signal."""
        # not uvicorn's, which raises the signal again before the caller can clean up
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._told.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests in flight end, and others stop."""
        others = self._loop.create_task(self._stop_others())
        await super().shutdown(sockets)
        await others


async def _choose_protocol(doors: Doors, settings: Settings, fast_lane: FastLane) -> Any:
    """What speaks HTTP here: a protocol that works with the installed uvicorn."""
    files = _raise_open_files(settings.max_connections + SPARE_FILES)

    class Protocol(GuardedProtocol):
        stall_seconds = settings.client_stall_seconds
        max_connections = max(1, files - SPARE_FILES)

    class FastProtocol(FastLaneProtocol, Protocol):
        lane = fast_lane

    try:
        return await choose_protocol(doors, Protocol, FastProtocol if settings.fast_lane else None)
    except errors.Internal as error:
        log.error("cannot serve HTTP", error=error.text)
        raise SystemExit(UNFIT_STATUS) from error


def _raise_open_files(wanted: int) -> int:
    """Let this process open so many files, or as many as it may; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
