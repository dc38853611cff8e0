"""Files of teams: what clients send to be worked on, and what batches made of it.

`files/<team>/<id>` holds a file's bytes, and a row of the database says what it is. The bytes come
first and leave last: a file that is listed is whole, and what a crash leaves without a row is swept.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from wherry.errors import Conflict, InvalidInput, NotFound
from wherry.jobs.files import store
from wherry.jobs.files.store import Connection
from wherry.settings import Settings
from wherry.storage.blobs import explain_full_disk
from wherry.storage.database import Database, new_id
from wherry.storage.folders import make_folder, sync_folder
from wherry.storage.spool import Spool

MAX_FILES_PER_TEAM = 10_000
MAX_NAME_CHARACTERS = 255
BATCH_SECONDS = 30 * 86_400.0
"""How long a batch's files are kept unless the client says otherwise."""
ORPHAN_SECONDS = 3600.0
"""Bytes without a row are swept when they are so old: they may just be on their way."""
INCOMING = ".in-"


class StoredFile(msgspec.Struct, frozen=True):
    """A file as its row describes it."""

    id: str
    team_id: str
    purpose: str
    filename: str
    size_bytes: int
    created_at: float
    expires_at: float | None = None


class Incoming:
    """A file that is being written; nobody sees it before it is kept."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        hint = "the operator can raise max_file_bytes and max_team_files_bytes"
        with explain_full_disk():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self.spool = Spool("file", path.parent, descriptor, max_bytes, hint)

    def discard(self) -> None:
        """Close it, and remove it unless it was kept."""
        self.spool.close()
        self.path.unlink(missing_ok=True)


class Files:
    """The files of one data folder; processes may share it. Blocking: call it in a thread."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self._folder = settings.folder / "files"
        self._max_file_bytes = settings.max_file_bytes
        self._max_team_bytes = settings.max_team_files_bytes

    # ------------------------------------------------------------------ in

    def begin(self, team_id: str, *, is_ours: bool = False) -> Incoming:
        """Start a file.

        Args:
            team_id: whose it will be.
            is_ours: a batch writes it: what was computed is kept even when the team has no room.

        Raises:
            Conflict: the team's files take all the room it has.
        """
        most = self._max_team_bytes
        if not is_ours:
            with self.database.read() as connection:
                most = min(self._max_file_bytes, self.check_room(connection, team_id, 1))
        with explain_full_disk():
            make_folder(self._folder / team_id)
        return Incoming(self._folder / team_id / f"{INCOMING}{secrets.token_hex(16)}", most)

    def place(
        self,
        incoming: Incoming,
        team_id: str,
        purpose: str,
        filename: str,
        kept_seconds: float | None,
    ) -> StoredFile:
        """Give a file that was synced its id; it is there when `insert` has its row."""
        now = time.time()
        file = StoredFile(
            id=new_id("file"),
            team_id=team_id,
            purpose=purpose,
            filename=check_filename(filename),
            size_bytes=incoming.spool.size,
            created_at=now,
            expires_at=None if kept_seconds is None else now + kept_seconds,
        )
        with explain_full_disk():
            incoming.path.rename(self.path(file))
            sync_folder(self._folder / team_id)
        return file

    def insert(self, connection: Connection, file: StoredFile) -> None:
        """Let a placed file be seen when this transaction commits."""
        store.insert_file(connection, msgspec.structs.asdict(file))

    def keep(
        self,
        incoming: Incoming,
        team_id: str,
        purpose: str,
        filename: str,
        kept_seconds: float | None,
    ) -> StoredFile:
        """Place and insert a file.

        Raises:
            Conflict: others filled the team's room meanwhile.
        """
        file = self.place(incoming, team_id, purpose, filename, kept_seconds)
        try:
            with self.database.write() as connection:
                self.check_room(connection, team_id, file.size_bytes)
                self.insert(connection, file)
        except BaseException:
            self.path(file).unlink(missing_ok=True)
            raise
        return file

    def check_room(self, connection: Connection, team_id: str, size: int) -> int:
        """How many bytes the team may still add; `Conflict` if another file of `size` is too much."""
        count, used = store.sum_files(connection, team_id, time.time())
        if count >= MAX_FILES_PER_TEAM:
            raise Conflict(f"the team has {count} files", hint="delete some")
        if used + size > self._max_team_bytes:
            raise Conflict(
                f"the team's files take {used} of the {self._max_team_bytes} bytes it may have",
                hint="delete some, or let the operator raise max_team_files_bytes",
            )
        return self._max_team_bytes - used

    # ------------------------------------------------------------------ out

    def find(self, team_id: str, file_id: str) -> StoredFile:
        """One of the team's, or `NotFound`."""
        with self.database.read() as connection:
            row = store.find_file(connection, team_id, file_id, time.time())
        if row is None:
            raise NotFound(f"no file {file_id[:80]!r}", hint="GET /v1/files lists them")
        return _to_file(row)

    def page(
        self, team_id: str, *, purpose: str, after: str, limit: int, is_ascending: bool
    ) -> list[StoredFile]:
        """A team's files by age, from the one behind the id `after` (empty = the first)."""
        with self.database.read() as connection:
            rows = store.list_files(
                connection,
                team_id,
                time.time(),
                purpose=purpose,
                after=after,
                limit=limit,
                is_ascending=is_ascending,
            )
        return [_to_file(row) for row in rows]

    def path(self, file: StoredFile) -> Path:
        """Where its bytes are; they never change."""
        return self._folder / file.team_id / file.id

    def remove(self, team_id: str, file_id: str) -> None:
        """Delete a file; a batch that reads it has its own name of the bytes."""
        file = self.find(team_id, file_id)
        with self.database.write() as connection:
            store.delete_file(connection, file_id)
        self.path(file).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete what has expired, and bytes that have no row."""
        now = time.time()
        with self.database.write() as connection:
            for row in store.list_expired(connection, now):
                store.delete_file(connection, row.id)
            store.delete_old_uploads(connection, now - ORPHAN_SECONDS)
        with self.database.read() as connection:
            known = store.list_ids(connection)
        for path in self._folder.glob("*/*"):
            if path.name not in known and now - path.stat().st_mtime > ORPHAN_SECONDS:
                remove_any(path)

    def upload_folder(self, team_id: str, upload_id: str) -> Path:
        """Where the parts of an upload are."""
        return self._folder / team_id / upload_id


def remove_any(path: Path) -> None:
    """Delete a file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_filename(name: str) -> str:
    """A name to show; `InvalidInput` if it cannot be."""
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise InvalidInput(
            f"a file's name has 1 to {MAX_NAME_CHARACTERS} visible characters", param="filename"
        )
    return name


def _to_file(row: Any) -> StoredFile:
    return StoredFile(
        id=row.id,
        team_id=row.team_id,
        purpose=row.purpose,
        filename=row.filename,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
