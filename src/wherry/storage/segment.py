"""Journal segments on disk: how they are written, read, locked and removed.

A segment is the line `MAGIC`, then frames of length (u32), CRC-32 (u32) and msgpack, all little
endian: one record, or several answers and what they have in common. It only ever grows by whole frames, so a reader's offset stays valid while it is
written; only a crash can leave a torn frame, and then at the end.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from wherry.errors import InvalidInput
from wherry.storage.folders import make_folder, sync_folder
from wherry.telemetry import get_logger

MAGIC = b"wherry journal 2\n"
MAGICS = (MAGIC, b"wherry journal 1\n")
"""Those that are read: version 1 has no frames of several answers."""
SUFFIX = ".journal"
MAX_RECORD_BYTES = (64 << 10) - 1
"""Fits two bytes: the length's upper half is always zero, which `_find_frame` looks for."""

MAX_ANSWERS = 256
"""Of one frame, so that it is never too long."""

_FRAME = struct.Struct("<II")
_log = get_logger("journal")


class OutcomeRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How one request ended. New fields go to the end and need a default."""

    request_id: str
    at: float
    """Unix seconds."""
    team_id: str
    key_id: str
    deployment: str
    model: str = ""
    version: int = 0
    digest: str = ""
    door: str = ""
    task: str = ""
    status: int = 200
    code: str = ""
    """Code of the error; empty for an answer."""
    input_tokens: int = 0
    output_tokens: int = 0
    rows: int = 0
    queued_ms: float = 0.0
    run_ms: float = 0.0
    total_ms: float = 0.0
    attempts: int = 1
    characters: int = 0
    audio_ms: int = 0


class Damage(msgspec.Struct, frozen=True):
    """Bytes of a segment that cannot be read although whole frames follow them."""

    path: Path
    offset: int
    length: int


Answer = tuple[str, float, int, int, int, float, float, float, int]
"""Of the record of an answer what differs from others: request id, at, input tokens, output tokens,
rows, queued, run and total milliseconds, attempts. One that cost characters or sound is a record of
its own."""
Alike = tuple[str, str, str, str, int, str, str, str]
"""What does not: team, key, deployment, model, version, digest, door, task."""


class Answers(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Several answers and what they have in common."""

    alike: Alike
    answers: list[Answer]

    def records(self) -> list[OutcomeRecord]:
        """Each by itself."""
        alike = self.alike
        return [
            OutcomeRecord(
                request_id, at, *alike, 200, "", tokens_in, tokens_out, rows, queued, run, total, attempts
            )
            for request_id, at, tokens_in, tokens_out, rows, queued, run, total, attempts in self.answers
        ]  # fmt: skip


_ANSWERS = b"\x92"
"""First byte of an array of two in msgpack; a record has more fields."""

_encode = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(OutcomeRecord).decode
_decode_answers = msgspec.msgpack.Decoder(Answers).decode


def encode_frame(record: OutcomeRecord) -> bytes:
    """The frame of a record.

    Raises:
        InvalidInput: the record is over `MAX_RECORD_BYTES`, or holds what msgpack cannot.
    """
    return _frame(_try_encode(record))


def _try_encode(value: Any) -> bytes:
    try:
        return _encode(value)
    except (OverflowError, UnicodeEncodeError, TypeError) as error:
        raise InvalidInput(f"a record cannot be encoded: {error}") from error


def _frame(payload: bytes) -> bytes:
    if len(payload) > MAX_RECORD_BYTES:
        raise InvalidInput(f"a record of {len(payload)} bytes is over {MAX_RECORD_BYTES}")
    return _FRAME.pack(len(payload), crc32(payload)) + payload


class Stamp:
    """What the records of many answers say alike: encoded once, and written once a frame."""

    __slots__ = ("_start", "alike")

    def __init__(self, alike: Alike) -> None:
        self.alike = alike
        self._start = _ANSWERS + _try_encode(alike)

    def frame(self, answers: Sequence[Answer]) -> bytes:
        """The frame of some answers, `MAX_ANSWERS` at most.

        Raises:
            InvalidInput: as `encode_frame`.
        """
        return _frame(self._start + _try_encode(answers))


# ------------------------------------------------------------------------------ writing


class Segment:
    """A new segment, open for appending by its only writer, and locked as long as it is open."""

    def __init__(self, folder: Path) -> None:
        self.path, self._fd = _create_file(folder)
        self.size = 0
        self.is_spoiled = False
        """Its end, or what the disk has of it, is unknown: it is never written again."""
        self.is_closed = False
        try:
            self._write(MAGIC)
            self.sync()  # else a power cut could keep later sectors of the file without this line
            sync_folder(folder)
        except OSError:
            self.close()
            self.path.unlink(missing_ok=True)
            raise

    def append(self, frames: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Write frames; tells how many are whole in the file, and why it is not all."""
        if self.is_spoiled:
            return 0, OSError(errno.EIO, "an earlier write to this segment failed")
        start = self.size
        try:
            self._write(b"".join(frames))
        except OSError as error:
            # Whole frames stay, since a reader may have passed them; the torn one goes.
            ends = itertools.accumulate(map(len, frames), initial=start)
            whole = [end for end in ends if end <= self.size]
            self._cut(whole[-1])
            return len(whole) - 1, error
        return len(frames), None

    def sync(self) -> None:
        """Wait until the disk has everything."""
        if self.is_closed:
            return
        try:
            os.fdatasync(self._fd)
        except OSError:
            # The kernel reports lost pages once; a later sync would falsely succeed.
            self.is_spoiled = True
            raise

    def close(self) -> None:
        """Let go of the file and its lock."""
        if not self.is_closed:
            self.is_closed = True
            os.close(self._fd)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # once, unless the disk is about to be full
            count = os.write(self._fd, rest)
            self.size += count
            rest = rest[count:]

    def _cut(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
            self.size = size
        except OSError:
            self.is_spoiled = True


class Ballast:
    """A file that only takes up room, to be given back when the disk is full."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size

    def fill(self) -> None:
        """Take the room, unless it is taken."""
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while (size := os.fstat(fd).st_size) < self._size:
                # noise, not zeros: some file systems keep those in no room at all
                os.pwrite(fd, os.urandom(self._size - size), size)
            os.fsync(fd)
        finally:
            os.close(fd)

    def release(self) -> bool:
        """Give the room back; False if none was taken."""
        try:
            size = self._path.stat().st_size
            self._path.unlink()
        except OSError:
            return False
        return size > 0


def _create_file(folder: Path) -> tuple[Path, int]:
    make_folder(folder)
    for number in itertools.count(time.time_ns()):
        path = folder / f"{number:020d}{SUFFIX}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except FileExistsError:
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:  # else a reader removed it before it was locked
            return path, fd
        os.close(fd)
    raise AssertionError("counting never ends")


# ------------------------------------------------------------------------------ reading


def list_segments(folder: Path) -> list[Path]:
    """All segments below a journal folder, gateway by gateway, oldest first."""
    return sorted(folder.glob(f"*/*{SUFFIX}"))


def is_live(path: Path) -> bool:
    """Whether a writer still has the segment open."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(fd)
    finally:
        os.close(fd)


def remove_segment(path: Path) -> bool:
    """Delete a segment unless its writer lives; tells whether it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _try_lock(fd):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(fd)


def report_damage(damage: Damage) -> None:
    """Log what cannot be read, the default of `read_segment`."""
    _log.error(
        "a part of the journal is damaged",
        segment=damage.path.name,
        offset=damage.offset,
        length=damage.length,
    )


def read_segment(
    path: Path, offset: int = 0, on_damage: Callable[[Damage], None] = report_damage
) -> Iterator[tuple[OutcomeRecord, int]]:
    """As `read_frames`, record by record.

    Several answers of one frame have the same offset until the last: what goes on from there sees
    them again, but misses none.
    """
    for content, start, end in read_frames(path, offset, on_damage):
        if isinstance(content, OutcomeRecord):
            yield content, end
            continue
        *others, last = content.records()
        for record in others:
            yield record, start
        yield last, end


def read_frames(
    path: Path, offset: int = 0, on_damage: Callable[[Damage], None] = report_damage
) -> Iterator[tuple[OutcomeRecord | Answers, int, int]]:
    """What the frames from `offset` on hold, each with where it begins and where the next one does.

    Ends quietly at a torn tail. Damage before whole frames is reported and skipped.

    Raises:
        InvalidInput: the file is no journal, or of another version.
    """
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
        if magic not in MAGICS:
            if any(known.startswith(magic) for known in MAGICS):
                return  # torn in its first line
            raise InvalidInput(
                f"{path.name!r} is not a journal of this version",
                hint="was it written by a newer Wherry?",
            )
        base = max(offset, len(MAGIC))
        file.seek(base)
        data = file.read()
    position = 0
    while position < len(data):
        found = _read_frame(data, position) or _find_frame(data, position + 1)
        if found is None:
            return
        content, start, end = found
        if start > position:
            on_damage(Damage(path, base + position, start - position))
        yield content, base + start, base + end
        position = end


def _read_frame(data: bytes, start: int) -> tuple[OutcomeRecord | Answers, int, int] | None:
    body = start + _FRAME.size
    if body > len(data):
        return None
    length, checksum = _FRAME.unpack_from(data, start)
    # A frame of nothing would pass the check in a tail of zeros, as power loss leaves them.
    if not 0 < length <= MAX_RECORD_BYTES or body + length > len(data):
        return None
    payload = data[body : body + length]
    if crc32(payload) != checksum:
        return None
    try:
        if not payload.startswith(_ANSWERS):
            return _decode_record(payload), start, body + length
        answers = _decode_answers(payload)
    except msgspec.MsgspecError:
        return None
    return (answers, start, body + length) if answers.answers else None


def _find_frame(data: bytes, start: int) -> tuple[OutcomeRecord | Answers, int, int] | None:
    """The first whole frame at or after `start`."""
    zeros = data.find(b"\0\0", start + 2)
    while zeros >= 0:
        found = _read_frame(data, zeros - 2)
        if found is not None:
            return found
        zeros = data.find(b"\0\0", zeros + 1)
    return None


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
