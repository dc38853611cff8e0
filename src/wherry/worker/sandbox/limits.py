"""Bounds of what one worker may take of the machine, by the kernel's resource limits."""

from __future__ import annotations

import os
import resource
from pathlib import Path

MAX_WRITTEN_FILE_BYTES = 1 << 30
MAX_OPEN_FILES = 4096
MAX_THREADS = 4096


def limit_always() -> None:
    """Bounds that no healthy worker meets, sandbox or not."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    _lower(resource.RLIMIT_FSIZE, MAX_WRITTEN_FILE_BYTES)


def limit_memory(limit_mib: int) -> None:
    """Let allocations beyond fail: the request that wanted them gets an error, and no more dies.

    RLIMIT_DATA counts private writable memory: not models mapped from files, and not address space
    that runtimes and CUDA only reserve, for which RLIMIT_AS would have to be far too high. Shared
    memory, which it does not count either, is refused by `seccomp`.
    """
    if limit_mib:
        _lower(resource.RLIMIT_DATA, limit_mib << 20)


def limit_threads() -> None:
    """Room for this many more than the user has now; the kernel counts by user, not by process."""
    if hasattr(resource, "RLIMIT_NPROC"):
        _lower(resource.RLIMIT_NPROC, _count_threads(os.getuid()) + MAX_THREADS)


def _count_threads(user: int) -> int:
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == user:
                count += sum(1 for _ in (folder / "task").iterdir())
        except OSError:
            continue  # it has ended
    return count


def _lower(which: int, value: int) -> None:
    """Set a limit, or keep a stricter one."""
    _, hard = resource.getrlimit(which)
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (bound, bound))
