"""Uploads: pieces in order, nothing outside, nothing of others, nothing that changes in an import."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.jobs.conftest import Site, pieces

from wherry import errors
from wherry.jobs import uploads as uploads_module
from wherry.jobs.uploads import FILES, Uploads
from wherry.storage.spool import WRITE_BYTES


def write(site: Site, upload_id: str, path: str, content: bytes, offset: int = 0) -> dict[str, int]:
    work = site.uploads.write(site.team_id, upload_id, path, offset, pieces(content))
    return asyncio.run(work).files


def test_pieces_are_joined_in_order(site: Site) -> None:
    upload = site.uploads.create(site.team_id)
    content = os.urandom(3 << 20)
    assert write(site, upload.id, "a/b.bin", content[:1000]) == {"a/b.bin": 1000}
    assert write(site, upload.id, "a/b.bin", content[1000:], 1000) == {"a/b.bin": 3 << 20}
    target = site.folder / "target"
    site.uploads.take(site.team_id, upload.id, target)
    assert (target / FILES / "a/b.bin").read_bytes() == content


@pytest.mark.parametrize("offset", [1, 4, 1 << 40])
def test_a_wrong_offset_changes_nothing_and_tells_the_right_one(site: Site, offset: int) -> None:
    upload = site.uploads.create(site.team_id)
    with pytest.raises(errors.Conflict, match="has 0 bytes"):
        write(site, upload.id, "a", b"xyz", offset)
    write(site, upload.id, "a", b"abc")
    if offset != 3:
        with pytest.raises(errors.Conflict, match="has 3 bytes"):
            write(site, upload.id, "a", b"xyz", offset)
    assert site.uploads.find(site.team_id, upload.id).files == {"a": 3}


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "./a",
        "a/.",
        ".hidden",
        "a/.git/config",
        "a\\b",
        "a\0b",
        "a\nb",
        "x" * 256,
        "é" * 200,
        "/".join("a" * 13),
    ],
)
def test_no_file_leaves_its_upload(site: Site, path: str) -> None:
    upload = site.uploads.create(site.team_id)
    with pytest.raises(errors.InvalidInput):
        write(site, upload.id, path, b"x")
    assert site.uploads.find(site.team_id, upload.id).files == {}
    assert sorted(each.name for each in (site.folder / "uploads" / upload.id).iterdir()) == [
        "files",
        "lock",
        "upload.json",
    ]


def test_a_name_is_a_file_or_a_folder(site: Site) -> None:
    upload = site.uploads.create(site.team_id)
    write(site, upload.id, "a", b"x")
    with pytest.raises(errors.InvalidInput, match="file and a folder"):
        write(site, upload.id, "a/b", b"x")
    write(site, upload.id, "c/d", b"x")
    with pytest.raises(errors.InvalidInput, match="file and a folder"):
        write(site, upload.id, "c", b"x")


def test_files_have_a_largest_size_and_number(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = Uploads(site.folder / "uploads", max_file_bytes=10)
    upload = uploads.create(site.team_id)
    asyncio.run(uploads.write(site.team_id, upload.id, "a", 0, pieces(b"0123456789")))
    with pytest.raises(errors.TooLarge):
        asyncio.run(uploads.write(site.team_id, upload.id, "a", 10, pieces(b"x")))
    monkeypatch.setattr(uploads_module, "MAX_FILES", 1)
    with pytest.raises(errors.InvalidInput, match="at most 1 file"):
        asyncio.run(uploads.write(site.team_id, upload.id, "b", 0, pieces(b"x")))
    assert uploads.find(site.team_id, upload.id).files == {"a": 10}


def test_a_team_has_a_largest_number_of_uploads(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "MAX_UPLOADS_PER_TEAM", 1)
    site.uploads.create(site.team_id)
    with pytest.raises(errors.QuotaExceeded):
        site.uploads.create(site.team_id)
    assert site.uploads.create(site.other_id).files == {}


def test_what_arrived_before_the_client_left_stays(site: Site) -> None:
    upload = site.uploads.create(site.team_id)

    async def broken() -> AsyncIterator[bytes]:
        yield b"first"
        raise errors.Cancelled("the client went away")

    with pytest.raises(errors.Cancelled):
        asyncio.run(site.uploads.write(site.team_id, upload.id, "a", 0, broken()))
    assert site.uploads.find(site.team_id, upload.id).files == {"a": 5}
    assert write(site, upload.id, "a", b" second", 5) == {"a": 12}


def test_a_cancelled_writer_finishes_its_piece_before_it_lets_go(site: Site) -> None:
    upload = site.uploads.create(site.team_id)
    piece = b"x" * WRITE_BYTES

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield piece

    async def story() -> None:
        writing = asyncio.create_task(
            site.uploads.write(site.team_id, upload.id, "a", 0, endless())
        )
        while not site.uploads.find(site.team_id, upload.id).files.get("a"):
            await asyncio.sleep(0.005)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing

    asyncio.run(story())
    size = site.uploads.find(site.team_id, upload.id).files["a"]
    assert size % len(piece) == 0
    site.uploads.remove(site.team_id, upload.id)  # nothing holds its lock any more


def test_while_a_file_is_written_nobody_else_writes_it_or_takes_it(site: Site) -> None:
    upload = site.uploads.create(site.team_id)

    async def story() -> None:
        go_on = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"x"
            await go_on.wait()

        writing = asyncio.create_task(site.uploads.write(site.team_id, upload.id, "a", 0, slow()))
        while "a" not in site.uploads.find(site.team_id, upload.id).files:
            await asyncio.sleep(0.005)
        with pytest.raises(errors.Conflict, match="in use"):
            await site.uploads.write(site.team_id, upload.id, "a", 0, pieces(b"y"))
        with pytest.raises(errors.Conflict, match="in use"):
            site.uploads.take(site.team_id, upload.id, site.folder / "target")
        await site.uploads.write(site.team_id, upload.id, "b", 0, pieces(b"other file"))
        go_on.set()
        await writing

    asyncio.run(story())
    site.uploads.take(site.team_id, upload.id, site.folder / "target")
    with pytest.raises(errors.NotFound):
        write(site, upload.id, "a", b"late", 1)
    assert not (site.folder / "uploads" / upload.id).exists()


def test_an_upload_of_another_team_is_not_there(site: Site) -> None:
    upload = site.uploads.create(site.team_id)
    for upload_id in (upload.id, "up_none", "../uploads", "", "a\0"):
        with pytest.raises(errors.NotFound):
            site.uploads.find(site.other_id, upload_id)
        with pytest.raises(errors.NotFound):
            site.uploads.remove(site.other_id, upload_id)
        with pytest.raises(errors.NotFound):
            site.uploads.take(site.other_id, upload_id, site.folder / "target")


def test_old_uploads_are_swept_unless_an_import_waits_for_them(site: Site) -> None:
    old, waiting, young = (site.uploads.create(site.team_id).id for _ in range(3))
    for upload_id in (old, waiting):
        folder = site.folder / "uploads" / upload_id
        for path in (folder, folder / "files", folder / "upload.json"):
            os.utime(path, (0, 0))
    assert site.uploads.sweep([waiting]) == 1
    assert {each.name for each in Path(site.folder / "uploads").iterdir()} == {waiting, young}
