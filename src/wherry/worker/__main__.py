"""The worker process: `python -m wherry.worker`, executed by the launcher and nobody else."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec

from wherry import errors
from wherry.memory import give_back_memory, settle_memory, share_heap
from wherry.worker.loop import Worker
from wherry.worker.sandbox.sandbox import (
    PROGRAM_RUNTIMES,
    SOCKET_RUNTIMES,
    seal,
    seal_programs,
    seal_sockets,
)
from wherry.worker.spec import Report, WorkerConfig

HEARTBEAT_SECONDS = 1.0
BEATS_A_MEASUREMENT = 10
"""The kernel walks all pages to say how much memory is ours: milliseconds for a large model."""


def main() -> None:
    """Load one bundle and serve it until told to stop or left alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--report-fd", type=int, required=True)
    parser.add_argument("--config-fd", type=int, required=True)
    arguments = parser.parse_args()
    config = read_config(arguments.config_fd)
    sys.stdout = sys.stderr  # what a model prints is in the log at once, among its errors
    share_heap()
    let_gateways_finish()
    if config.spec.runtime not in PROGRAM_RUNTIMES:
        seal(config.sandbox)
    set_title(config.spec.title)
    loop_factory = None
    if sys.platform != "win32":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        status = runner.run(serve(config, arguments.listen_fd, arguments.report_fd))
    sys.stderr.flush()
    # native runtimes may keep threads; the interpreter must not wait for them or abort on them
    os._exit(status)


def let_gateways_finish() -> None:
    """On a core that is shared, do not interrupt a gateway by each frame that it sends.

    It goes on to read what its clients have sent meanwhile, so that batches are larger and the core
    changes hands less often. Where there are cores enough this changes nothing.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a host may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def read_config(descriptor: int) -> WorkerConfig:
    """The configuration the launcher left in a descriptor."""
    with os.fdopen(descriptor, "rb") as source:
        return msgspec.msgpack.decode(source.read(), type=WorkerConfig)


def set_title(title: str) -> None:
    """Say in the process list what this process is, if that is possible here."""
    try:
        from setproctitle import setproctitle
    except ModuleNotFoundError:  # a model's own environment may lack it
        return
    setproctitle(title)


async def serve(config: WorkerConfig, listen_fd: int, report_fd: int) -> int:
    """Load, report, accept; the exit status."""
    loop = asyncio.get_running_loop()
    reports = socket.socket(fileno=report_fd)
    reports.setblocking(False)
    # the other end closes only when the placement's process has ended: no orphans
    loop.add_reader(report_fd, lambda: _exit_if_orphaned(reports))
    # a model may load for minutes, and nobody waits for what it would answer
    loop.add_signal_handler(signal.SIGTERM, lambda: os._exit(0))
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C is the supervisor's to handle
    begin = time.monotonic()
    send_report(reports, Report(state="loading"))
    try:
        worker = Worker(config)
        await worker.load()
        if config.spec.runtime in SOCKET_RUNTIMES:
            seal_sockets(config.sandbox)
        if config.spec.runtime in PROGRAM_RUNTIMES:
            seal_programs(config.sandbox)
    except Exception as error:  # noqa: BLE001 - any failure to load is told to the controller
        return report_failure(reports, error)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    settle_memory()
    listener = socket.socket(fileno=listen_fd)
    listener.setblocking(False)
    loop.add_reader(listen_fd, lambda: accept_all(listener, worker))
    send_report(
        reports,
        Report(
            state="ready",
            load_seconds=time.monotonic() - begin,
            memory_mib=memory_of(worker),
            calibration=getattr(worker.runtime, "calibration", {}),
            signature=worker.found_signature,
        ),
    )
    heartbeat = loop.create_task(send_heartbeats(reports, worker))
    await stop.wait()
    loop.remove_reader(listen_fd)
    listener.close()
    await worker.drain()
    heartbeat.cancel()
    worker.runtime.close()
    return 0


def accept_all(listener: socket.socket, worker: Worker) -> None:
    """Take every connection that waits."""
    while True:
        try:
            connected, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            return  # the listener was closed
        worker.connect(connected)


def report_failure(reports: socket.socket, error: Exception) -> int:
    """Tell why the model did not load; the whole story goes to the log."""
    import traceback

    traceback.print_exc(file=sys.stderr)
    if isinstance(error, errors.WherryError):
        detail, hint = f"{error.code}: {error.message}", error.hint
    else:
        detail, hint = f"model_failed: {type(error).__name__}: {error}"[:500], "see wherry logs"
    send_report(reports, Report(state="failed", detail=detail, hint=hint))
    return 3


def send_report(reports: socket.socket, report: Report) -> None:
    """One line; lost if nobody reads, which the reader notices as silence."""
    try:
        reports.send(msgspec.json.encode(report) + b"\n")
    except OSError:
        return


async def send_heartbeats(reports: socket.socket, worker: Worker) -> None:
    """Evidence for the watchdog, once a second."""
    loop_begun = time.thread_time()
    idle = IdleMemory()
    for beat in itertools.count(1):
        await asyncio.sleep(HEARTBEAT_SECONDS)
        is_measured = beat % BEATS_A_MEASUREMENT == 0
        progress = worker.progress()
        if is_measured:
            idle.look(progress.finished, is_busy=worker.in_flight > 0)
        send_report(
            reports,
            Report(
                state="alive",
                busy_ms=progress.busy_ms,
                in_flight=worker.in_flight,
                finished=progress.finished,
                waiting=worker.waiting,
                # of a tiny model, reading and writing bodies is the work, and the loop does that
                busy_seconds=round(max(worker.busy.seconds, time.thread_time() - loop_begun), 3),
                memory_mib=memory_of(worker) if is_measured else 0,
            ),
        )


class IdleMemory:
    """Gives memory back once when nothing was asked since the last look."""

    def __init__(self) -> None:
        self._seen = 0
        self._given_back = 0

    def look(self, finished: int, *, is_busy: bool) -> None:
        """`finished` requests have an answer by now."""
        if not is_busy and finished == self._seen != self._given_back:
            give_back_memory()
            self._given_back = finished
        self._seen = finished


def _exit_if_orphaned(reports: socket.socket) -> None:
    try:
        if reports.recv(64):
            return
    except (BlockingIOError, InterruptedError):
        return
    except OSError:
        pass
    os._exit(4)


def memory_of(worker: Worker) -> int:
    """Memory of this process and, where its runtime keeps a program beside it, of that; MiB."""
    of_program = getattr(worker.runtime, "memory_mib", None)
    return memory_mib() + (of_program() if of_program is not None else 0)


def memory_mib() -> int:
    """Memory of this process alone (shared pages counted by share), MiB."""
    try:
        for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) // 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
