"""How a process that answers requests for days keeps its memory."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

COLLECTED_OBJECTS = 20_000
"""New objects between two looks of the garbage collector."""
KEPT_BYTES = 64 << 20
"""Free memory at the end of the heap that is kept for what comes next."""
HEAP_BLOCK_BYTES = 16 << 20
"""Blocks up to this size come from the heap; larger ones are the kernel's, and go back to it."""
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
"""Names of glibc's `mallopt`."""


def share_heap() -> None:
    """Let all threads that are yet to start take memory from one heap, and not one each.

    Each would keep for itself what its largest pictures and tensors took.
    """
    _tune_malloc(M_ARENA_MAX, 1)


def settle_memory() -> None:
    """All that stays for the life of the process is loaded: prepare for what comes and goes."""
    _spare_the_collector()
    _keep_large_blocks()


def give_back_memory() -> None:
    """Return what is free in the heap to the kernel: for a process that has nothing to do."""
    trim = _find_in_libc("malloc_trim")
    if trim is not None:
        trim(0)


def _spare_the_collector() -> None:
    """Let the garbage collector look only at what comes from now on, and not at each request.

    A request leaves no circles behind, so that nearly all of its looking is for nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTED_OBJECTS, 20, 20)


def _keep_large_blocks() -> None:
    """Let the C library keep the memory of large bodies for the next ones.

    It would give each back to the kernel, which then hands out the next one page by page, cleaned:
    for a tensor of 600 KB that costs as much as copying it three times.
    """
    _tune_malloc(M_MMAP_THRESHOLD, HEAP_BLOCK_BYTES)
    _tune_malloc(M_TRIM_THRESHOLD, KEPT_BYTES)


def _tune_malloc(name: int, value: int) -> None:
    mallopt = _find_in_libc("mallopt")
    if mallopt is not None:
        mallopt(name, value)


def _find_in_libc(name: str) -> Any:
    """A function of glibc; musl and other systems have none of this name."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
