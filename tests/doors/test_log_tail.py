"""Following a log: from its last lines, across rotations, and again from where one stopped."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from wherry.control import logs
from wherry.control.logs import WorkerLogs
from wherry.doors.log_tail import LogTail

NAME = "default/d"


def texts(found: list[tuple[str, bytes]]) -> list[str]:
    return [msgspec.json.decode(line)["text"] for _, line in found]


def test_the_last_lines_come_first_then_the_new_ones(tmp_path: Path) -> None:
    log = WorkerLogs(tmp_path)
    for number in range(5):
        log.note(NAME, "w", f"line {number}")
    tail = LogTail(log.path(NAME), 2)
    assert texts(tail.read()) == ["line 3", "line 4"]
    assert tail.read() == []
    log.note(NAME, "w", "line 5")
    assert texts(tail.read()) == ["line 5"]


def test_a_line_that_is_still_written_waits(tmp_path: Path) -> None:
    log = WorkerLogs(tmp_path)
    log.note(NAME, "w", "whole")
    with log.path(NAME).open("ab") as file:
        file.write(b'{"at":1,')
    tail = LogTail(log.path(NAME), 10)
    assert texts(tail.read()) == ["whole"]
    with log.path(NAME).open("ab") as file:
        file.write(b'"worker":"w","text":"late"}\n')
    assert texts(tail.read()) == ["late"]


def test_a_reader_goes_on_where_it_stopped(tmp_path: Path) -> None:
    log = WorkerLogs(tmp_path)
    for number in range(3):
        log.note(NAME, "w", f"line {number}")
    position = LogTail(log.path(NAME), 2).read()[0][0]
    assert texts(LogTail(log.path(NAME), 0, position).read()) == ["line 2"]


def test_nothing_is_lost_when_the_log_is_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 300)
    log = WorkerLogs(tmp_path)
    tail = LogTail(log.path(NAME), 1)
    seen: list[str] = []
    for number in range(20):
        log.note(NAME, "w", f"line {number}")
        seen += texts(tail.read())
    assert seen == [f"line {number}" for number in range(20)]
    position = LogTail(log.path(NAME), 1).read()[0][0]
    for number in range(20, 24):
        log.note(NAME, "w", f"line {number}")
    again = texts(LogTail(log.path(NAME), 0, position).read())
    assert again == [f"line {number}" for number in range(20, 24)]


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    log = WorkerLogs(tmp_path)
    tail = LogTail(log.path(NAME), 10)
    assert tail.read() == []
    log.note(NAME, "w", "first")
    assert texts(tail.read()) == ["first"]


@pytest.mark.parametrize("position", ["", "x", "999999999-5", "1-", "-1-1"])
def test_a_position_that_is_none_begins_at_the_end(tmp_path: Path, position: str) -> None:
    log = WorkerLogs(tmp_path)
    for number in range(3):
        log.note(NAME, "w", f"line {number}")
    assert texts(LogTail(log.path(NAME), 1, position).read()) == ["line 2"]
