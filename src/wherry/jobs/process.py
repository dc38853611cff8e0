"""One runner process as the queue sees it."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from wherry.client.schema import Progress
from wherry.control.supervisor import wait_for_exit
from wherry.jobs.jobs import JobRecord
from wherry.jobs.work import Failed, Progressed, RunnerOrder, Succeeded, decode_report
from wherry.settings import Settings, current_environment

MAX_LINE_BYTES = 1 << 20


class RunnerProcess:
    """Starts a runner and hears it until its end.

    Args:
        job: what it does.
        settings: the server's.
        run_folder: short, for sockets.
        scratch: where it and its children put temporary files.
    """

    def __init__(self, job: JobRecord, settings: Settings, run_folder: Path, scratch: Path) -> None:
        self.job = job
        self.progress = Progress()
        self.token = secrets.token_hex(16)
        self.outcome: Succeeded | Failed | None = None
        self.started_at = time.monotonic()
        self.was_cancelled = False
        self.has_expired = False
        self.changed = asyncio.Event()
        """Set whenever `progress` or `outcome` changed."""
        self._partial = b""
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        order = RunnerOrder(
            job_id=job.id,
            attempt=job.attempt,
            team_id=job.team_id,
            work=job.work,
            # a runner makes versions: it needs no key
            settings=msgspec.structs.replace(settings, admin_key=""),
            run_folder=str(run_folder),
            token=self.token,
            parent=os.getpid(),
        )
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = _spawn(order, theirs, scratch)
        self._line.setblocking(False)
        self._loop.add_reader(self._line.fileno(), self._readable)

    def cancel(self) -> None:
        """End it because somebody asked to."""
        self.was_cancelled = True
        self.kill()

    def expire(self) -> None:
        """End it because it took too long."""
        self.has_expired = True
        self.kill()

    def kill(self) -> None:
        """End it and what it started; its workers die with it by themselves."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    async def wait(self) -> int:
        """The exit status, after everything it said has been heard."""
        status = await wait_for_exit(self._process)
        await self._ended.wait()
        return status

    def _readable(self) -> None:
        try:
            data = self._line.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._line.fileno())
            self._line.close()
            self._ended.set()
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > MAX_LINE_BYTES:
            self._partial = b""
        for line in lines:
            self._hear(line)

    def _hear(self, line: bytes) -> None:
        try:
            report = decode_report(line)
        except msgspec.DecodeError:
            return  # a runner runs recipes of others: it may not speak well
        if isinstance(report, Progressed):
            self.progress = report.progress
        elif self.outcome is None:
            self.outcome = report
        self.changed.set()


def _spawn(order: RunnerOrder, reports: socket.socket, scratch: Path) -> subprocess.Popen[bytes]:
    payload = msgspec.msgpack.encode(order)
    read, write = socket.socketpair()
    with read, write:
        write.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(payload) * 2 + 4096)
        write.sendall(payload)
        write.shutdown(socket.SHUT_WR)
        # -P: modules come from where Wherry is installed, never from the folder we happen to be in
        command = [sys.executable, "-P", "-m", "wherry.jobs.runner"]
        command += ["--order-fd", str(read.fileno()), "--report-fd", str(reports.fileno())]
        return subprocess.Popen(
            command,
            pass_fds=(read.fileno(), reports.fileno()),
            stdin=subprocess.DEVNULL,
            env={**current_environment(without_settings=True), "TMPDIR": str(scratch)},
            start_new_session=True,
        )
