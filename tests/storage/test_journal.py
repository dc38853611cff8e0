"""Tests of the journal: its writer, and the segments it leaves."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wherry.errors import InvalidInput, Unavailable
from wherry.storage.journal import Durability, JournalWriter, OutcomeRecord, read_segment
from wherry.storage.segment import (
    MAGIC,
    MAX_ANSWERS,
    MAX_RECORD_BYTES,
    Damage,
    Segment,
    Stamp,
    encode_frame,
    is_live,
    list_segments,
    remove_segment,
)


def make_record(number: int = 0, **fields: Any) -> OutcomeRecord:
    return OutcomeRecord(f"req-{number:06d}", 1.5, "team_1", "key_1", "sentiment", **fields)


def ids_in(path: Path) -> list[str]:
    return [record.request_id for record, _ in read_segment(path)]


def ids_below(folder: Path) -> list[str]:
    return [each for path in list_segments(folder) for each in ids_in(path)]


async def append(writer: JournalWriter, record: OutcomeRecord) -> None:
    """Append one record and wait for it; raises the error that its callback got."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(error: Unavailable | None) -> None:
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    writer.append(record, settle)
    await future


async def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


# ------------------------------------------------------------------------------ the writer


@pytest.mark.parametrize("durability", ["process", "power"])
def test_every_record_is_read_back_in_order(tmp_path: Path, durability: Durability) -> None:
    async def story() -> None:
        writer = JournalWriter(tmp_path, "gateway-0", durability=durability)
        await asyncio.gather(*(append(writer, make_record(n)) for n in range(50)))
        await append(writer, make_record(50, status=500, code="model_failed", input_tokens=7))
        assert ids_in(writer.segment_path) == [f"req-{n:06d}" for n in range(51)]
        assert writer.records == 51
        await writer.close()

    run(story)
    records = [record for record, _ in read_segment(list_segments(tmp_path)[0])]
    assert records[-1] == make_record(50, status=500, code="model_failed", input_tokens=7)


def test_a_record_is_in_the_file_when_its_callback_is_called(tmp_path: Path) -> None:
    async def story() -> None:
        writer = JournalWriter(tmp_path, "gateway-0")
        seen: list[list[str]] = []
        writer.append(make_record(1), lambda _: seen.append(ids_in(writer.segment_path)))
        assert seen == []  # never called from inside `append`
        await wait_until(lambda: bool(seen))
        assert seen == [["req-000001"]]
        await writer.close()

    run(story)


def test_records_of_one_tick_leave_in_one_write(tmp_path: Path) -> None:
    async def story() -> None:
        writer = JournalWriter(tmp_path, "gateway-0")
        done: list[int] = []
        for number in range(100):
            writer.append(make_record(number), lambda _, n=number: done.append(n))
        await asyncio.sleep(0)  # the write is the next thing the loop does
        assert done == list(range(100))
        await writer.close()

    run(story)


def test_in_process_mode_the_disk_has_it_soon_after(tmp_path: Path) -> None:
    async def story() -> None:
        writer = JournalWriter(tmp_path, "gateway-0")
        await append(writer, make_record(1))
        assert writer.syncs == 0
        await wait_until(lambda: writer.syncs == 1, seconds=1)
        await append(writer, make_record(2))
        await wait_until(lambda: writer.syncs == 2, seconds=1)
        await writer.close()

    run(story)


def test_in_power_mode_the_disk_has_it_first_and_batches_gather(tmp_path: Path) -> None:
    async def story() -> None:
        writer = JournalWriter(tmp_path, "gateway-0", durability="power")
        syncs_at_callback: list[int] = []
        for number in range(200):
            writer.append(make_record(number), lambda _: syncs_at_callback.append(writer.syncs))
            if number % 50 == 0:
                await asyncio.sleep(0)
        await wait_until(lambda: len(syncs_at_callback) == 200)
        assert min(syncs_at_callback) == 1
        assert writer.syncs <= 4  # not one a record
        await writer.close()

    run(story)


def test_files_are_private_and_a_live_segment_is_known(tmp_path: Path) -> None:
    async def story() -> None:
        writer = JournalWriter(tmp_path / "journal", "gateway-0")
        path = writer.segment_path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert is_live(path)
        assert not remove_segment(path)
        await writer.close()
        assert not is_live(path)
        assert remove_segment(path)
        assert not path.exists()

    run(story)


def test_each_start_opens_a_later_segment(tmp_path: Path) -> None:
    async def story() -> None:
        first = JournalWriter(tmp_path, "gateway-0")
        second = JournalWriter(tmp_path, "gateway-0")
        assert list_segments(tmp_path) == [first.segment_path, second.segment_path]
        await first.close()
        await second.close()

    run(story)


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_full_segment_is_followed_by_another(tmp_path: Path, durability: Durability) -> None:
    async def story() -> None:
        writer = JournalWriter(tmp_path, "g", durability=durability, segment_bytes=2000)
        for number in range(300):
            await append(writer, make_record(number))
            if number % 20 == 0:
                await asyncio.sleep(0.005)
        await writer.close()

    run(story)
    assert len(list_segments(tmp_path)) > 2
    assert ids_below(tmp_path) == [f"req-{n:06d}" for n in range(300)]
    assert not any(is_live(path) for path in list_segments(tmp_path))


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    async def story() -> None:
        writer = JournalWriter(tmp_path, "g", durability="power")
        told: list[object] = []
        for number in range(10):
            writer.append(make_record(number), told.append)
        await writer.close()
        assert told == [None] * 10
        with pytest.raises(Unavailable):
            await append(writer, make_record(11))
        assert not writer.healthy

    run(story)
    assert len(ids_below(tmp_path)) == 10


def test_a_failing_reply_does_not_hold_back_the_others(tmp_path: Path) -> None:
    async def story() -> None:
        writer = JournalWriter(tmp_path, "g")
        told: list[object] = []

        def fail(_: Unavailable | None) -> None:
            raise ConnectionError("the client is gone")

        writer.append(make_record(1), fail)
        writer.append(make_record(2), told.append)
        await wait_until(lambda: told == [None])
        await writer.close()

    run(story)


@pytest.mark.parametrize(
    "fields",
    [{"model": "m" * 70_000}, {"rows": 1 << 70}, {"model": "\ud800"}],
    ids=["too long", "too large a number", "not text"],
)
def test_a_record_that_cannot_be_kept_is_told(tmp_path: Path, fields: dict[str, Any]) -> None:
    async def story() -> None:
        writer = JournalWriter(tmp_path, "g")
        with pytest.raises(Unavailable):
            await append(writer, make_record(1, **fields))
        await append(writer, make_record(2))  # the journal itself is well
        assert writer.healthy
        await writer.close()

    run(story)


# ------------------------------------------------------------------------------ a bad disk


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Sets how large this process's files may grow: the next byte is refused with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_refused_write_leaves_whole_records_and_recovers(
    tmp_path: Path, file_limit: Callable[[int], None], durability: Durability
) -> None:
    async def story() -> None:
        writer = JournalWriter(tmp_path, "g", durability=durability)
        first = writer.segment_path
        size_limit = 2 << 20  # the ballast fits, so that only the segment is cut
        kept: list[int] = []
        lost: list[int] = []
        file_limit(size_limit)
        pad = "m" * 60_000
        for number in range(50):
            writer.append(
                make_record(number, model=pad),
                lambda error, n=number: (kept if error is None else lost).append(n),
            )
        await wait_until(lambda: len(kept) + len(lost) == 50)
        assert kept == list(range(len(kept)))
        assert 30 < len(kept) < 40
        assert first.stat().st_size <= size_limit
        assert ids_in(first) == [f"req-{n:06d}" for n in kept]
        assert first.stat().st_size == list(read_segment(first))[-1][1]  # nothing torn
        assert writer.failures == 1
        await wait_until(lambda: writer.healthy)  # in a new segment, by itself
        await append(writer, make_record(99))
        assert writer.segment_path != first
        assert ids_in(writer.segment_path) == ["req-000099"]
        await writer.close()

    run(story)


def test_while_it_cannot_recover_it_says_so(
    tmp_path: Path, file_limit: Callable[[int], None]
) -> None:
    async def story() -> None:
        writer = JournalWriter(tmp_path, "g")
        file_limit(1)
        with pytest.raises(Unavailable, match="cannot be written"):
            await append(writer, make_record(1))
        assert not writer.healthy
        assert writer.error is not None
        await asyncio.sleep(0.05)
        assert not writer.healthy
        file_limit(1 << 30)
        await wait_until(lambda: writer.healthy)
        assert writer.error is None
        await append(writer, make_record(2))
        await writer.close()

    run(story)
    assert ids_below(tmp_path) == ["req-000002"]


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_failed_sync_is_told_and_its_segment_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    real_sync, broken = os.fdatasync, [True]

    def sync(fd: int) -> None:
        if broken[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real_sync(fd)

    async def story() -> None:
        writer = JournalWriter(tmp_path, "g", durability=durability)
        first = writer.segment_path
        monkeypatch.setattr(os, "fdatasync", sync)
        if durability == "power":  # nobody may be told that the disk has it
            with pytest.raises(Unavailable):
                await append(writer, make_record(1))
        else:
            await append(writer, make_record(1))
        await wait_until(lambda: writer.failures == 1)
        broken[0] = False
        await wait_until(lambda: writer.healthy)
        await append(writer, make_record(2))
        assert writer.segment_path != first
        assert ids_in(writer.segment_path) == ["req-000002"]
        await writer.close()

    run(story)


def test_in_power_mode_no_reply_leaves_before_the_sync_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_sync, happened = os.fdatasync, list[str]()

    def sync(fd: int) -> None:
        real_sync(fd)
        happened.append("synced")

    async def story() -> None:
        writer = JournalWriter(tmp_path, "g", durability="power")
        monkeypatch.setattr(os, "fdatasync", sync)
        for number in range(3):
            writer.append(make_record(number), lambda _: happened.append("replied"))
            await wait_until(lambda n=number: happened.count("replied") == n + 1)
        assert happened == ["synced", "replied"] * 3
        await writer.close()

    run(story)


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "g").write_text("a file is in the way")

    async def story() -> None:
        with pytest.raises(Unavailable):
            JournalWriter(tmp_path, "g")

    run(story)


FULL_DISK_STORY = """
import asyncio, os, sys
from pathlib import Path
from wherry.storage.journal import JournalWriter, OutcomeRecord
from wherry.storage.segment import list_segments, read_segment

folder = Path(sys.argv[1])

async def story():
    writer = JournalWriter(folder, "g", ballast_bytes=200_000)
    def fill():
        with open(folder / "filler", "ab", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
    fill()
    told = []
    for number in range(500):
        pad = "m" * 100
        writer.append(OutcomeRecord(f"req-{number}", 0.0, "t", "k", "d", pad), told.append)
    await asyncio.sleep(0.01)
    assert told == [None] * 500, [each for each in told if each][:1]
    assert not writer.healthy, "in-flight records used the ballast: nothing new may start"
    os.unlink(folder / "filler")
    for _ in range(300):
        if writer.healthy:
            break
        await asyncio.sleep(0.01)
    assert writer.healthy
    writer.append(OutcomeRecord("last", 0.0, "t", "k", "d"), told.append)
    await writer.close()
    assert told[-1] is None
    found = [record.request_id for path in list_segments(folder) for record, _ in read_segment(path)]
    assert found == [f"req-{n}" for n in range(500)] + ["last"], len(found)
    print("kept", len(found))

asyncio.run(story())
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare to mount a small disk")
def test_the_ballast_keeps_room_for_requests_in_flight_on_a_full_disk(tmp_path: Path) -> None:
    script = tmp_path / "story.py"
    script.write_text(FULL_DISK_STORY)
    mount = tmp_path / "disk"
    mount.mkdir()
    command = f'mount -t tmpfs -o size=1m none "{mount}" || exit 77; exec "$0" "{script}" "{mount}"'
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("this system does not let a test mount a small disk")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "kept 501\n"


# ------------------------------------------------------------------------------ reading


def write_segment(folder: Path, count: int) -> Path:
    segment = Segment(folder)
    assert segment.append([encode_frame(make_record(n)) for n in range(count)]) == (count, None)
    segment.close()
    return segment.path


def test_reading_goes_on_from_an_offset(tmp_path: Path) -> None:
    path = write_segment(tmp_path, 5)
    offsets = [offset for _, offset in read_segment(path)]
    assert [record.request_id for record, _ in read_segment(path, offsets[2])] == [
        "req-000003",
        "req-000004",
    ]
    assert list(read_segment(path, offsets[-1])) == []
    assert list(read_segment(path, 10**9)) == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_torn_tail_ends_the_reading_quietly(tmp_path: Path, data: st.DataObject) -> None:
    path = write_segment(tmp_path, 4)
    content = path.read_bytes()
    ends = [len(MAGIC), *(offset for _, offset in read_segment(path))]
    size = data.draw(st.integers(0, len(content)))
    tail = data.draw(st.sampled_from([b"", b"\0" * 40, b"\xff" * 40, os.urandom(40)]))
    torn = content[:size] + (tail if size >= len(MAGIC) else b"")
    path.write_bytes(torn)
    damages: list[Damage] = []
    found = [offset for _, offset in read_segment(path, on_damage=damages.append)]
    # A tail of zeros completes a record that ends in zeros.
    assert found == [end for end in ends[1:] if torn[:end] == content[:end]]
    assert damages == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damage_in_the_middle_is_reported_and_costs_only_its_record(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = write_segment(tmp_path, 6)
    ends = [len(MAGIC), *(offset for _, offset in read_segment(path))]
    victim = data.draw(st.integers(0, 4))
    position = data.draw(st.integers(ends[victim], ends[victim + 1] - 1))
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    damages: list[Damage] = []
    found = [record.request_id for record, _ in read_segment(path, on_damage=damages.append)]
    assert found == [f"req-{n:06d}" for n in range(6) if n != victim]
    assert damages == [Damage(path, ends[victim], ends[victim + 1] - ends[victim])]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=400))
def test_any_bytes_after_the_first_line_are_read_without_an_error(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "any.journal"
    path.write_bytes(MAGIC + content)
    assert list(read_segment(path, on_damage=lambda _: None)) == []


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    path.write_bytes(b"wherry journal 3\n" + b"whatever")
    with pytest.raises(InvalidInput):
        list(read_segment(path))


def test_a_record_with_fields_of_a_newer_version_is_read(tmp_path: Path) -> None:
    newer = [*msgspec.to_builtins(make_record(3)), "a field of tomorrow", 17]
    payload = msgspec.msgpack.encode(newer)
    segment = Segment(tmp_path)
    segment.append(
        [len(payload).to_bytes(4, "little") + crc32(payload).to_bytes(4, "little") + payload]
    )
    segment.close()
    assert [record for record, _ in read_segment(segment.path)] == [make_record(3)]


def test_a_spoiled_segment_is_not_written_again(tmp_path: Path) -> None:
    segment = Segment(tmp_path)
    segment.is_spoiled = True
    count, error = segment.append([encode_frame(make_record(1))])
    assert count == 0
    assert isinstance(error, OSError)
    assert ids_in(segment.path) == []
    segment.close()


def test_removing_a_segment_that_is_gone_succeeds(tmp_path: Path) -> None:
    assert remove_segment(tmp_path / "gone.journal")
    assert not is_live(tmp_path / "gone.journal")


# ------------------------------------------------------------------------------ stamps

TEXTS = st.text(max_size=40)
COUNTS = st.integers(0, 2**48)
FLOATS = st.floats(0, 1e9)
ALIKE = ("team_1", "key_1", "chat", "small", 1, "sha256:1", "openai", "text-generation")


def make_answers(*numbers: int) -> list[Any]:
    return [(f"req-{n:06d}", 1.5, n, 0, 1, 0.5, 1.5, 2.0, 1) for n in numbers]


@given(
    st.tuples(TEXTS, TEXTS, TEXTS, TEXTS, st.integers(0, 2**40), TEXTS, TEXTS, TEXTS),
    st.lists(
        st.tuples(TEXTS, FLOATS, COUNTS, COUNTS, COUNTS, FLOATS, FLOATS, FLOATS, st.integers(1, 9)),
        min_size=1,
        max_size=9,
    ),
)
def test_answers_of_one_frame_are_the_records_that_they_stand_for(
    alike: Any, answers: list[Any]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        segment = Segment(Path(name) / "gateway-0")
        segment.append([Stamp(alike).frame(answers)])
        segment.close()
        found = [record for record, _ in read_segment(segment.path)]
    assert found == [
        OutcomeRecord(each[0], each[1], *alike, 200, "", *each[2:]) for each in answers
    ]


def test_who_stops_within_a_frame_of_answers_sees_them_again(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "gateway-0")
    segment.append([encode_frame(make_record(1)), Stamp(ALIKE).frame(make_answers(2, 3, 4))])
    segment.append([encode_frame(make_record(5))])
    seen = [(record.request_id, offset) for record, offset in read_segment(segment.path)]
    assert [each for each, _ in seen] == [f"req-{n:06d}" for n in (1, 2, 3, 4, 5)]
    assert seen[0][1] == seen[1][1] == seen[2][1] < seen[3][1] < seen[4][1]
    again = [record.request_id for record, _ in read_segment(segment.path, seen[1][1])]
    assert again == [f"req-{n:06d}" for n in (2, 3, 4, 5)]
    segment.close()


def test_a_torn_frame_of_answers_is_none_of_them(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "gateway-0")
    whole, torn = (Stamp(ALIKE).frame(make_answers(*ns)) for ns in ((1, 2), (3, 4)))
    segment.append([whole, torn])
    segment.close()
    content = segment.path.read_bytes()
    for size in range(len(content) - len(torn), len(content)):
        segment.path.write_bytes(content[:size])
        assert ids_in(segment.path) == ["req-000001", "req-000002"]


def test_segments_of_version_1_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.journal"
    path.write_bytes(b"wherry journal 1\n" + encode_frame(make_record(7)))
    assert ids_in(path) == ["req-000007"]


def test_a_frame_of_very_many_answers_is_refused_before_it_is_too_long() -> None:
    answers = make_answers(*range(MAX_ANSWERS))
    assert len(Stamp(ALIKE).frame(answers)) < MAX_RECORD_BYTES
    with pytest.raises(InvalidInput):
        Stamp(ALIKE).frame(answers * 10)
