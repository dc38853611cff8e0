"""A place for a Unix socket that only this worker uses."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

LONGEST_SOCKET_PATH = 100
"""Bytes; the kernel allows 107."""


def new_socket_folder(socket_name: str) -> Path:
    """A new 0700 folder whose path is short enough for a Unix socket of that name."""
    folder = Path(tempfile.mkdtemp(prefix="sock-"))
    if len(os.fsencode(folder / socket_name)) <= LONGEST_SOCKET_PATH:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="wherry-sock-", dir="/tmp"))
