"""What is done of a batch, cut anywhere: a line is whole in it or not in it at all, and once."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.errors import Conflict
from wherry.jobs.batches.progress import ProgressFile, Record


def record(number: int, *, is_failed: bool = False) -> Record:
    return Record(number, is_failed, msgspec.Raw(json.dumps({"n": number}).encode()))


def write(path: Path, count: int) -> bytes:
    progress = ProgressFile(path)
    for number in range(1, count + 1):
        progress.append(record(number, is_failed=number % 3 == 0))
    progress.close()
    return path.read_bytes()


def test_what_was_written_is_found_again(tmp_path: Path):
    write(tmp_path / "p", 7)
    progress = ProgressFile(tmp_path / "p")
    assert sorted(progress.ended) == list(range(1, 8))
    assert (progress.completed, progress.failed) == (5, 2)
    assert progress.entry(3) == b'{"n": 3}'
    assert progress.entry(8) is None
    progress.close()


def test_a_record_that_is_cut_anywhere_is_computed_again(tmp_path: Path):
    path = tmp_path / "p"
    whole = write(path, 4)
    ends = [position + 1 for position, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        progress = ProgressFile(path)
        done = sum(end <= cut for end in ends)
        assert sorted(progress.ended) == list(range(1, done + 1))
        for number in range(done + 1, 5):
            progress.append(record(number, is_failed=number % 3 == 0))
        progress.close()
        assert path.read_bytes() == whole


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_what_a_power_cut_made_of_the_end_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path = tmp_path_factory.mktemp("progress") / "p"
    whole = write(path, 5)
    start = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:start] + b"\0" * (len(whole) - start))
    progress = ProgressFile(path)
    for number, place in progress.ended.items():
        assert progress.entry(number) == json.dumps({"n": number}).encode()
        assert place.is_failed == (number % 3 == 0)
    progress.close()


def test_a_line_that_ended_twice_counts_once_and_the_first_stays(tmp_path: Path):
    progress = ProgressFile(tmp_path / "p")
    progress.append(Record(1, False, msgspec.Raw(b'"first"')))
    progress.append(Record(1, True, msgspec.Raw(b'"second"')))
    for _ in range(2):
        assert (progress.completed, progress.failed, progress.entry(1)) == (1, 0, b'"first"')
        progress.close()
        progress = ProgressFile(tmp_path / "p")
    progress.close()


def test_two_runners_never_write_at_once(tmp_path: Path):
    progress = ProgressFile(tmp_path / "p")
    with pytest.raises(Conflict):
        ProgressFile(tmp_path / "p")
    progress.close()
    ProgressFile(tmp_path / "p").close()
