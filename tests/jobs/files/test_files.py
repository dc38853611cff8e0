"""Files and uploads on the disk: seen when whole, gone when their time has passed."""

from __future__ import annotations

import os
import time

import pytest
from tests.jobs.conftest import Site

from wherry import errors
from wherry.jobs.files import files as files_module
from wherry.jobs.files import uploads as uploads_module
from wherry.jobs.files.files import Files, StoredFile
from wherry.jobs.files.uploads import FileUploads


def keep(files: Files, team_id: str, content: bytes, seconds: float | None = None) -> StoredFile:
    incoming = files.begin(team_id)
    incoming.spool.append(content)
    incoming.spool.sync()
    file = files.keep(incoming, team_id, "batch", "in.jsonl", seconds)
    incoming.discard()
    return file


def test_a_file_that_has_expired_is_not_found_and_then_swept(site: Site):
    files = Files(site.database, site.settings)
    short, long = keep(files, site.team_id, b"1", 0.05), keep(files, site.team_id, b"2", 3600)
    while time.time() < (short.expires_at or 0):
        time.sleep(0.01)
    with pytest.raises(errors.NotFound):
        files.find(site.team_id, short.id)
    every = {"purpose": "", "after": "", "limit": 9, "is_ascending": True}
    assert [each.id for each in files.page(site.team_id, **every)] == [long.id]  # type: ignore[arg-type]
    assert files.path(short).exists()
    os.utime(files.path(short), (0, 0))
    files.sweep()
    assert not files.path(short).exists()
    assert files.path(long).read_bytes() == b"2"


def test_what_a_crash_left_is_swept_when_it_is_old(site: Site):
    files = Files(site.database, site.settings)
    kept = keep(files, site.team_id, b"1")
    placed = files.begin(site.team_id)  # killed between its bytes and its row
    placed.spool.append(b"2")
    lost = files.place(placed, site.team_id, "batch", "a", None)
    unfinished = files.begin(site.team_id)  # killed while it came in
    upload = FileUploads(files, site.settings).create(
        site.team_id, purpose="batch", filename="a", size_bytes=9, kept_seconds=None
    )
    parts = files.upload_folder(site.team_id, upload.id)
    young = [files.path(kept), files.path(lost), unfinished.path, parts]
    files.sweep()
    assert all(path.exists() for path in young)
    for path in young:
        os.utime(path, (0, 0))
    files.sweep()
    assert [path.exists() for path in young] == [True, False, False, True]
    for each in (placed, unfinished):
        each.discard()


def test_an_upload_that_has_expired_takes_nothing_and_gives_its_room_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    files = Files(site.database, site.settings)
    uploads = FileUploads(files, site.settings)
    monkeypatch.setattr(uploads_module, "KEPT_SECONDS", 0.0)
    upload = uploads.create(
        site.team_id, purpose="batch", filename="a", size_bytes=9, kept_seconds=None
    )
    assert uploads.find(site.team_id, upload.id)[0].state == "expired"
    with pytest.raises(errors.Conflict, match="expired"):
        uploads.begin_part(site.team_id, upload.id)
    with site.database.read() as connection:
        free = files.check_room(connection, site.team_id, 0)
    assert free == site.settings.max_team_files_bytes
    monkeypatch.setattr(files_module, "ORPHAN_SECONDS", 0.0)
    files.sweep()
    assert not files.upload_folder(site.team_id, upload.id).exists()
    with pytest.raises(errors.NotFound):
        uploads.find(site.team_id, upload.id)


def test_an_upload_of_another_team_is_not_there(site: Site):
    files = Files(site.database, site.settings)
    upload = FileUploads(files, site.settings).create(
        site.team_id, purpose="batch", filename="a", size_bytes=9, kept_seconds=None
    )
    with pytest.raises(errors.NotFound):
        FileUploads(files, site.settings).find(site.other_id, upload.id)


def test_a_team_has_a_number_of_files(site: Site, monkeypatch: pytest.MonkeyPatch):
    files = Files(site.database, site.settings)
    monkeypatch.setattr(files_module, "MAX_FILES_PER_TEAM", 2)
    first = keep(files, site.team_id, b"1")
    keep(files, site.team_id, b"2")
    with pytest.raises(errors.Conflict, match="2 files"):
        files.begin(site.team_id)
    keep(files, site.other_id, b"3")
    files.remove(site.team_id, first.id)
    keep(files, site.team_id, b"4")
