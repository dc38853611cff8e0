"""How a process that answers requests for days keeps its memory."""

from __future__ import annotations

import ctypes
import gc
import sys

COLLECTED_OBJECTS = 20_000
"""New objects between two looks of the garbage collector."""
KEPT_BYTES = 64 << 20
"""Free memory at the end of the heap that is kept for what comes next."""
HEAP_BLOCK_BYTES = 16 << 20
"""Blocks up to this size come from the heap; larger ones are the kernel's, and go back to it."""
MEDIA_BLOCK_BYTES = 1 << 20
"""The same where files are decoded: many threads would each keep the largest picture they saw."""
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Names of glibc's `mallopt`."""


def settle_memory(*, decodes_files: bool = False) -> None:
    """All that stays for the life of the process is loaded: prepare for what comes and goes."""
    _spare_the_collector()
    _keep_large_blocks(MEDIA_BLOCK_BYTES if decodes_files else HEAP_BLOCK_BYTES)


def _spare_the_collector() -> None:
    """Let the garbage collector look only at what comes from now on, and not at each request.

    A request leaves no circles behind, so that nearly all of its looking is for nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTED_OBJECTS, 20, 20)


def _keep_large_blocks(most_bytes: int) -> None:
    """Let the C library keep the memory of large bodies for the next ones.

    It would give each back to the kernel, which then hands out the next one page by page, cleaned:
    for a tensor of 600 KB that costs as much as copying it three times.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(M_MMAP_THRESHOLD, most_bytes)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
