"""An environment for each peer, with the versions of its requirements file."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".envs"
PEERS = HERE / "peers"
STAMP = "installed.sha256"
SYSTEM_PYTHON = Path("/usr/bin/python3.11")
"""PyTriton's Triton brings a Python backend that is linked to the system's libpython3.11 and fails
with a standard library of another patch version, as a pyenv Python has."""


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return ENVIRONMENTS / peer / "bin" / "python"


def install(peer: str) -> str:
    """Make a peer's environment unless it stands; gives why it cannot be made, or nothing."""
    requirements = PEERS / peer / "requirements.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp = ENVIRONMENTS / peer / STAMP
    if stamp.is_file() and stamp.read_text() == digest:
        return ""
    base = Path(sys.executable)
    if peer == "pytriton":
        base = SYSTEM_PYTHON
        if not base.is_file():
            return f"its Triton needs the system's Python 3.11 ({base}), which is not there"
    print(f"  installing {peer}", flush=True)
    folder = ENVIRONMENTS / peer
    made = _run(str(base), "-m", "venv", "--clear", "--without-pip", str(folder))
    pip = [sys.executable, "-m", "pip", "--python", str(python_of(peer))]
    made = made or _run(*pip, "install", "--quiet", "--requirement", str(requirements))
    if not made:
        stamp.write_text(digest)
    return made


def _run(*command: str) -> str:
    """Run a command; its last line if it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    told = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "?")
    return re.sub(r"\w+://\S+", "…", told)
