"""Files in parts: sent in any order and at once, put together in the order that the client names.

A part that arrived stays until the upload ends or an hour has passed, so a client that was cut off
sends only what is missing.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from wherry.errors import Conflict, InvalidInput, NotFound, TooLarge
from wherry.jobs.files import store
from wherry.jobs.files.files import Files, Incoming, StoredFile, check_filename
from wherry.jobs.files.store import Connection
from wherry.settings import Settings
from wherry.storage.blobs import explain_full_disk
from wherry.storage.database import new_id
from wherry.storage.folders import make_folder, sync_folder

KEPT_SECONDS = 3600.0
MAX_PART_BYTES = 64 << 20
MAX_PARTS = 2_000
SPARE_FACTOR = 2
"""Parts may be sent twice; all together may take so many times what was announced."""
CHUNK_BYTES = 1 << 20


class Part(msgspec.Struct, frozen=True):
    """A part that has arrived."""

    id: str
    upload_id: str
    size_bytes: int
    created_at: float


class StoredUpload(msgspec.Struct, frozen=True):
    """An upload as its row describes it."""

    id: str
    purpose: str
    filename: str
    size_bytes: int
    kept_seconds: float | None
    state: str
    """`pending`, `completed`, `cancelled` or `expired`."""
    created_at: float
    expires_at: float
    file_id: str | None = None


class FileUploads:
    """The uploads of one data folder. Blocking: call it in a thread."""

    def __init__(self, files: Files, settings: Settings) -> None:
        self._files = files
        self._database = files.database
        self._max_file_bytes = settings.max_file_bytes

    def create(
        self,
        team_id: str,
        *,
        purpose: str,
        filename: str,
        size_bytes: int,
        kept_seconds: float | None,
    ) -> StoredUpload:
        """Announce a file.

        Raises:
            TooLarge: no file may be so large.
            Conflict: the team has no room for it.
        """
        if size_bytes > self._max_file_bytes:
            raise TooLarge(
                f"a file may have {self._max_file_bytes} bytes, not {size_bytes}",
                hint="the operator can raise max_file_bytes",
            )
        now = time.time()
        upload = StoredUpload(
            id=new_id("upload"),
            purpose=purpose,
            filename=check_filename(filename),
            size_bytes=size_bytes,
            kept_seconds=kept_seconds,
            state=store.PENDING,
            created_at=now,
            expires_at=now + KEPT_SECONDS,
        )
        with explain_full_disk():
            make_folder(self._files.upload_folder(team_id, upload.id))
        with self._database.write() as connection:
            self._files.check_room(connection, team_id, size_bytes)
            fields = {**msgspec.structs.asdict(upload), "team_id": team_id}
            store.insert_upload(connection, fields)
        return upload

    def find(self, team_id: str, upload_id: str) -> tuple[StoredUpload, list[Part]]:
        """One of the team's and what has arrived of it, or `NotFound`."""
        with self._database.read() as connection:
            upload = _find(connection, team_id, upload_id)
            return upload, [_to_part(row) for row in store.list_parts(connection, upload_id)]

    # ------------------------------------------------------------------ parts

    def begin_part(self, team_id: str, upload_id: str) -> Incoming:
        """Start a part of a pending upload.

        Raises:
            Conflict: the upload has ended, or has as many parts as it may.
        """
        upload, parts = self.find(team_id, upload_id)
        _check_pending(upload)
        room = SPARE_FACTOR * upload.size_bytes - sum(part.size_bytes for part in parts)
        if len(parts) >= MAX_PARTS or room <= 0:
            raise Conflict(
                f"upload {upload_id!r} has {len(parts)} parts, more than it can need",
                hint="complete it with those you want, or cancel it",
            )
        folder = self._files.upload_folder(team_id, upload_id)
        try:
            return Incoming(folder / f".{new_id('part')}", min(MAX_PART_BYTES, room))
        except FileNotFoundError as error:
            raise _has_ended(upload_id) from error

    def keep_part(self, team_id: str, upload_id: str, incoming: Incoming) -> Part:
        """Let a part that was synced belong to its upload."""
        part_id = incoming.path.name.removeprefix(".")
        part = Part(part_id, upload_id, incoming.spool.size, time.time())
        try:
            with explain_full_disk():
                incoming.path.rename(incoming.path.with_name(part_id))
                sync_folder(incoming.path.parent)
        except FileNotFoundError as error:
            raise _has_ended(upload_id) from error
        with self._database.write() as connection:
            _check_pending(_find(connection, team_id, upload_id))
            store.insert_part(connection, msgspec.structs.asdict(part))
        return part

    # ------------------------------------------------------------------ ends

    def complete(
        self, team_id: str, upload_id: str, part_ids: Sequence[str], md5: str | None
    ) -> StoredFile:
        """Make a file of the named parts, in the named order.

        Raises:
            InvalidInput: a part is unknown, or the bytes are not what was announced.
            Conflict: the upload has ended.
        """
        upload, parts = self.find(team_id, upload_id)
        _check_pending(upload)
        chosen = _choose(parts, part_ids)
        size = sum(part.size_bytes for part in chosen)
        if size != upload.size_bytes:
            raise InvalidInput(
                f"the parts have {size} bytes together, {upload.size_bytes} were announced",
                param="part_ids",
            )
        incoming = self._files.begin(team_id, is_ours=True)
        try:
            folder = self._files.upload_folder(team_id, upload_id)
            found = _join([folder / part.id for part in chosen], incoming)
            if md5 is not None and md5.lower() != found:
                raise InvalidInput(f"the file has the MD5 {found}, not {md5[:80]}", param="md5")
            file = self._files.place(
                incoming, team_id, upload.purpose, upload.filename, upload.kept_seconds
            )
        finally:
            incoming.discard()
        self._finish(upload_id, file)
        shutil.rmtree(folder, ignore_errors=True)
        return file

    def _finish(self, upload_id: str, file: StoredFile) -> None:
        with self._database.write() as connection:
            is_first = store.end_upload(connection, upload_id, "completed", file.id)
            if is_first:
                self._files.insert(connection, file)
        if not is_first:
            self._files.path(file).unlink(missing_ok=True)
            raise _has_ended(upload_id)

    def cancel(self, team_id: str, upload_id: str) -> StoredUpload:
        """End a pending upload; its parts are deleted.

        Raises:
            Conflict: it has ended already.
        """
        with self._database.write() as connection:
            upload = _find(connection, team_id, upload_id)
            _check_pending(upload)
            store.end_upload(connection, upload_id, "cancelled")
        shutil.rmtree(self._files.upload_folder(team_id, upload_id), ignore_errors=True)
        return msgspec.structs.replace(upload, state="cancelled")


def _find(connection: Connection, team_id: str, upload_id: str) -> StoredUpload:
    row = store.find_upload(connection, team_id, upload_id)
    if row is None:
        raise NotFound(f"no upload {upload_id[:80]!r}", hint="POST /v1/uploads makes one")
    is_over = row.state == store.PENDING and row.expires_at <= time.time()
    return StoredUpload(
        id=row.id,
        purpose=row.purpose,
        filename=row.filename,
        size_bytes=row.size_bytes,
        kept_seconds=row.kept_seconds,
        state="expired" if is_over else row.state,
        created_at=row.created_at,
        expires_at=row.expires_at,
        file_id=row.file_id,
    )


def _check_pending(upload: StoredUpload) -> None:
    if upload.state != store.PENDING:
        raise Conflict(f"upload {upload.id!r} is {upload.state}", hint="make another one")


def _has_ended(upload_id: str) -> Conflict:
    return Conflict(f"upload {upload_id!r} has ended meanwhile", hint="make another one")


def _choose(parts: Sequence[Part], part_ids: Sequence[str]) -> list[Part]:
    by_id = {part.id: part for part in parts}
    unknown = [each for each in part_ids if each not in by_id]
    if unknown:
        raise InvalidInput(f"the upload has no part {unknown[0][:80]!r}", param="part_ids")
    if len(set(part_ids)) < len(part_ids):
        raise InvalidInput("a part is named twice", param="part_ids")
    return [by_id[each] for each in part_ids]


def _join(paths: Sequence[Path], incoming: Incoming) -> str:
    """Write the files one after another; the MD5 of them together."""
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        with path.open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                incoming.spool.append(chunk)
    incoming.spool.sync()
    return digest.hexdigest()


def _to_part(row: Any) -> Part:
    return Part(row.id, row.upload_id, row.size_bytes, row.created_at)
