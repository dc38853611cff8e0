"""Runs one server so that nothing of it is lost or left: `python reaper.py CORES COMMAND…`.

It is the reaper of all its descendants: daemons that detach themselves (Ray does) fall to it and
so stay in the tree whose time and memory are counted. It ends with its parent, and its
descendants end with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 15.0


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def end_everything(main: subprocess.Popen[bytes]) -> None:
    """Ask the server to end; after a while take every descendant down, however deep."""
    main.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    while main.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    while below := children_of(os.getpid()):  # killed ones hand their children to us
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass


def main() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    cores = {int(core) for core in sys.argv[1].split(",")}
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group
    server = subprocess.Popen(
        sys.argv[2:],
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    while not stop and server.poll() is None:
        time.sleep(0.2)
    end_everything(server)
    return server.returncode or 0


if __name__ == "__main__":
    sys.exit(main())
