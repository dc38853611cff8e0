"""Whatever becomes of a batch's job, the batch has an end, and keeps what was answered."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from tests.jobs.conftest import Site

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.jobs.batches.batches import PROGRESS, Batches, BatchOrder
from wherry.jobs.batches.outputs import (
    CANCELLED,
    EXPIRED,
    Entry,
    EntryResponse,
    encode_entry,
    id_of,
)
from wherry.jobs.batches.progress import ProgressFile, Record
from wherry.jobs.batches.record import BatchRecord
from wherry.jobs.files.files import Files
from wherry.jobs.work import Failed

LINES = 5


class Desk:
    """Batches of one site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.files = Files(site.database, site.settings)
        self.batches = Batches(site.database, self.files, site.settings)
        self.principal = Principal("key_1", site.team_id, "default", frozenset({"invoke"}))

    def start(self) -> BatchRecord:
        line: dict[str, Any] = {"method": "POST", "url": "/predict/iris", "body": {}}
        lines = [json.dumps({**line, "custom_id": f"r{number}"}) for number in range(LINES)]
        incoming = self.files.begin(self.site.team_id)
        incoming.spool.append("\n".join(lines).encode())
        file = self.files.keep(incoming, self.site.team_id, "batch", "in.jsonl", None)
        incoming.discard()
        order = BatchOrder(
            endpoint="*", completion_window="24h", window_seconds=86_400, input_file_id=file.id
        )
        return self.batches.create(self.principal, order)

    def answer(self, batch: BatchRecord, *numbers: int, status: int = 200) -> None:
        progress = ProgressFile(self.batches.folder(batch.id) / PROGRESS)
        for number in numbers:
            response = EntryResponse(status, "x", {"number": number})
            entry = Entry(id_of(batch.id, number), f"r{number - 1}", response, None)
            progress.append(Record(number, status >= 400, msgspec.Raw(encode_entry(entry))))
        progress.close()

    def read(self, file_id: str | None) -> list[Any]:
        assert file_id is not None
        path = self.files.path(self.files.find(self.site.team_id, file_id))
        return [json.loads(line) for line in path.read_text().splitlines()]

    def now(self, batch: BatchRecord) -> BatchRecord:
        return self.batches.find(self.site.team_id, batch.id)


@pytest.fixture
def desk(site: Site) -> Desk:
    return Desk(site)


def test_the_results_are_in_the_order_of_the_input_whatever_ended_first(desk: Desk):
    batch = desk.start()
    desk.answer(batch, 4, 2, 5)
    (job,) = desk.site.jobs.active()
    claimed = desk.site.jobs.claim(job)
    assert claimed is not None
    desk.site.jobs.finish(claimed, "failed", failure=Failed("internal", "it broke"))
    desk.batches.settle_orphans()
    ended = desk.now(batch)
    assert (ended.state, ended.completed, ended.failed) == ("failed", 3, 2)
    assert [each["custom_id"] for each in desk.read(ended.output_file_id)] == ["r1", "r3", "r4"]
    refused = desk.read(ended.error_file_id)
    assert [each["custom_id"] for each in refused] == ["r0", "r2"]
    assert refused[0]["error"] == {"code": "batch_failed", "message": "it broke"}
    assert ended.faults[0].message == "it broke"
    assert not desk.batches.folder(batch.id).exists()


def test_lines_that_nobody_answered_are_counted_apart_from_refused_ones(desk: Desk):
    batch = desk.start()
    desk.answer(batch, 1, 3)
    desk.answer(batch, 5, status=400)
    desk.batches.finish(batch, "expired", EXPIRED)
    ended = desk.now(batch)
    assert (ended.completed, ended.failed, ended.unanswered) == (2, 3, 2)


def test_a_batch_is_deleted_with_its_results_when_it_has_ended(desk: Desk):
    batch, other = desk.start(), desk.start()
    with pytest.raises(errors.Conflict, match="is validating"):
        desk.batches.remove(desk.site.team_id, batch.id)
    desk.answer(batch, 1)
    desk.batches.finish(batch, "cancelled", CANCELLED)
    ended = desk.now(batch)
    assert ended.output_file_id is not None
    desk.files.remove(desk.site.team_id, ended.output_file_id)  # by its owner, before
    desk.batches.remove(desk.site.team_id, batch.id)
    for gone in (batch.id, "batch_00000000000000000000000000"):
        with pytest.raises(errors.NotFound):
            desk.batches.remove(desk.site.team_id, gone)
    with pytest.raises(errors.NotFound):
        desk.read(ended.error_file_id)
    assert [each.id for each in desk.batches.page(desk.site.team_id, limit=9)] == [other.id]


def test_an_end_that_was_told_is_the_only_one(desk: Desk):
    batch = desk.start()
    assert desk.batches.cancel(desk.site.team_id, batch.id).state == "cancelled"
    desk.batches.settle_orphans()
    desk.batches.finish(batch, "completed", None)
    assert desk.now(batch).state == "cancelled"
    with pytest.raises(errors.Conflict, match="nothing to cancel"):
        desk.batches.cancel(desk.site.team_id, batch.id)
    assert desk.site.jobs.active() == []


def test_a_batch_whose_job_waits_or_runs_is_no_orphan(desk: Desk):
    batch = desk.start()
    desk.batches.settle_orphans()
    (job,) = desk.site.jobs.active()
    desk.site.jobs.claim(job)
    desk.batches.settle_orphans()
    assert desk.now(batch).state == "validating"
    with pytest.raises(errors.Conflict, match="is a batch"):
        desk.site.jobs.cancel(desk.site.team_id, job.id)
    assert desk.batches.cancel(desk.site.team_id, batch.id).state == "cancelling"
    assert not desk.batches.enter(batch, "in_progress"), "its runner does not begin"


def test_a_team_that_has_too_many_jobs_gets_no_batch_and_keeps_no_trace(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("wherry.jobs.jobs.MAX_ACTIVE_PER_TEAM", 1)
    desk.start()
    with pytest.raises(errors.QuotaExceeded):
        desk.start()
    assert len(desk.batches.page(desk.site.team_id, limit=9)) == 1
    assert len(list((desk.site.folder / "batches").iterdir())) == 1
