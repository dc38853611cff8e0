"""What workers print: kept per deployment, bounded, readable by line."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from wherry.client.schema import LogLine
from wherry.telemetry.log import escape_controls
from wherry.worker.spec import WorkerSpec

FILE_BYTES = 4 << 20
MAX_LINE_BYTES = 8 << 10
MAX_BYTES_PER_SECOND = 1 << 20
"""A deployment that floods its output loses lines rather than the disk."""

encode = msgspec.json.Encoder().encode
decode_line = msgspec.json.Decoder(LogLine).decode


class WorkerLogs:
    """Two files per deployment: the current one and the one before.

    Args:
        folder: `data/logs`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._partial: dict[str, bytes] = {}
        self._window = 0
        self._written: dict[Path, int] = {}

    def write(self, spec: WorkerSpec, data: bytes) -> None:
        """Keep what a worker printed."""
        name = f"{spec.id}.{spec.generation}"
        *lines, rest = (self._partial.pop(name, b"") + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            lines.append(rest[:MAX_LINE_BYTES])
        elif rest:
            self._partial[name] = rest
            if len(self._partial) > 1000:
                self._partial.pop(next(iter(self._partial)))
        worker = f"{spec.model}@{spec.version} #{spec.replica}"
        path = self.path(spec.deployment)
        if self._is_spent(path):
            return  # before it costs more than to drop it
        kept = [self._encode(worker, line) for line in lines if line]
        if kept:
            self._append(path, b"".join(kept))

    def note(self, deployment: str, worker: str, text: str) -> None:
        """A line of the controller's own, beside the worker's."""
        self._append(self.path(deployment), self._encode(worker, text.encode()))

    def path(self, deployment: str) -> Path:
        """The current file of a deployment (`team/name`; both are plain names)."""
        team, _, name = deployment.partition("/")
        # `+` is in no name, so that no two deployments can mean the same file
        return self._folder / f"{team}+{name}.log"

    def _encode(self, worker: str, line: bytes) -> bytes:
        text = escape_controls(line[:MAX_LINE_BYTES].decode("utf-8", "replace"))
        return encode(LogLine(at=time.time(), worker=worker, text=text)) + b"\n"

    def _append(self, path: Path, data: bytes) -> None:
        if not self._may_write(path, len(data)):
            return
        try:
            if path.exists() and path.stat().st_size > FILE_BYTES:
                path.replace(path.with_suffix(".log.1"))
            with path.open("ab") as file:
                file.write(data)
        except OSError:
            return  # a full disk must not stop the controller

    def _is_spent(self, path: Path) -> bool:
        window = int(time.monotonic())
        if window != self._window:
            self._window, self._written = window, {}
        return self._written.get(path, 0) > MAX_BYTES_PER_SECOND

    def _may_write(self, path: Path, size: int) -> bool:
        if self._is_spent(path):
            return False
        self._written[path] = self._written.get(path, 0) + size
        return self._written[path] <= MAX_BYTES_PER_SECOND


def read_lines(path: Path, count: int) -> list[LogLine]:
    """The last lines of a deployment's log."""
    lines: list[bytes] = []
    for file in (path.with_suffix(".log.1"), path):
        if file.exists():
            lines += file.read_bytes().splitlines()
    found: list[LogLine] = []
    for line in lines[-count:]:
        try:
            found.append(decode_line(line))
        except msgspec.DecodeError:
            continue  # a torn line after a crash
    return found
