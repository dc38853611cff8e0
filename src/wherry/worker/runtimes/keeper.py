"""Runs a program and ends it, with all it has started, when the worker ends: nothing is left over.

`python -m wherry.worker.runtimes.keeper PROGRAM…`, in a session of its own, with a pipe from the
worker as its input. However the worker dies, the pipe closes: the kernel sees to that. Should the
keeper die instead, the worker sees it, and ends what is in the session.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from types import FrameType

GRACE_SECONDS = 5.0
"""For the program to end by itself after it was asked to."""


def main() -> None:
    """Run the program of the command line; the exit status is its own."""
    # not ignored: programs inherit that, and this one is to end by it
    signal.signal(signal.SIGTERM, pass_over)
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    is_left_alone = threading.Event()
    watching = threading.Thread(target=watch_worker, args=(program, is_left_alone), daemon=True)
    watching.start()
    status = program.wait()
    if is_left_alone.is_set() and os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)  # what the program has left behind, and this process
    os._exit(status if status >= 0 else 128 - status)  # the thread may wait for input for ever


def pass_over(number: int, frame: FrameType | None) -> None:
    """Take no notice of a signal."""


def watch_worker(program: subprocess.Popen[bytes], is_left_alone: threading.Event) -> None:
    """Wait until nobody holds the other end of our input, then end the program."""
    select.select([sys.stdin], [], [])
    is_left_alone.set()
    program.terminate()
    try:
        program.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        program.kill()


if __name__ == "__main__":
    main()
