"""The n-th call to the disk fails, for every n: nothing acknowledged is lost, and it recovers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.storage.disk import run_on_disk

LOOP = """
import asyncio, errno, shutil
from sqlalchemy import insert, select, text
from wherry import errors
from wherry.storage.database import Database
from wherry.storage.segment import list_segments, read_segment
from wherry.storage.tables import ledger as ledger_table, teams

migrated, stride, how_many = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

def every_nth(story):
    # one call after the other fails, until the story has no more calls that could
    fired = 0
    for error in (errno.EIO, errno.ENOSPC):
        nth = 1
        while True:
            work = folder / "work"
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(migrated, work)
            try:
                did_fail = story(work, lambda: fail(nth, error, how_many))
            except BaseException:
                fail(0, 0)
                print(f"the {nth}th call fails with {errno.errorcode[error]}", file=sys.stderr)
                raise
            fail(0, 0)
            if not did_fail:
                break
            fired += 1
            nth += stride
    print(fired)

def disarm():
    count = failed()
    fail(0, 0)
    return count
"""

JOURNAL = """
from wherry.accounts.ledger import Ledger
from wherry.storage import journal
from wherry.storage.journal import JournalWriter, OutcomeRecord
journal.PROBE_SECONDS = 0.02

def story(work, arm):
    async def run():
        acknowledged, refused, at_start = [], [], 0
        arm()
        try:
            writer = JournalWriter(
                work / "journal", "g", durability=DURABILITY, segment_bytes=600, ballast_bytes=3000
            )
        except errors.Unavailable as error:
            assert "journal cannot be written" in error.message
            at_start = disarm()
            assert at_start
            writer = JournalWriter(work / "journal", "g", durability=DURABILITY)
        def append(number):
            def told(error):
                (acknowledged if error is None else refused).append(number)
                assert error is None or "journal" in error.message or "segment" in error.message
            writer.append(OutcomeRecord(f"req-{number:03d}", 1.0, "team", "key", "model"), told)
        for number in range(14):
            append(number)
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.03)  # the sync of mode `process`
        did_fail = at_start or disarm()
        for _ in range(500):
            if writer.healthy:
                break
            await asyncio.sleep(0.01)
        assert writer.healthy, "it does not recover by itself"
        append(99)
        await writer.close()
        assert len(acknowledged) + len(refused) == 15, "somebody was never told"
        assert 99 in acknowledged
        found = [r.request_id for p in list_segments(work / "journal") for r, _ in read_segment(p)]
        assert len(found) == len(set(found))
        assert {f"req-{n:03d}" for n in acknowledged} <= set(found), "an acknowledged one is lost"
        return did_fail
    return asyncio.run(run())

every_nth(story)
"""

DATABASE = """
def story(work, arm):
    database = Database.for_folder(work)
    done = []
    arm()
    for number in range(5):
        try:
            with database.write() as connection:
                for part in "ab":
                    name = f"{number}{part}"
                    connection.execute(insert(teams).values(id=name, name=name, created_at=1.0))
            done.append(number)
        except errors.Unavailable as error:
            assert "database cannot be used" in error.message
    did_fail = disarm()
    with database.write() as connection:
        connection.execute(insert(teams).values(id="last", name="last", created_at=1.0))
    database.close()
    database = Database.for_folder(work)
    with database.read() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
        names = set(connection.execute(select(teams.c.name)).scalars())
    database.close()
    for number in range(5):
        parts = {f"{number}a", f"{number}b"} & names
        assert len(parts) in (0, 2), "half a transaction"
        assert parts or number not in done, "a committed transaction is lost"
    assert "last" in names
    return did_fail

every_nth(story)
"""

LEDGER = """
from wherry.accounts.ledger import Ledger
from wherry.storage.segment import OutcomeRecord, Segment, encode_frame

def story(work, arm):
    segment = Segment(work / "journal" / "g")
    segment.append([
        encode_frame(OutcomeRecord(f"req-{n:04d}", 1.0, "team", "key", "model")) for n in range(600)
    ])
    segment.close()
    database = Database.for_folder(work)
    ledger = Ledger(database, work / "journal", retention_seconds=0)
    arm()
    try:
        ledger.ingest()
    except errors.Unavailable as error:
        assert "database cannot be used" in error.message
    except OSError:
        pass  # a segment that could not be removed: the next turn does
    did_fail = disarm()
    ledger.ingest()
    with database.read() as connection:
        found = connection.execute(select(ledger_table.c.request_id)).scalars().all()
    database.close()
    assert len(found) == len(set(found)) == 600
    return did_fail

every_nth(story)
"""

VERSIONS = """
import io, tempfile
from wherry.models.bundle import Manifest
from wherry.models.registry.registry import Registry
from wherry.models.trust.materialise import materialise
from wherry.storage.blobs import LocalBlobs

def story(work, arm):
    database = Database.for_folder(work)
    manifest = Manifest(task="tensor", runtime="onnx", files=("model.onnx",), source="test")
    blobs = LocalBlobs(work / "blobs")
    registry = Registry(database, blobs, work)
    made = []
    def add(number):
        with tempfile.TemporaryDirectory() as source:
            (Path(source) / "model.onnx").write_bytes(bytes([number]) * 3000)
            made.append(registry.add_version("team_1", "echo", Path(source), manifest).number)
    arm()
    for number in range(3):
        try:
            add(number)
        except errors.Unavailable as error:
            assert "disk" in error.message or "database" in error.message, error.message
    did_fail = disarm()
    for number in range(4):
        add(number)  # those that failed are made now, those that did not stay as they are
    versions = registry.versions("team_1", "echo")
    assert {each.number for each in versions} >= set(made)
    for each in versions:
        name = f"echo@{each.number}"
        materialise(blobs, registry.version("team_1", name).files, work / "b" / str(each.number))
    database.close()
    blobs.sweep_temporary()
    assert not list((work / "blobs" / "temporary").iterdir())
    return did_fail

every_nth(story)
"""

UPLOADS = """
from wherry.jobs.uploads import Uploads

def story(work, arm):
    uploads = Uploads(work / "uploads", 1 << 20)
    async def pieces(data):
        yield data
    arm()
    size, upload = 0, None
    for _ in range(6):
        try:
            upload = upload or uploads.create("team_1")
            work_ = uploads.write("team_1", upload.id, "m.bin", size, pieces(b"x" * 1000))
            size = asyncio.run(work_).files["m.bin"]
        except errors.Unavailable as error:
            assert "disk" in error.message, error.message
        except errors.Conflict:
            pass  # some of the last try has arrived: the client asks how much
        if upload is not None:
            size = uploads.find("team_1", upload.id).files.get("m.bin", 0)
    did_fail = disarm()
    upload = upload or uploads.create("team_1")
    found = asyncio.run(uploads.write("team_1", upload.id, "m.bin", size, pieces(b"y"))).files
    assert found == {"m.bin": size + 1}
    assert size >= (6 - how_many) * 1000
    uploads.take("team_1", upload.id, work / "taken")
    assert (work / "taken" / "files" / "m.bin").read_bytes() == b"x" * size + b"y"
    return did_fail

every_nth(story)
"""

STORIES = {
    "journal, process": JOURNAL.replace("DURABILITY", "'process'"),
    "journal, power": JOURNAL.replace("DURABILITY", "'power'"),
    "database": DATABASE,
    "ledger": LEDGER,
    "versions": VERSIONS,
    "uploads": UPLOADS,
}


@pytest.fixture
def root() -> Iterator[Path]:
    """The disk, in memory: it is made anew a hundred times."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder) / "disk"


@pytest.mark.parametrize(
    ("stride", "how_many"),
    [
        (11, 1),
        pytest.param(1, 1, marks=pytest.mark.campaign),
        pytest.param(5, 3, marks=pytest.mark.campaign),
    ],
)
@pytest.mark.parametrize("story", STORIES)
def test_the_nth_call_to_the_disk_fails(
    shim: Path, root: Path, migrated: Path, story: str, stride: int, how_many: int
):
    fired = run_on_disk(
        shim,
        LOOP + STORIES[story],
        root,
        arguments=(str(migrated), str(stride), str(how_many)),
    )
    assert int(fired.split()[-1]) > 10 / stride
