"""What the machine is, and what a tree of processes has used of it, read from /proc."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20
OURS = ("wherry", "uvicorn", "httptools", "uvloop", "starlette", "msgspec", "numpy",
        "scikit-learn", "onnxruntime", "tokenizers", "xllamacpp")  # fmt: skip
"""Packages of our environment whose versions a reader wants to know."""


def describe_machine() -> dict[str, Any]:
    """What a reader must know to compare figures."""
    memory_kib = next(
        int(line.split()[1])
        for line in (PROC / "meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kib / MIB, 1),
        "kernel": platform.release().partition("-")[0],
        "system": _system_name(),
        "python": platform.python_version(),
        "wrk": _first_line("wrk", "-v"),
        "versions": {name: metadata.version(name) for name in OURS if _is_installed(name)},
        "commit": _first_line("git", "rev-parse", "--short", "HEAD"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    for line in (PROC / "cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _system_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", sys.platform)
    except OSError:
        return sys.platform


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except FileNotFoundError:
        return ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].split(" Copyright")[0] if lines else ""


# ------------------------------------------------------------------------------ process trees


def descendants(root: int) -> list[int]:
    """Every process below `root`, without `root` itself."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty if the process has gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def cpu_seconds(root: int) -> float:
    """User and system time of a tree, with its children that have ended and were waited for.

    `root` is the reaper, to which orphans fall, so nothing that ever ran is missing.
    """
    ticks = 0
    for pid in (root, *descendants(root)):
        fields = _stat(pid)
        if fields:
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / TICKS_PER_SECOND


def cpu_by_process(root: int) -> dict[str, float]:
    """User and system time of each kind of process that runs below `root`, by its title.

    Only servers that name their processes tell something here; ours does.
    """
    found: dict[str, float] = {}
    for pid in descendants(root):
        fields = _stat(pid)
        try:
            title = (PROC / str(pid) / "cmdline").read_text().strip("\0 ")
        except OSError:
            continue
        if fields and title.startswith("wherry: "):
            kind = title.removeprefix("wherry: ").split()[0]
            seconds = sum(map(int, fields[11:13])) / TICKS_PER_SECOND
            found[kind] = found.get(kind, 0.0) + seconds
    return found


def memory_mib(root: int) -> dict[str, float]:
    """RSS and PSS of everything below `root`, and how many processes that is.

    Nothing if a process hides them from us: a part of the sum would look like a saving.
    """
    rss = pss = 0
    pids = descendants(root)
    for pid in pids:
        try:
            text = (PROC / str(pid) / "smaps_rollup").read_text()
        except PermissionError:
            return {}
        except OSError:
            continue  # it has ended
        for line in text.splitlines():
            if line.startswith("Rss:"):
                rss += int(line.split()[1])
            elif line.startswith("Pss:"):
                pss += int(line.split()[1])
    return {"rss": round(rss / 1024, 1), "pss": round(pss / 1024, 1), "processes": len(pids)}
