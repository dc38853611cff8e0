"""Files by the SHA-256 of their bytes: written once, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from wherry.errors import Conflict, InvalidInput, NotFound, Unavailable
from wherry.storage.folders import make_folder, sync_folder

CHUNK_BYTES = 1 << 20
SHA256 = re.compile(r"[0-9a-f]{64}")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FAILED = (errno.EIO, errno.EROFS)


class Blob(msgspec.Struct, frozen=True):
    """What a put stored."""

    sha256: str
    """Hex, lower case."""
    size: int
    """Bytes."""


class Readable(Protocol):
    """What a put reads from: a file, an archive's member, a body."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


class Blobs(Protocol):
    """Keeps files by digest. Any thread or process may call any method at any time."""

    def put(self, source: Readable, sha256: str = "") -> Blob:
        """Store what `source` reads until its end; `sha256` is what it must be, if given.

        Raises:
            InvalidInput: the bytes have another digest than `sha256`.
            Unavailable: the disk is full; nothing is left behind.
        """
        ...

    def put_file(self, path: Path, sha256: str = "") -> Blob:
        """Store a copy of a file; raises as `put` does."""
        ...

    def open(self, sha256: str) -> BinaryIO:
        """Read a blob; `NotFound` if there is none."""
        ...

    def has(self, sha256: str) -> bool:
        """Whether the blob is there, whole (its bytes are not read again)."""
        ...

    def verify(self, sha256: str) -> None:
        """Read the blob again; `Conflict` if its bytes are no longer what they were."""
        ...

    def place(self, sha256: str, target: Path) -> None:
        """Make the blob appear as the new read-only file `target`; `NotFound` if there is none."""
        ...

    def delete(self, sha256: str) -> bool:
        """Forget a blob; False if there was none."""
        ...

    def digests(self) -> Iterator[str]:
        """Every blob."""
        ...

    def age_seconds(self, sha256: str) -> float:
        """Time since the blob was last put; 0 if there is none."""
        ...

    def sweep_temporary(self, older_than_seconds: float = 0.0) -> int:
        """Remove what interrupted puts left; how many. Call at start, before the first put."""
        ...


class LocalBlobs:
    """Blobs as read-only files `sha256/ab/<hex>` in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "sha256"
        self._temporary = folder / "temporary"  # the same file system, so that rename is atomic
        for each in (self._folder, self._temporary):
            make_folder(each)

    def path(self, sha256: str) -> Path:
        """Where the blob is, or would be."""
        check_sha256(sha256)
        return self._folder / sha256[:2] / sha256

    def put(self, source: Readable, sha256: str = "") -> Blob:
        """See `Blobs.put`."""
        if sha256:
            check_sha256(sha256)
        temporary = self._temporary / secrets.token_hex(16)
        with explain_full_disk():
            try:
                blob = _write_file(source, temporary)
                _refuse_other_digest(blob, sha256)
                self._publish(temporary, blob)
            finally:
                temporary.unlink(missing_ok=True)
        return blob

    def put_file(self, path: Path, sha256: str = "") -> Blob:
        """See `Blobs.put_file`; a blob that is there is only touched when the digest is known."""
        if sha256 and self._touch(sha256):
            return Blob(sha256, self.path(sha256).stat().st_size)
        with path.open("rb") as source:
            return self.put(source, sha256)

    def open(self, sha256: str) -> BufferedReader:
        """See `Blobs.open`."""
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"no blob {sha256!r}") from error

    def has(self, sha256: str) -> bool:
        """See `Blobs.has`."""
        return self.path(sha256).is_file()

    def verify(self, sha256: str) -> None:
        """See `Blobs.verify`."""
        with self.open(sha256) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise Conflict(
                f"the stored file {sha256!r} is damaged: its bytes now have digest {found!r}",
                hint="import the model again, or restore a backup",
            )

    def place(self, sha256: str, target: Path) -> None:
        """See `Blobs.place`; a hard link where the file system can, so it costs no space."""
        try:
            os.link(self.path(sha256), target)
        except FileNotFoundError as error:
            raise NotFound(f"no blob {sha256!r}") from error
        except OSError:  # another file system, or one without links, or too many of them
            with self.open(sha256) as source, explain_full_disk(), target.open("xb") as copy:
                shutil.copyfileobj(source, copy, CHUNK_BYTES)
            target.chmod(0o444)

    def delete(self, sha256: str) -> bool:
        """See `Blobs.delete`."""
        try:
            self.path(sha256).unlink()
        except FileNotFoundError:
            return False
        return True

    def digests(self) -> Iterator[str]:
        """See `Blobs.digests`."""
        for path in self._folder.glob("??/*"):
            if SHA256.fullmatch(path.name):
                yield path.name

    def age_seconds(self, sha256: str) -> float:
        """See `Blobs.age_seconds`."""
        try:
            return max(0.0, time.time() - self.path(sha256).stat().st_mtime)
        except FileNotFoundError:
            return 0.0

    def sweep_temporary(self, older_than_seconds: float = 0.0) -> int:
        """See `Blobs.sweep_temporary`."""
        count = 0
        for path in self._temporary.iterdir():
            if time.time() - path.stat().st_mtime >= older_than_seconds:
                path.unlink(missing_ok=True)
                count += 1
        return count

    def _publish(self, temporary: Path, blob: Blob) -> None:
        target = self.path(blob.sha256)
        if not (self._is_sound(blob.sha256) and self._touch(blob.sha256)):
            target.parent.mkdir(mode=0o700, exist_ok=True)
            temporary.chmod(0o444)
            temporary.replace(target)
        # also if it was there: who put it may not have come to this line, or not yet
        sync_folder(target.parent)
        sync_folder(self._folder)

    def _is_sound(self, sha256: str) -> bool:
        """Whether the blob is there and undamaged; a damaged one is mended by the next put."""
        try:
            self.verify(sha256)
        except (NotFound, Conflict, OSError):
            return False
        return True

    def _touch(self, sha256: str) -> bool:
        """Make a blob young again, so that no clean-up takes it before it is used."""
        try:
            os.utime(self.path(sha256))
        except FileNotFoundError:
            return False
        return True


def check_sha256(sha256: str) -> None:
    """`InvalidInput` unless it is 64 lower-case hex digits: digests become file names."""
    if not SHA256.fullmatch(sha256):
        raise InvalidInput(f"{sha256[:80]!r} is not a SHA-256 in hex")


@contextmanager
def explain_full_disk() -> Generator[None]:
    """A full disk becomes `Unavailable`, and so does one that fails."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FAILED:
            raise Unavailable(
                f"the disk cannot be written: {error.strerror}",
                hint="the operator must look at the disk and the system's log",
            ) from error
        if error.errno not in DISK_FULL:
            raise
        raise Unavailable(
            "the disk is full: the file was not stored",
            hint="free some space or remove models, then try again",
        ) from error


def _write_file(source: Readable, target: Path) -> Blob:
    digest = hashlib.sha256()
    size = 0
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            _write_all(file.fileno(), chunk)
        os.fsync(file.fileno())
    return Blob(digest.hexdigest(), size)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _refuse_other_digest(blob: Blob, expected: str) -> None:
    if expected and blob.sha256 != expected:
        raise InvalidInput(
            f"the file has sha256 {blob.sha256!r}, not the expected {expected!r}",
            hint="it was damaged on the way or is not what its publisher named: get it again",
        )
