"""The checker itself: what it must not let pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.faults.checker import check_answers, check_books, failed
from tests.faults.load import Entry
from tests.faults.oracle import expected_answer

from wherry.accounts.ledger import Ledger
from wherry.storage.database import Database
from wherry.storage.segment import OutcomeRecord, Segment, encode_frame


def entry(nonce: int = 7, version: int = 1, **changes: object) -> Entry:
    made = Entry(
        nonce,
        "oracle",
        0.0,
        status=200,
        request_id=f"req-{nonce}",
        version=f"oracle@{version}",
        answer=[expected_answer(nonce, version), version],
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def write_books(data: Path, *records: OutcomeRecord, into_ledger: bool = True) -> None:
    data.mkdir(parents=True, exist_ok=True)
    database = Database.for_folder(data)
    database.migrate()
    segment = Segment(data / "journal" / "gateway-0")
    segment.append([encode_frame(record) for record in records])
    segment.close()
    if into_ledger:
        Ledger(database, data / "journal").ingest()
    database.close()


def record(nonce: int = 7, **changes: object) -> OutcomeRecord:
    fields: dict[str, object] = {
        "request_id": f"req-{nonce}",
        "at": 1_790_000_000.0,
        "team_id": "t",
        "key_id": "k",
        "deployment": "oracle",
        "model": "oracle",
        "version": 1,
    }
    return OutcomeRecord(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"answer": [expected_answer(8, 1), 1]},
        {"answer": [expected_answer(7, 2), 2]},
        {"answer": [expected_answer(7, 2), 1]},
        {"answer": []},
    ],
    ids=["another's", "another version's", "a mix of versions", "nothing"],
)
def test_a_wrong_answer_is_seen(wrong: dict[str, object]):
    check_answers([entry()])
    with pytest.raises(AssertionError, match="wrong answer"):
        check_answers([entry(**wrong)])


def test_books_that_agree_pass(tmp_path: Path):
    write_books(tmp_path / "d", record(), record(8, status=503, code="overloaded"))
    check_books([entry(), entry(8, status=503, answer=[])], tmp_path / "d")


def test_an_answer_without_a_record_is_seen(tmp_path: Path):
    write_books(tmp_path / "d", record(8))
    with pytest.raises(AssertionError, match="not recorded"):
        check_books([entry()], tmp_path / "d")


def test_a_record_that_is_not_in_the_ledger_is_seen(tmp_path: Path):
    write_books(tmp_path / "d", record(), into_ledger=False)
    with pytest.raises(AssertionError, match="not in the ledger"):
        check_books([entry()], tmp_path / "d")


def test_a_doubled_record_a_doubled_id_and_another_version_are_seen(tmp_path: Path):
    write_books(tmp_path / "a", record(), record())
    with pytest.raises(AssertionError, match="recorded twice"):
        check_books([entry()], tmp_path / "a")
    write_books(tmp_path / "b", record())
    with pytest.raises(AssertionError, match="one request id"):
        check_books([entry(), entry()], tmp_path / "b")
    write_books(tmp_path / "c", record(version=2))
    with pytest.raises(AssertionError):
        check_books([entry()], tmp_path / "c")


def test_an_error_that_was_charged_as_an_answer_is_seen(tmp_path: Path):
    write_books(tmp_path / "d", record())
    with pytest.raises(AssertionError):
        check_books([entry(status=504, answer=[])], tmp_path / "d")
    assert failed([entry(), entry(status=0)])[0].status == 0
