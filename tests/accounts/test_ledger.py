"""Tests of the ledger: every acknowledged record once, whatever is killed, read or damaged."""

from __future__ import annotations

import itertools
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from wherry.accounts.ledger import Ledger, Totals, read_rows
from wherry.client.schema import UsageRow
from wherry.errors import InvalidInput
from wherry.storage import tables
from wherry.storage.database import Database
from wherry.storage.segment import OutcomeRecord, Segment, encode_frame, list_segments
from wherry.storage.tables import ledger as ledger_table
from wherry.storage.tables import ledger_offsets

DAY = 86_400.0


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "data" / "journal"


@pytest.fixture
def ledger(database: Database, journal: Path) -> Ledger:
    return Ledger(database, journal)


def make_record(number: int, **fields: Any) -> OutcomeRecord:
    known: dict[str, Any] = {
        "request_id": f"req-{number:06d}",
        "at": 1_700_000_000.0,
        "team_id": "team_1",
        "key_id": "key_1",
        "deployment": "sentiment",
        "model": "distilbert",
    }
    return OutcomeRecord(**(known | fields))


def write_segment(journal: Path, records: Sequence[OutcomeRecord]) -> Path:
    segment = Segment(journal / "gateway-0")
    segment.append([encode_frame(record) for record in records])
    segment.close()
    return segment.path


def ids_in(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(select(ledger_table.c.request_id).order_by("request_id")))


# ------------------------------------------------------------------------------ exactly once


def test_every_record_becomes_one_row(database: Database, ledger: Ledger, journal: Path) -> None:
    write_segment(journal, [make_record(n) for n in range(1200)])
    assert ledger.ingest() == 1200
    assert ledger.ingest() == 0
    assert ids_in(database) == [f"req-{n:06d}" for n in range(1200)]


def test_a_live_segment_is_read_as_it_grows(
    database: Database, ledger: Ledger, journal: Path
) -> None:
    segment = Segment(journal / "gateway-0")
    frames = [encode_frame(make_record(n)) for n in range(3)]
    segment.append(frames[:1])
    assert ledger.ingest() == 1
    assert ledger.ingest() == 0
    segment.append(frames[1:])
    assert ledger.ingest() == 2
    segment.close()
    with database.read() as connection:  # what was read is not read again
        offset = connection.scalar(select(ledger_offsets.c.offset))
    assert offset == segment.size


def test_while_nothing_is_written_the_database_is_left_alone(
    database: Database, journal: Path
) -> None:
    ledger = Ledger(database, journal, retention_seconds=0.0)
    segment = Segment(journal / "gateway-0")
    segment.append([encode_frame(make_record(1))])
    assert ledger.ingest() == 1
    with database.write() as connection:
        connection.execute(ledger_offsets.delete())
    assert ledger.ingest() == 0
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(ledger_offsets)) == 0
    segment.append([encode_frame(make_record(2))])
    assert ledger.ingest() == 1  # the first is in the ledger already
    segment.close()
    later = write_segment(journal, [make_record(3)])
    assert ledger.ingest() == 1  # now both are finished, and past their retention
    assert not later.exists()
    assert list_segments(journal) == []


def test_a_request_that_was_journalled_twice_counts_once(
    database: Database, ledger: Ledger, journal: Path
) -> None:
    write_segment(journal, [make_record(1, input_tokens=5), make_record(1, input_tokens=9)])
    write_segment(journal, [make_record(1, input_tokens=7), make_record(2, input_tokens=1)])
    assert ledger.ingest() == 2
    assert ledger.totals_since("team_1", 0.0) == Totals(2, 0, 6, 0, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_an_answer_takes_the_place_of_what_failed_before_by_the_same_id(
    database: Database, ledger: Ledger, journal: Path, order: tuple[int, ...]
) -> None:
    """As a line of a batch has it, which is sent again; and whatever is read first."""
    failed = [make_record(1, status=status, code="cancelled") for status in (499, 503)]
    answered = [make_record(1, input_tokens=5), make_record(1, input_tokens=5)]
    records = [*failed, *answered]
    for number in order:
        write_segment(journal, [records[number]])
        ledger.ingest()
    assert ledger.totals_since("team_1", 0.0) == Totals(1, 0, 5, 0, 0)


def test_a_lost_offset_doubles_nothing(database: Database, ledger: Ledger, journal: Path) -> None:
    write_segment(journal, [make_record(n) for n in range(10)])
    ledger.ingest()
    with database.write() as connection:
        connection.exec_driver_sql("DELETE FROM ledger_offsets")
    assert Ledger(database, journal).ingest() == 0
    assert len(ids_in(database)) == 10


def test_many_readers_at_once_double_nothing(
    database: Database, ledger: Ledger, journal: Path
) -> None:
    for start in range(0, 4000, 1000):
        write_segment(journal, [make_record(n) for n in range(start, start + 1000)])
    with ThreadPoolExecutor(4) as threads:
        added = list(threads.map(lambda _: ledger.ingest(), range(4)))
    assert sum(added) == 4000
    assert len(ids_in(database)) == 4000


def test_a_torn_segment_and_one_of_another_version_do_not_stop_the_rest(
    database: Database, ledger: Ledger, journal: Path
) -> None:
    torn = write_segment(journal, [make_record(1), make_record(2)])
    os.truncate(torn, torn.stat().st_size - 3)
    other = write_segment(journal, [make_record(3)])
    other.write_bytes(b"wherry journal 9\nwhatever")
    write_segment(journal, [make_record(4)])
    assert ledger.ingest() == 2
    assert ids_in(database) == ["req-000001", "req-000004"]


def test_damage_is_kept_as_evidence(database: Database, ledger: Ledger, journal: Path) -> None:
    path = write_segment(journal, [make_record(n) for n in range(3)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert ledger.ingest() == 2
    assert path.with_suffix(".damaged").read_bytes() == content


WRITER = """
import asyncio, sys
from pathlib import Path
from wherry.storage.journal import JournalWriter, OutcomeRecord

async def story():
    writer = JournalWriter(Path(sys.argv[1]), "gateway-0", segment_bytes=20_000)
    count = 0
    while True:
        for _ in range(20):
            request_id = f"req-{sys.argv[2]}-{count:08d}"
            count += 1
            record = OutcomeRecord(request_id, 1.0, "team_1", "key_1", "d", input_tokens=1)
            def tell(error, request_id=request_id):
                assert error is None
                sys.stdout.write(request_id + "\\n")
            writer.append(record, tell)
        await asyncio.sleep(0.001)
        sys.stdout.flush()

asyncio.run(story())
"""


def test_no_acknowledged_record_is_lost_or_doubled_by_kill_9(
    database: Database, ledger: Ledger, journal: Path
) -> None:
    acknowledged: list[str] = []
    added = 0
    for turn in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(journal), str(turn)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        acknowledged.append(writer.stdout.readline().strip())  # it runs
        for _ in range(3):
            added += ledger.ingest()  # while it is written
            time.sleep(random.uniform(0.0, 0.04))
        os.kill(writer.pid, signal.SIGKILL)
        # the last line may be cut by the kill: then nobody was told of it
        lines = writer.stdout.read().splitlines(keepends=True)
        acknowledged += [line.strip() for line in lines if line.endswith("\n")]
        writer.stdout.close()
        writer.wait(timeout=10)
    added += ledger.ingest()
    found = ids_in(database)
    assert len(acknowledged) > 100
    assert len(set(acknowledged)) == len(acknowledged)
    assert set(acknowledged) <= set(found)
    assert len(found) == added
    assert ledger.totals_since("team_1", 0.0).input_tokens == len(found)
    assert ledger.ingest() == 0


READER = """
import sys
from pathlib import Path
from wherry.accounts.ledger import Ledger
from wherry.storage.database import Database

folder = Path(sys.argv[1])
ledger = Ledger(Database.for_folder(folder), folder / "journal")
print("reading", flush=True)
while True:
    ledger.ingest()
"""


def test_a_reader_killed_in_between_loses_and_doubles_nothing(
    database: Database, ledger: Ledger, journal: Path
) -> None:
    count = 0
    for _ in range(3):
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(journal.parent)], stdout=subprocess.PIPE
        )
        assert reader.stdout is not None
        reader.stdout.readline()
        write_segment(journal, [make_record(n) for n in range(count, count + 3000)])
        count += 3000
        time.sleep(random.uniform(0.0, 0.06))
        os.kill(reader.pid, signal.SIGKILL)
        reader.stdout.close()
        reader.wait(timeout=10)
    ledger.ingest()
    assert len(ids_in(database)) == count


numbers = st.integers(0, 2**63)
texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=30)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.builds(
            OutcomeRecord,
            request_id=st.integers(0, 15).map(str),
            at=st.floats(),
            team_id=st.just("t"),
            key_id=texts,
            deployment=texts,
            version=st.integers(-(2**63), 2**63),
            code=texts,
            input_tokens=numbers,
            rows=numbers,
            total_ms=st.floats(),
        ),
        max_size=30,
    ),
    st.integers(1, 5),
)
def test_any_records_in_any_segments_become_one_row_a_request(
    records: list[OutcomeRecord], segments: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database = Database.for_folder(folder)
        database.migrate()
        ledger = Ledger(database, folder / "journal")
        for part in range(segments):
            write_segment(folder / "journal", records[part::segments])
            ledger.ingest()
        assert set(ids_in(database)) == {record.request_id for record in records}
        database.close()


def test_values_no_database_takes_are_brought_into_range() -> None:
    record = make_record(
        1, at=float("nan"), total_ms=float("inf"), rows=2**63, model="a\0b" + "m" * 999
    )
    track, alike, (values,) = read_rows(record)
    row = dict(zip(tables.ledger.c.keys(), values, strict=True))
    row |= dict(zip(tables.ledger_tracks.c.keys(), (track, *alike), strict=True))
    assert (row["at"], row["day"], row["total_ms"], row["rows"]) == (
        0.0,
        "1970-01-01",
        0.0,
        2**31 - 1,
    )
    assert row["model"].startswith("a�b")
    assert len(row["model"]) == 256


# ------------------------------------------------------------------------------ retention


def test_a_finished_segment_is_removed_after_its_retention(
    database: Database, journal: Path
) -> None:
    path = write_segment(journal, [make_record(1)])
    live = Segment(journal / "gateway-1")
    live.append([encode_frame(make_record(2))])
    for each in (path, live.path):
        os.utime(each, (time.time() - DAY, time.time() - DAY))
    Ledger(database, journal, retention_seconds=2 * DAY).ingest()
    assert path.exists()
    assert Ledger(database, journal, retention_seconds=DAY / 2).ingest() == 0
    assert list_segments(journal) == [live.path]
    live.close()
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(ledger_table)) == 2


def test_a_segment_is_never_removed_before_all_of_it_is_in_the_ledger(
    database: Database, journal: Path
) -> None:
    write_segment(journal, [make_record(n) for n in range(5)])
    assert Ledger(database, journal, retention_seconds=0.0).ingest() == 5
    assert list_segments(journal) == []
    assert len(ids_in(database)) == 5


def test_finished_segments_together_are_bounded(database: Database, journal: Path) -> None:
    paths = [write_segment(journal, [make_record(n)]) for n in range(5)]
    size = paths[0].stat().st_size
    assert Ledger(database, journal, retention_bytes=2 * size).ingest() == 5
    assert list_segments(journal) == paths[3:]


# ------------------------------------------------------------------------------ usage


@pytest.fixture
def used(ledger: Ledger, journal: Path) -> Ledger:
    write_segment(
        journal,
        [
            make_record(1, input_tokens=10, output_tokens=1),
            make_record(2, input_tokens=20, rows=3),
            make_record(3, key_id="key_2", status=500, code="model_failed"),
            make_record(4, at=1_700_000_000.0 + DAY, model="iris"),
            make_record(5, team_id="team_2", input_tokens=999),
            make_record(6, team_id="team_3", rows=1, audio_ms=1500),
            make_record(7, team_id="team_3", rows=1, audio_ms=500, characters=40),
        ],
    )
    ledger.ingest()
    return ledger


def test_usage_is_summed_by_the_groups_asked_for(used: Ledger) -> None:
    assert used.usage("team_1", by=("key",)) == [
        UsageRow(key="key_1", requests=3, input_tokens=30, output_tokens=1, rows=3),
        UsageRow(key="key_2", requests=1, errors=1),
    ]
    assert [
        (row.day, row.model, row.requests) for row in used.usage("team_1", by=("day", "model"))
    ] == [
        ("2023-11-14", "distilbert", 3),
        ("2023-11-15", "iris", 1),
    ]
    assert used.usage("team_1", by=("deployment",))[0].deployment == "sentiment"
    assert [row.requests for row in used.usage("team_1", by=())] == [4]


def test_usage_covers_both_days_named(used: Ledger) -> None:
    def count(start: str, end: str) -> int:
        return sum(row.requests for row in used.usage("team_1", start=start, end=end))

    assert count("2023-11-14", "2023-11-15") == 4
    assert count("2023-11-15", "") == 1
    assert count("", "2023-11-14") == 3
    assert count("2023-11-16", "") == 0


def test_usage_of_another_team_is_not_seen(used: Ledger) -> None:
    assert sum(row.input_tokens for row in used.usage("team_1")) == 30
    assert used.usage("team_4") == []


def test_characters_and_sound_are_summed(used: Ledger) -> None:
    (row,) = used.usage("team_3", by=())
    assert (row.rows, row.characters, row.audio_ms) == (2, 40, 2000)


def test_a_record_from_before_there_were_characters_is_read(ledger: Ledger, journal: Path) -> None:
    old = msgspec.structs.astuple(make_record(1, input_tokens=7))[:-2]
    payload = msgspec.msgpack.encode(old)
    segment = Segment(journal / "gateway-0")
    segment.append([struct.pack("<II", len(payload), crc32(payload)) + payload])
    segment.close()
    assert ledger.ingest() == 1
    (row,) = ledger.usage("team_1", by=())
    assert (row.input_tokens, row.characters, row.audio_ms) == (7, 0, 0)


def test_totals_count_from_a_time_on(used: Ledger) -> None:
    assert used.totals_since("team_1", 1_700_000_000.0 + 1) == Totals(requests=1)
    assert used.totals_since("team_1", 0) == Totals(4, 1, 30, 1, 3)
    assert used.totals_since("nobody", 0) == Totals()


@pytest.mark.parametrize(
    "query",
    [
        {"by": ("password",)},
        {"by": ("day; DROP TABLE ledger",)},
        {"start": "yesterday"},
        {"start": "2023-02-30"},
        {"end": "' OR 1=1 --"},
        {"end": "2023-1-1"},
        {"end": "２０２３-01-01"},
    ],
)
def test_queries_that_make_no_sense_are_refused(used: Ledger, query: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        used.usage("team_1", **query)
