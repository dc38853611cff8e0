"""Keeps the folder of downloaded archives within bounds."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

MAX_CACHE_BYTES = 4 << 30
MAX_AGE_SECONDS = 30 * 86_400
BUSY_SECONDS = 3_600
"""Entries touched within this time may be in use by another process."""


def trim_cache(folder: Path, keep: Path, most_bytes: int = MAX_CACHE_BYTES) -> None:
    """Remove entries that are old, and the oldest ones until the rest is small enough."""
    entries = [each for each in folder.iterdir() if each.is_dir() and each != keep]
    by_age = sorted(entries, key=_changed_at, reverse=True)
    now = time.time()
    total = 0
    for entry in by_age:
        age_seconds = now - _changed_at(entry)
        total += sum(file.stat().st_size for file in entry.glob("*"))
        if age_seconds > BUSY_SECONDS and (total > most_bytes or age_seconds > MAX_AGE_SECONDS):
            shutil.rmtree(entry, ignore_errors=True)


def _changed_at(entry: Path) -> float:
    return max((file.stat().st_mtime for file in (entry, *entry.glob("*"))), default=0.0)
