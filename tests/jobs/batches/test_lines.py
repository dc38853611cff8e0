"""The input of a batch: every line is a request or a fault with its number, whatever it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.client.batch_schema import Fault
from wherry.jobs.batches.lines import MAX_FAULTS, Line, check_lines, read_line, read_lines

GOOD = {"custom_id": "a", "method": "POST", "url": "/predict/iris", "body": {"row": [1]}}


def lines_of(*custom_ids: str) -> bytes:
    return b"".join(json.dumps({**GOOD, "custom_id": each}).encode() + b"\n" for each in custom_ids)


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_are_a_line_or_a_fault_that_says_why(text: bytes):
    found = read_line(text, 7)
    if isinstance(found, Fault):
        assert found.message
        assert found.line == 7
    else:
        assert found.number == 7


def test_a_body_is_handed_on_as_it_came():
    body = b'{"row": [1.10, 1e400, "\\u00e9"],  "deep": ' + b"[" * 500 + b"]" * 500 + b"}"
    text = json.dumps({**GOOD, "body": 0}).encode().replace(b'"body": 0', b'"body": ' + body)
    found = read_line(text, 1)
    assert isinstance(found, Line)
    assert bytes(found.body) == body


def test_lines_keep_the_numbers_that_an_editor_shows(tmp_path: Path):
    path = tmp_path / "in"
    path.write_bytes(
        b"\n" + lines_of("a") + b"  \r\n" + lines_of("b") + b"bad\n" + lines_of("c")[:-1]
    )
    found = list(read_lines(path, 1000))
    assert [each.line if isinstance(each, Fault) else each.number for each in found] == [2, 4, 5, 6]
    checked = check_lines(path, "*", 10, 1000)
    assert (checked.total, [fault.line for fault in checked.faults]) == (3, [5])


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_lines_than_allowed(tmp_path: Path, most: int):
    path = tmp_path / "in"
    path.write_bytes(lines_of("a", "b"))
    faults = check_lines(path, "*", most, 1000).faults
    assert [fault.code for fault in faults] == (["too_many_requests"] if most == 1 else [])


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path):
    path = tmp_path / "in"
    path.write_bytes(lines_of("a") + b"x" * 100_000)
    faults = check_lines(path, "*", 10, 1000).faults
    assert [(fault.code, fault.line) for fault in faults] == [("line_too_long", 2)]


def test_faults_are_bounded(tmp_path: Path):
    path = tmp_path / "in"
    path.write_bytes(b"bad\n" * 10_000)
    assert len(check_lines(path, "*", 100_000, 1000).faults) == MAX_FAULTS
