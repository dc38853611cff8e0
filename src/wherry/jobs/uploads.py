"""Files on their way in: written in pieces, invisible as a model until an import takes them.

`uploads/<id>/` holds `upload.json` (whose it is), `lock`, and `files/`. Writers share the lock and
an import takes it alone, so that no byte changes once a model is being made of it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from wherry.client.schema import Upload
from wherry.errors import Conflict, InvalidInput, NotFound, QuotaExceeded
from wherry.models.bundle import safe_relative_path
from wherry.models.trust.files import list_paths
from wherry.storage.blobs import explain_full_disk
from wherry.storage.folders import make_folder, replace_file, sync_folder
from wherry.storage.spool import Spool

ID = re.compile(r"up_[0-9a-f]{32}")
MAX_FILES = 1000
MAX_DEPTH = 12
MAX_UPLOADS_PER_TEAM = 100
KEPT_SECONDS = 86_400.0

FILES = "files"
OWNER = "upload.json"
LOCK = "lock"
TAKEN = "upload"
"""Folder of an import's job that holds the upload it took."""


class Owner(msgspec.Struct, frozen=True):
    """What `upload.json` holds."""

    team_id: str
    created_at: float


class Uploads:
    """The uploads of one data folder; processes may share it.

    Args:
        folder: `data/uploads`.
        max_file_bytes: largest file.
    """

    def __init__(self, folder: Path, max_file_bytes: int) -> None:
        self._folder = folder
        self._max_file_bytes = max_file_bytes

    # ------------------------------------------------------------------ for doors

    def create(self, team_id: str) -> Upload:
        """Start an upload.

        Raises:
            QuotaExceeded: the team has too many.
        """
        with explain_full_disk():
            make_folder(self._folder)
        if sum(owner.team_id == team_id for _, owner in self._list()) >= MAX_UPLOADS_PER_TEAM:
            raise QuotaExceeded(
                f"the team has {MAX_UPLOADS_PER_TEAM} uploads that no import has taken",
                hint="import or delete some; they are deleted a day after their last write",
                retry_after_seconds=60.0,
            )
        upload_id = f"up_{secrets.token_hex(16)}"
        # complete before it has its name, so that no sweep ever meets one without an owner
        unfinished = self._folder / f".{upload_id}"
        with explain_full_disk():
            make_folder(unfinished / FILES)
            (unfinished / LOCK).touch(mode=0o600)
            owner = Owner(team_id, time.time())
            replace_file(unfinished / OWNER, msgspec.json.encode(owner))
            unfinished.rename(self._folder / upload_id)
            sync_folder(self._folder)
        return Upload(id=upload_id)

    def find(self, team_id: str, upload_id: str) -> Upload:
        """What has arrived; `NotFound` if it is not the team's."""
        return Upload(id=upload_id, files=_sizes(self._find(team_id, upload_id) / FILES))

    def remove(self, team_id: str, upload_id: str) -> None:
        """Delete an upload.

        Raises:
            NotFound: the team has none of this id.
            Conflict: a file of it is being written.
        """
        folder = self._find(team_id, upload_id)
        with _locked_alone(folder):
            self._discard(folder)

    async def write(
        self, team_id: str, upload_id: str, path: str, offset: int, pieces: AsyncIterator[bytes]
    ) -> Upload:
        """Append to a file; what has arrived stays when the client breaks off.

        Raises:
            Conflict: `offset` is not where the file ends now; the message says where that is.
            InvalidInput: the path would leave the upload, or there are too many files.
            TooLarge: the file would be over the limit.
        """
        opened = await asyncio.to_thread(self._open, team_id, upload_id, path, offset)
        try:
            await opened.spool.take(pieces)
        finally:
            opened.close()
        return await asyncio.to_thread(self.find, team_id, upload_id)

    def _open(self, team_id: str, upload_id: str, path: str, offset: int) -> _OpenFile:
        folder = self._find(team_id, upload_id)
        target = folder / FILES / check_path(path)
        locked = _lock(folder, fcntl.LOCK_SH)
        try:
            if not target.exists():
                if offset:
                    raise _wrong_offset(path, 0, offset)
                _check_room(folder / FILES, path)
            try:
                with explain_full_disk():
                    make_folder(target.parent)
                    descriptor = os.open(target, _WRITE_FLAGS, 0o600)
            except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
                raise InvalidInput(
                    f"{path!r} is a file and a folder of the upload at once", param="path"
                ) from error
            return _OpenFile(path, target.parent, descriptor, locked, offset, self._max_file_bytes)
        except BaseException:
            os.close(locked)
            raise

    # ------------------------------------------------------------------ for imports

    def take(self, team_id: str, upload_id: str, target: Path) -> None:
        """Move an upload's folder to `target`, for good or until `give_back`.

        Raises:
            NotFound: the team has none of this id.
            Conflict: a file of it is being written.
        """
        folder = self._find(team_id, upload_id)
        with _locked_alone(folder):
            folder.rename(target)

    def give_back(self, taken: Path, upload_id: str) -> None:
        """Let an upload be there again, for another try."""
        if (taken / OWNER).is_file():
            os.utime(taken / OWNER)
            taken.rename(self._folder / upload_id)

    def sweep(self, kept: Iterable[str] = (), older_than_seconds: float = KEPT_SECONDS) -> int:
        """Delete uploads without a write for a day, but those whose import waits; how many."""
        waiting = frozenset(kept)
        count = 0
        for folder, _ in self._list():
            if folder.name in waiting or time.time() - _last_write(folder) < older_than_seconds:
                continue
            try:
                with _locked_alone(folder):
                    self._discard(folder)
                    count += 1
            except (Conflict, NotFound):
                continue  # somebody is writing right now, or has deleted it
        for leftover in self._folder.glob(".*"):
            if time.time() - leftover.stat().st_mtime >= older_than_seconds:
                shutil.rmtree(leftover, ignore_errors=True)
        return count

    # ------------------------------------------------------------------ folders

    def _list(self) -> Generator[tuple[Path, Owner]]:
        if not self._folder.is_dir():
            return
        for folder in self._folder.iterdir():
            if ID.fullmatch(folder.name) and (owner := _read_owner(folder)) is not None:
                yield folder, owner

    def _find(self, team_id: str, upload_id: str) -> Path:
        folder = self._folder / upload_id if ID.fullmatch(upload_id) else None
        owner = _read_owner(folder) if folder is not None else None
        if folder is None or owner is None or owner.team_id != team_id:
            raise NotFound(
                f"no upload {upload_id[:80]!r}",
                hint="it was imported, or a day has passed since its last write: upload again",
            )
        return folder

    def _discard(self, folder: Path) -> None:
        doomed = folder.with_name(f".{folder.name}")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


class _OpenFile:
    """A file that this request alone may append to, and the lock that keeps its upload there."""

    def __init__(
        self,
        path: str,
        folder: Path,
        descriptor: int,
        locked: int,
        offset: int,
        max_bytes: int,
    ) -> None:
        self._locked = locked
        try:
            _flock(descriptor, fcntl.LOCK_EX, path)
            hint = "the operator can raise max_upload_bytes"
            self.spool = Spool(path, folder, descriptor, max_bytes, hint)
            if offset != self.spool.size:
                raise _wrong_offset(path, self.spool.size, offset)
        except BaseException:
            os.close(descriptor)
            raise

    def close(self) -> None:
        """Let others write, or import."""
        self.spool.close()
        os.close(self._locked)


def _wrong_offset(path: str, size: int, offset: int) -> Conflict:
    return Conflict(f"{path!r} has {size} bytes, not {offset}", hint=f"go on with ?offset={size}")


_WRITE_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def check_path(path: str) -> str:
    """A safe relative path, or `InvalidInput`."""
    found = safe_relative_path(path)
    parts = found.parts
    if (
        str(found) != path
        or not path.isprintable()
        or len(parts) > MAX_DEPTH
        or any(part.startswith(".") or len(part.encode()) > 255 for part in parts)
    ):
        raise InvalidInput(
            f"{path[:255]!r} is not a file name inside an upload",
            hint="send a relative path like 'model/weights.onnx', no hidden files",
            param="path",
        )
    return path


def _check_room(files: Path, path: str) -> None:
    if len(list(list_paths(files))) >= MAX_FILES:
        raise InvalidInput(f"an upload has at most {MAX_FILES} files", param="path")


def _sizes(files: Path) -> dict[str, int]:
    try:
        return {path: (files / path).stat().st_size for path in list_paths(files)}
    except FileNotFoundError as error:  # deleted or taken while we looked
        raise NotFound("the upload is not there any more") from error


def _read_owner(folder: Path) -> Owner | None:
    try:
        return msgspec.json.decode((folder / OWNER).read_bytes(), type=Owner)
    except (OSError, msgspec.DecodeError):
        return None


def _last_write(folder: Path) -> float:
    newest = 0.0
    for path in (folder, folder / OWNER, *(folder / FILES).rglob("*")):
        try:
            newest = max(newest, path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return newest


# ------------------------------------------------------------------------------ locks


def _flock(descriptor: int, how: int, what: str) -> None:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Conflict(
            f"{what!r} is in use by another request", hint="repeat when that has ended"
        ) from error


def _lock(folder: Path, how: int) -> int:
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound("the upload is not there any more") from error
    try:
        _flock(descriptor, how, folder.name)
        if not (folder / OWNER).exists():  # it was taken before we had the lock
            raise NotFound("the upload is not there any more")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _locked_alone(folder: Path) -> Generator[Any]:
    descriptor = _lock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)
