"""Keeps this host's gateways alive.

They share one listening socket, so none of their deaths closes the port; connections that wait
are served by the next.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import msgspec

from wherry import errors
from wherry.settings import Settings, current_environment
from wherry.telemetry import get_logger

log = get_logger("supervisor")

RESTART_SECONDS = 0.1
MAX_RESTART_SECONDS = 1.0
STABLE_SECONDS = 10.0
STOP_SECONDS = 30.0
UNFIT_STATUS = 78
"""Exit status of a gateway that would not serve after a restart either (sysexits' EX_CONFIG)."""


class GatewayOrder(msgspec.Struct, frozen=True):
    """Read by a gateway from the descriptor it is given."""

    name: str
    settings: Settings
    control_address: str
    supervisor_pid: int


class Supervisor:
    """Starts `settings.gateways` gateways on a socket and restarts those that end."""

    def __init__(self, settings: Settings, listener: socket.socket, control_address: str) -> None:
        self._settings = settings
        self._listener = listener
        self._control_address = control_address
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._is_stopping = False

    async def run(self) -> None:
        """Keep all gateways alive until cancelled.

        Raises:
            Internal: one says that no restart will help.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(self._settings.gateways):
                    group.create_task(self._keep(index))
        except* errors.Internal as group:
            raise group.exceptions[0] from None

    async def _keep(self, index: int) -> None:
        delay = RESTART_SECONDS
        while not self._is_stopping:
            begun = time.monotonic()
            try:
                process = self._spawn(index)
            except OSError as error:  # no memory, no process: it may pass
                log.error("gateway cannot be started", gateway=index, error=str(error))
            else:
                self._processes[index] = process
                status = await wait_for_exit(process)
                if self._is_stopping:
                    return
                if status == UNFIT_STATUS:
                    raise errors.Internal(
                        "the gateway cannot serve HTTP with what is installed here",
                        hint="its last line in the log above says why",
                    )
                log.warning("gateway ended, restarting", gateway=index, status=status)
            stable = time.monotonic() - begun > STABLE_SECONDS
            delay = RESTART_SECONDS if stable else min(MAX_RESTART_SECONDS, delay * 2)
            await asyncio.sleep(delay)

    def _spawn(self, index: int) -> subprocess.Popen[bytes]:
        order = GatewayOrder(f"gateway {index}", self._settings, self._control_address, os.getpid())
        read, write = socket.socketpair()
        with read, write:
            write.sendall(msgspec.msgpack.encode(order))
            write.shutdown(socket.SHUT_WR)
            command = [sys.executable, "-m", "wherry.app", "--gateway-order-fd"]
            command += [str(read.fileno()), "--listen-fd", str(self._listener.fileno())]
            return subprocess.Popen(
                command,
                pass_fds=(read.fileno(), self._listener.fileno()),
                stdin=subprocess.DEVNULL,
                env=current_environment(without_settings=True),
                start_new_session=True,
            )

    def is_gateway(self, pid: int) -> bool:
        """Whether this process is a gateway that was started here."""
        return any(process.pid == pid for process in self._processes.values())

    def end_hung(self, pid: int) -> None:
        """End a gateway that does not answer the controller; another one follows."""
        for process in self._processes.values():
            if process.pid == pid:
                send_signal(process, signal.SIGKILL)

    async def stop(self) -> None:
        """Let gateways finish what they have, then end them."""
        self._is_stopping = True
        for process in self._processes.values():
            send_signal(process, signal.SIGTERM)
        loop = asyncio.get_running_loop()
        killers = [
            loop.call_later(STOP_SECONDS, send_signal, process, signal.SIGKILL)
            for process in self._processes.values()
        ]
        await asyncio.gather(*(wait_for_exit(each) for each in self._processes.values()))
        for killer in killers:
            killer.cancel()


async def wait_for_exit(process: subprocess.Popen[bytes]) -> int:
    """The exit status, without a thread or a poll where the kernel can tell."""
    if process.poll() is not None:
        return process.returncode
    if not hasattr(os, "pidfd_open"):
        return await asyncio.to_thread(process.wait)
    loop = asyncio.get_running_loop()
    exited = asyncio.Event()
    pidfd = os.pidfd_open(process.pid)
    loop.add_reader(pidfd, exited.set)
    try:
        await exited.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return process.wait()


def send_signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal a child that may have ended."""
    if process.poll() is None:
        process.send_signal(number)
