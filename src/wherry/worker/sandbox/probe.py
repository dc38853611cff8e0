"""Tries on a process of its own what this machine's kernel has of the sandbox.

`python -m wherry.worker.sandbox.probe` confines itself as a launcher does, tries to get out, and
prints a `Sandbox`. A part that is in force but lets through what it should stop counts as missing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from wherry.worker.sandbox.sandbox import NEEDED_PARTS, Cage, Sandbox, confine

PROBE_SECONDS = 30
PROBE_MEMORY_MIB = 1024


def probe_sandbox() -> Sandbox:
    """What workers of this user are held by on this machine; takes a fraction of a second."""
    command = [sys.executable, "-P", "-m", "wherry.worker.sandbox.probe"]
    package_parent = str(Path(__file__).resolve().parents[3])
    with tempfile.TemporaryDirectory(prefix="wherry-probe-") as folder:
        try:
            done = subprocess.run(
                command,
                env={"PYTHONPATH": package_parent, "PYTHONDONTWRITEBYTECODE": "1"},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PROBE_SECONDS,
                check=True,
            )
            return msgspec.json.decode(done.stdout, type=Sandbox)
        except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
            why = f"the trial of it failed: {error}"
            return Sandbox(missing=dict.fromkeys(NEEDED_PARTS, why))


def _main() -> None:
    here = Path.cwd()
    for name in ("bundle", "scratch", "data"):
        (here / name).mkdir()
    secret = here / "data" / "secret"
    secret.write_text("secret", encoding="ascii")
    sandbox = confine(
        Cage(
            python=Path(sys.executable),
            bundle=here / "bundle",
            scratch=here / "scratch",
            private=here / "data",
            memory_limit_mib=PROBE_MEMORY_MIB,
        )
    )
    ways_out: dict[str, Callable[[], object]] = {
        "files": secret.read_bytes,
        "calls": lambda: (socket.socket().close(), _fork()),
        "memory": lambda: bytearray(2 * PROBE_MEMORY_MIB << 20),
    }
    parts, missing = dict(sandbox.parts), dict(sandbox.missing)
    for part, get_out in ways_out.items():
        with contextlib.suppress(OSError, MemoryError):
            get_out()
            if parts.pop(part, None):
                missing[part] = "the kernel took it, and it stops nothing"
    found = msgspec.structs.replace(sandbox, parts=parts, missing=missing)
    sys.stdout.buffer.write(msgspec.json.encode(found))


def _fork() -> None:
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _main()
