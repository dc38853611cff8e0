"""A program that a worker starts beside itself, and that ends with it: see `keeper`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

KEEPER = "wherry.worker.runtimes.keeper"
LOG = 2
"""The worker's standard error, which is its log."""
END_SECONDS = 10.0
"""Longest wait for it to end; then it is killed."""


class KeptProgram:
    """A running program with whatever processes it has of its own.

    Args:
        command: program and arguments; no shell.
        variables: of its environment, beside the worker's own.
        on_end: called in a thread, with the exit status, if it ends before `end` is called.
    """

    def __init__(
        self, command: Sequence[str], variables: Mapping[str, str], on_end: Callable[[int], None]
    ) -> None:
        for name, value in variables.items():
            os.putenv(name, value)  # a worker's own settings are not read any more
        self._is_wanted = True
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", KEEPER, *command],
            stdin=subprocess.PIPE,
            stdout=LOG,
            stderr=LOG,
            start_new_session=True,
        )
        threading.Thread(target=self._watch, args=(on_end,), daemon=True).start()

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._keeper.poll()

    def end(self) -> None:
        """End it and all that it has started; returns when they are gone."""
        self._is_wanted = False
        self._let_go()
        try:
            self._keeper.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill_session()
            self._keeper.wait()

    def memory_mib(self) -> int:
        """Memory of its processes (shared pages counted by share), MiB; 0 where that is not told."""
        return sum(map(_memory_kib, self._processes())) // 1024

    def _watch(self, on_end: Callable[[int], None]) -> None:
        status = self._keeper.wait()
        self._let_go()
        self._kill_session()
        if self._is_wanted:
            on_end(status)

    def _let_go(self) -> None:
        """Close the pipe, for which the keeper waits."""
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()

    def _kill_session(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._keeper.pid, signal.SIGKILL)

    def _processes(self) -> list[int]:
        """Those of its process group."""
        found: list[int] = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getpgid(int(folder.name)) == self._keeper.pid:
                    found.append(int(folder.name))
        return found


def _memory_kib(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:"), 0)
