"""The power goes after any call to the disk: what was acknowledged is there, and nothing is half."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import select, text
from tests.storage.disk import Disk, count_losses, run_on_disk

from wherry import errors
from wherry.accounts.ledger import Ledger
from wherry.jobs.uploads import Uploads
from wherry.models.registry.registry import Registry
from wherry.models.trust.materialise import materialise
from wherry.storage.blobs import LocalBlobs
from wherry.storage.database import Database
from wherry.storage.segment import Damage, list_segments, read_segment
from wherry.storage.tables import ledger, teams

WRITE_JOURNAL = """
import asyncio
from wherry.storage.journal import JournalWriter, OutcomeRecord

async def story():
    writer = JournalWriter(
        folder / "data" / "journal", "gateway-0",
        durability=DURABILITY, segment_bytes=1500, ballast_bytes=3000,
    )
    def told(error, number):
        if error is None:
            note(f"req-{number:03d}")
    for number in range(40):
        record = OutcomeRecord(f"req-{number:03d}", 1.0, "team", "key", "model", "m" * (number * 9))
        writer.append(record, lambda error, number=number: told(error, number))
        if number % 3 == 0:
            await asyncio.sleep(0.002)
    await writer.close()

asyncio.run(story())
"""

FEED_LEDGER = """
import asyncio
from wherry.accounts.ledger import Ledger
from wherry.storage.database import Database
from wherry.storage.journal import JournalWriter, OutcomeRecord

async def story():
    database = Database.for_folder(folder)
    ledger = Ledger(database, folder / "journal", retention_seconds=0)
    for start in range(3):
        writer = JournalWriter(
            folder / "journal", "gateway-0", durability="power", ballast_bytes=0, segment_bytes=700
        )
        for number in range(start * 10, start * 10 + 10):
            kept = asyncio.Event()
            def told(error, number=number, kept=kept):
                note(f"req-{number:03d}")
                kept.set()
            writer.append(OutcomeRecord(f"req-{number:03d}", 1.0, "team", "key", "model"), told)
            await kept.wait()
            if number % 4 == 0:
                ledger.ingest()
        await writer.close()
        ledger.ingest()
    database.close()

asyncio.run(story())
"""

WRITE_DATABASE = """
from sqlalchemy import insert
from wherry.storage.database import Database, bump_revision
from wherry.storage.tables import teams

for opening in range(2):
    database = Database.for_folder(folder)
    if SYNCHRONOUS:
        from sqlalchemy import event
        event.listen(
            database.engine, "connect",
            lambda connection, _: connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}"),
        )
    for number in range(opening * 10, opening * 10 + 10):
        with database.write() as connection:
            for part in "ab":
                name = f"{number:03d}{part}" + "x" * 300 * (number % 3)
                connection.execute(insert(teams).values(id=name, name=name, created_at=1.0))
            bump_revision(connection, "keys")
        note(f"{number:03d}")
    database.close()
"""

ADD_VERSIONS = """
from wherry.models.bundle import Manifest
from wherry.models.registry.registry import Registry
from wherry.models.trust.files import list_paths
from wherry.storage.blobs import LocalBlobs
from wherry.storage.database import Database

import tempfile
database = Database.for_folder(folder)
registry = Registry(database, LocalBlobs(folder / "blobs"), folder)
for number in range(4):
    with tempfile.TemporaryDirectory() as source:
        model = Path(source) / "model.onnx"
        model.write_bytes(bytes([number]) * 3000)
        (Path(source) / "labels.txt").write_text("the same in all versions")
        manifest = Manifest(
            task="tensor", runtime="onnx", files=("model.onnx", "labels.txt"), source="test"
        )
        version = registry.add_version("team_1", "echo", Path(source), manifest)
    note(f"echo@{version.number}")
database.close()
"""

UPLOAD = """
import asyncio
from wherry.jobs.uploads import Uploads

uploads = Uploads(folder / "uploads", 1 << 20)

async def pieces(data):
    for start in range(0, len(data), 700):
        yield data[start : start + 700]

for number in range(3):
    upload = uploads.create("team_1")
    note(f"{upload.id} sub/model.bin {number} 0")
    for part in range(3):
        data = bytes([number + 1]) * 2000
        asyncio.run(uploads.write("team_1", upload.id, "sub/model.bin", part * 2000, pieces(data)))
        note(f"{upload.id} sub/model.bin {number} {part * 2000 + 2000}")
"""

FIRST_START = """
from wherry.accounts.secret_files import load_pepper
from wherry.storage.database import Database
note("pepper " + load_pepper(folder / "data" / "secrets").hex())
database = Database.for_folder(folder / "data")
database.migrate()
note("ready")
database.close()
"""


@pytest.fixture
def left() -> Iterator[Path]:
    """Where what a power cut leaves is looked at: in memory, since it is made a thousand times."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder) / "left"


QUICK_AND_WHOLE = pytest.mark.parametrize(
    "share", [0.1, pytest.param(1.0, marks=pytest.mark.campaign)]
)


def record(shim: Path, folder: Path, code: str, before: Path | None = None) -> Disk:
    root, log = folder / "disk", folder / "disk.log"
    if before is not None:
        shutil.copytree(before, root)
    run_on_disk(shim, code, root, log)
    return Disk(root, log, before)


def check_journal(target: Path, acknowledged: list[str]) -> str:
    damages: list[Damage] = []
    found: list[str] = []
    for path in list_segments(target / "data" / "journal"):
        found += [entry.request_id for entry, _ in read_segment(path, on_damage=damages.append)]
    lost = sorted(set(acknowledged) - set(found))
    doubled = len(found) - len(set(found))
    return f"lost {lost}, doubled {doubled}" if lost or doubled else ""


def test_in_power_mode_no_acknowledged_record_is_lost(shim: Path, tmp_path: Path, left: Path):
    disk = record(shim, tmp_path, WRITE_JOURNAL.replace("DURABILITY", "'power'"))
    cuts, wrong = count_losses(disk, left, check_journal)
    assert len(disk.notes) == 40
    assert cuts > 10
    assert wrong == []


def test_the_model_of_the_disk_finds_the_losses_of_process_mode(
    shim: Path, tmp_path: Path, left: Path
):
    """Who acknowledges before the sync loses by a power cut: this must show, or nothing is shown."""
    disk = record(shim, tmp_path, WRITE_JOURNAL.replace("DURABILITY", "'process'"))
    _, wrong = count_losses(disk, left, check_journal)
    assert len(wrong) > 10


def check_ledger(target: Path, acknowledged: list[str]) -> str:
    database = Database.for_folder(target)
    try:
        Ledger(database, target / "journal").ingest()
        with database.read() as connection:
            found = set(connection.execute(select(ledger.c.request_id)).scalars())
    finally:
        database.close()
    lost = sorted(set(acknowledged) - found)
    return f"lost {lost}" if lost else ""


@QUICK_AND_WHOLE
def test_a_segment_leaves_the_disk_after_its_rows_are_on_it(
    shim: Path, tmp_path: Path, left: Path, migrated: Path, share: float
):
    disk = record(shim, tmp_path, FEED_LEDGER, migrated)
    cuts, wrong = count_losses(disk, left, check_ledger, share=share)
    assert len(disk.notes) == 30
    assert cuts > 10
    assert wrong == []


def check_database(target: Path, acknowledged: list[str]) -> str:
    database = Database.for_folder(target)
    try:
        with database.read() as connection:
            sound = connection.execute(text("PRAGMA integrity_check")).scalar()
            names = sorted(connection.execute(select(teams.c.name)).scalars())
    finally:
        database.close()
    if sound != "ok":
        return f"damaged: {sound}"
    parts = [name[:4] for name in names if name != "default"]
    halves = [part for part in parts if (part[:3] + "ab".replace(part[3], "")) not in parts]
    lost = sorted(set(acknowledged) - {part[:3] for part in parts})
    return f"lost {lost}, halves {halves}" if lost or halves else ""


@pytest.mark.parametrize(
    ("synchronous", "share"),
    [("", 0.1), pytest.param("", 1.0, marks=pytest.mark.campaign), ("NORMAL", 0.1)],
)
def test_a_committed_transaction_is_whole_on_the_disk(
    shim: Path, tmp_path: Path, left: Path, migrated: Path, synchronous: str, share: float
):
    code = WRITE_DATABASE.replace("SYNCHRONOUS", repr(synchronous))
    disk = record(shim, tmp_path, code, migrated)
    cuts, wrong = count_losses(disk, left, check_database, share=share)
    assert len(disk.notes) == 20
    assert cuts > 30
    if synchronous:
        assert len(wrong) > 5, "the model of the disk must find the losses of this mode"
    else:
        assert wrong == []


def check_versions(target: Path, acknowledged: list[str]) -> str:
    database = Database.for_folder(target)
    blobs = LocalBlobs(target / "blobs")
    registry = Registry(database, blobs, target)
    try:
        found = []
        for model in registry.models("team_1"):
            for version in registry.versions("team_1", model.name):
                name = f"{model.name}@{version.number}"
                files = registry.version("team_1", name).files
                materialise(blobs, files, target / "bundles" / str(version.number))
                found.append(name)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return f"{type(error).__name__}: {error}"
    finally:
        database.close()
    lost = sorted(set(acknowledged) - set(found))
    return f"lost {lost}" if lost else ""


@QUICK_AND_WHOLE
def test_a_version_is_whole_on_the_disk_or_not_there(
    shim: Path, tmp_path: Path, left: Path, migrated: Path, share: float
):
    disk = record(shim, tmp_path, ADD_VERSIONS, migrated)
    cuts, wrong = count_losses(disk, left, check_versions, share=share)
    assert disk.notes == ["echo@1", "echo@2", "echo@3", "echo@4"]
    assert cuts > 10
    assert wrong == []


def check_uploads(target: Path, acknowledged: list[str]) -> str:
    uploads = Uploads(target / "uploads", 1 << 20)
    for note in acknowledged:
        upload_id, path, number, size = note.split()
        try:
            uploads.find("team_1", upload_id)
        except errors.NotFound:
            return f"the upload of {note!r} is gone"
        expected = bytes([int(number) + 1]) * int(size)
        file = target / "uploads" / upload_id / "files" / path
        if expected and (not file.exists() or file.read_bytes()[: len(expected)] != expected):
            return f"bytes of {note!r} are gone"
    return ""


@QUICK_AND_WHOLE
def test_the_bytes_of_an_upload_are_on_the_disk_when_it_is_told(
    shim: Path, tmp_path: Path, left: Path, share: float
):
    disk = record(shim, tmp_path, UPLOAD)
    _, wrong = count_losses(disk, left, check_uploads, share=share)
    assert len(disk.notes) == 12
    assert wrong == []


def check_start(target: Path, acknowledged: list[str]) -> str:
    """What was made at the first start is there again, or the first start begins anew."""
    try:
        if acknowledged:
            pepper = (target / "data" / "secrets" / "pepper").read_bytes().hex()
            assert acknowledged[0] == f"pepper {pepper}"
        database = Database.for_folder(target / "data")
        database.migrate()
        database.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, the server would not start
        return f"{type(error).__name__}: {error}"
    return ""


@QUICK_AND_WHOLE
def test_a_first_start_that_was_cut_short_is_followed_by_another(
    shim: Path, tmp_path: Path, left: Path, share: float
):
    disk = record(shim, tmp_path, FIRST_START)
    cuts, wrong = count_losses(disk, left, check_start, share=share)
    assert disk.notes[1:] == ["ready"]
    assert cuts > 10
    assert wrong == []
