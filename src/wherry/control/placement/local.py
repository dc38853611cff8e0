"""Workers as processes of this machine, each launched, watched and reaped here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from wherry.control.placement.placement import WorkerEvent, WorkerHandle
from wherry.worker.spec import LaunchOrder, Report, WorkerSpec, leave_for_child

decode_report = msgspec.json.Decoder(Report).decode
BACKLOG = 128
OUTPUT_BYTES_AT_ONCE = 1 << 20
OUTPUT_PAUSE_SECONDS = 0.05
BASE_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    # one thread a worker: more workers beat more threads (docs/decisions/0004-batching.md)
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "GGML_NO_BACKTRACE": "1",
    "GOMP_SPINCOUNT": "1000",  # spinning OpenMP threads starve a busy machine
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "JOBLIB_MULTIPROCESSING": "0",  # a worker may start no process: do not try, and warn
}


class Folders(msgspec.Struct, frozen=True):
    """Where a placement finds and keeps things."""

    run: Path
    """Sockets; short, 0700, gone at exit."""
    blobs: Path
    bundles: Path
    environments: Path
    scratch: Path


class _Process:
    """One worker process and its descriptors."""

    def __init__(self, handle: WorkerHandle, popen: subprocess.Popen[bytes], scratch: Path) -> None:
        self.handle = handle
        self.popen = popen
        self.scratch = scratch
        self.exited = asyncio.Event()
        self.partial_line = b""


class LocalPlacement:
    """Placement on this machine.

    Args:
        folders: where things are.
        environment: variables for workers besides the base ones (thread and BLAS settings).
        write_log: receives what a worker prints, as it comes.
    """

    def __init__(
        self,
        folders: Folders,
        environment: Mapping[str, str],
        write_log: Callable[[WorkerSpec, bytes], None],
    ) -> None:
        self._folders = folders
        self._environment = {**BASE_ENVIRONMENT, **environment}
        self._write_log = write_log
        self._loop = asyncio.get_running_loop()
        self._processes: dict[str, _Process] = {}
        self._events: asyncio.Queue[WorkerEvent] = asyncio.Queue()

    async def place(self, spec: WorkerSpec) -> WorkerHandle:
        """Launch a worker; see `Placement.place`."""
        known = self._processes.get(spec.id)
        if known is not None and known.handle.generation == spec.generation:
            return known.handle
        name = f"{spec.id}.{spec.generation}"
        address = self._folders.run / f"{name}.sock"
        scratch = self._folders.scratch / name
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            listener = theirs.enter_context(_listen(address))
            ours.callback(address.unlink)
            reports, report_end = socket.socketpair()
            ours.callback(reports.close)
            theirs.callback(report_end.close)
            output, output_end = os.pipe()
            ours.callback(os.close, output)
            theirs.callback(os.close, output_end)
            order_fd = leave_for_child(self._order(spec, scratch))
            theirs.callback(os.close, order_fd)
            scratch.mkdir(parents=True, mode=0o700)
            ours.callback(_remove_folder, scratch)
            popen = self._spawn(listener, report_end, order_fd, output_end, scratch)
            ours.pop_all()  # kept, as there is a process to hear
        handle = WorkerHandle(spec.id, spec.generation, str(address), popen.pid, spec)
        process = _Process(handle, popen, scratch)
        self._processes[spec.id] = process
        self._watch_reports(process, reports)
        self._watch_output(process, output)
        self._watch_exit(process)
        self._emit(process, "starting")
        return handle

    def _order(self, spec: WorkerSpec, scratch: Path) -> LaunchOrder:
        folders = self._folders
        return LaunchOrder(
            spec=spec,
            blobs_folder=str(folders.blobs),
            bundles_folder=str(folders.bundles),
            environments_folder=str(folders.environments),
            scratch_folder=str(scratch),
            library_folders=tuple(
                each for each in self._environment.get("LD_LIBRARY_PATH", "").split(":") if each
            ),
        )

    def _spawn(
        self,
        listener: socket.socket,
        reports: socket.socket,
        order_fd: int,
        output: int,
        scratch: Path,
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "wherry.worker.launcher"]
        command += ["--listen-fd", str(listener.fileno())]
        command += ["--report-fd", str(reports.fileno())]
        command += ["--order-fd", str(order_fd), "--parent", str(os.getpid())]
        package_parent = str(Path(__file__).resolve().parents[3])
        return subprocess.Popen(
            command,
            env={
                **self._environment,
                "HOME": str(scratch),
                "TMPDIR": str(scratch),
                "PYTHONPATH": package_parent,
            },
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(listener.fileno(), reports.fileno(), order_fd),
            start_new_session=True,
        )

    # ------------------------------------------------------------------- what is heard

    def _watch_reports(self, process: _Process, reports: socket.socket) -> None:
        reports.setblocking(False)

        def readable() -> None:
            try:
                data = reports.recv(65536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(reports.fileno())
                reports.close()
                return
            *lines, process.partial_line = (process.partial_line + data).split(b"\n")
            for line in lines:
                self._hear(process, line)

        self._loop.add_reader(reports.fileno(), readable)

    def _hear(self, process: _Process, line: bytes) -> None:
        try:
            report = decode_report(line)
        except msgspec.DecodeError:
            return  # the worker is not trusted to speak well
        kind = {"ready": "ready", "alive": "alive"}.get(report.state, "starting")
        self._emit(process, kind, report)

    def _watch_output(self, process: _Process, output: int) -> None:
        os.set_blocking(output, False)
        taken = 0

        def readable() -> None:
            nonlocal taken
            try:
                data = os.read(output, 65536)
            except (BlockingIOError, InterruptedError):
                return
            if data:
                self._write_log(process.handle.spec, data)
                taken += len(data)
                if taken > OUTPUT_BYTES_AT_ONCE:
                    # who floods waits: reading it all would cost this process its time
                    taken = 0
                    self._loop.remove_reader(output)
                    self._loop.call_later(OUTPUT_PAUSE_SECONDS, listen_again)
            else:
                self._write_log(process.handle.spec, b"\n")  # a last line may lack its end
                self._loop.remove_reader(output)
                os.close(output)

        def listen_again() -> None:
            self._loop.add_reader(output, readable)

        listen_again()

    def _watch_exit(self, process: _Process) -> None:
        if hasattr(os, "pidfd_open"):
            pidfd = os.pidfd_open(process.popen.pid)

            def exited() -> None:
                self._loop.remove_reader(pidfd)
                os.close(pidfd)
                # while its number is still its own: what it started ends with it
                _signal_group(process.popen)
                self._bury(process)

            self._loop.add_reader(pidfd, exited)
            return
        waiting = self._loop.run_in_executor(None, process.popen.wait)
        waiting.add_done_callback(lambda _: self._bury(process))

    def _bury(self, process: _Process) -> None:
        status = process.popen.wait()
        Path(process.handle.address).unlink(missing_ok=True)
        _remove_folder(process.scratch)
        if self._processes.get(process.handle.id) is process:
            del self._processes[process.handle.id]
        process.exited.set()
        # after this tick: reports that the dead one sent are read first
        self._loop.call_later(0.01, self._emit, process, "exited", None, status)

    def _emit(
        self,
        process: _Process,
        kind: str,
        report: Report | None = None,
        status: int | None = None,
    ) -> None:
        handle = process.handle
        event = WorkerEvent(handle.id, handle.generation, kind, report, status)  # type: ignore[arg-type]
        self._events.put_nowait(event)

    # ------------------------------------------------------------------- the end

    async def adopt(self) -> Sequence[WorkerHandle]:
        """Workers die with this process, so a new one finds none."""
        return ()

    async def remove(self, worker: WorkerHandle, grace_seconds: float) -> None:
        """End a worker; see `Placement.remove`."""
        process = self._processes.get(worker.id)
        if process is None or process.handle.generation != worker.generation:
            return
        _signal(process.popen, signal.SIGTERM)
        killer = self._loop.call_later(grace_seconds, _signal_group, process.popen)
        await process.exited.wait()
        killer.cancel()

    async def kill(self, worker: WorkerHandle) -> None:
        """End a worker at once."""
        process = self._processes.get(worker.id)
        if process is not None and process.handle.generation == worker.generation:
            _signal_group(process.popen)
            await process.exited.wait()

    async def close(self, grace_seconds: float = 5.0) -> None:
        """End all workers."""
        removals = [self.remove(each.handle, grace_seconds) for each in self._processes.values()]
        await asyncio.gather(*removals)

    async def watch(self) -> AsyncIterator[WorkerEvent]:
        """Events as they come."""
        while True:
            yield await self._events.get()


def _listen(address: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    address.unlink(missing_ok=True)
    listener.bind(str(address))
    address.chmod(0o600)
    listener.listen(BACKLOG)
    return listener


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _signal(popen: subprocess.Popen[bytes], number: int) -> None:
    try:
        popen.send_signal(number)
    except ProcessLookupError:
        return


def _signal_group(popen: subprocess.Popen[bytes]) -> None:
    """Kill the worker and whatever it started (it leads its own session)."""
    try:
        os.killpg(popen.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
