"""What is done of a batch: an append-only file that any number of runners write, one at a time.

Each record is one line of JSON. A kill can tear the last one only; after a power cut whatever
cannot be read, and all behind it, is cut off. So a line of the batch is either answered in here,
once, or it is not, and then it is computed (again).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from wherry.errors import Conflict
from wherry.storage.blobs import explain_full_disk


class Record(msgspec.Struct):
    """How a line of the batch ended."""

    number: int
    """Of the line in the input."""
    is_failed: bool
    entry: msgspec.Raw
    """The line of the output, or of the errors if it failed."""


class Place(msgspec.Struct, gc=False):
    """Where a record is in the file."""

    offset: int
    length: int
    is_failed: bool


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


class ProgressFile:
    """The file of one batch, locked while it is open.

    Raises:
        Conflict: another process has it.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.ended: dict[int, Place] = {}
        """Lines that have their entries."""
        self.failed = 0
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise Conflict("another runner works on this batch") from error
        self._size = self._load(path)
        os.ftruncate(self._fd, self._size)

    def _load(self, path: Path) -> int:
        """Read what is whole; how many bytes that are."""
        position = 0
        with path.open("rb") as file:
            for text in file:
                try:
                    record = _decode(text)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    return position
                if not text.endswith(b"\n"):
                    return position
                self._note(record, position, len(text))
                position += len(text)
        return position

    def _note(self, record: Record, offset: int, length: int) -> None:
        if record.number not in self.ended:
            self.ended[record.number] = Place(offset, length, record.is_failed)
            self.failed += record.is_failed

    @property
    def completed(self) -> int:
        """Lines that succeeded."""
        return len(self.ended) - self.failed

    def append(self, record: Record) -> None:
        """Add a record; it survives the end of this process."""
        text = _encode(record) + b"\n"
        with explain_full_disk():
            written = os.pwrite(self._fd, text, self._size)
            while written < len(text):
                written += os.pwrite(self._fd, text[written:], self._size + written)
        self._note(record, self._size, len(text))
        self._size += len(text)

    def sync(self) -> None:
        """Let the disk have what there is; any thread."""
        with explain_full_disk():
            os.fdatasync(self._fd)

    def entry(self, number: int) -> bytes | None:
        """The entry of a line that has ended."""
        place = self.ended.get(number)
        if place is None:
            return None
        return bytes(_decode(os.pread(self._fd, place.length, place.offset)).entry)

    def close(self) -> None:
        """Let others have it."""
        os.close(self._fd)
