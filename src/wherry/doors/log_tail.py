"""Follows the log of a deployment: its lines as they are written, also across a rotation."""

from __future__ import annotations

import re
from pathlib import Path

READ_BYTES = 256 << 10
"""Most that one look reads; the rest follows at the next."""
POSITION = re.compile(r"([0-9]{1,20})-([0-9]{1,18})")


class LogTail:
    """One reader's place in a log. Blocking: call it in a thread.

    Args:
        path: the current file; the one before is beside it as `.log.1`.
        lines: how many of the last lines to begin with.
        position: where to go on instead, as an earlier reader was told (`inode-offset`).
    """

    def __init__(self, path: Path, lines: int, position: str = "") -> None:
        self._path = path
        self._older = path.with_suffix(".log.1")
        self._lines = lines
        found = POSITION.fullmatch(position)
        self._inode, self._offset = (int(found[1]), int(found[2])) if found else (-1, 0)

    def read(self) -> list[tuple[str, bytes]]:
        """Whole new lines (JSON of a `LogLine`), each with the position behind it."""
        if self._inode < 0 or not self._is_known():
            self._start()
        found = self._read_file(self._older) + self._read_file(self._path)
        if self._lines:
            found, self._lines = found[-self._lines :], 0
        return found

    def _is_known(self) -> bool:
        return self._inode in (_inode_of(self._older), _inode_of(self._path))

    def _start(self) -> None:
        """Begin so early in the files that the wanted lines are among what is read."""
        file = self._older if self._older.exists() else self._path
        self._inode, self._offset = _inode_of(file), 0

    def _read_file(self, file: Path) -> list[tuple[str, bytes]]:
        inode = _inode_of(file)
        if inode < 0:
            return []
        if inode != self._inode:
            if self._inode >= 0 and file == self._older:
                return []  # we are in the newer file
            self._inode, self._offset = inode, 0
        with file.open("rb") as opened:
            opened.seek(self._offset)
            data = opened.read() if self._lines else opened.read(READ_BYTES)
        found: list[tuple[str, bytes]] = []
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # still being written
            self._offset += len(line)
            found.append((f"{inode}-{self._offset}", line[:-1]))
        return found


def _inode_of(file: Path) -> int:
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return -1
