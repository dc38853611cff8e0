"""Rows of jobs: who may change them, and from which state to which."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from tests.jobs.conftest import Site

from wherry import errors
from wherry.client.schema import Progress
from wherry.control.store import load_events
from wherry.jobs import jobs as jobs_module
from wherry.jobs import store
from wherry.jobs.work import Failed, PullWork, TrainWork

WORK = PullWork(source="minilm", name="minilm")


def test_a_job_goes_through_its_states_and_each_is_told(site: Site) -> None:
    job = site.jobs.submit(site.team_id, WORK)
    (queued,) = site.jobs.active()
    assert queued.work == WORK
    running = site.jobs.claim(queued)
    assert running is not None
    assert site.jobs.write_progress(running, Progress(stage="x", done=1, total=2))
    assert site.jobs.finish(running, "succeeded", result={"model": "minilm"})
    done = site.jobs.find(site.team_id, job.id)
    assert (done.state, done.result, done.progress.done) == ("succeeded", {"model": "minilm"}, 1)
    with site.database.read() as connection:
        events = load_events(connection, site.team_id, 0, ["jobs"], 10)
    assert [each.what for each in events] == ["queued", "running", "succeeded"]
    assert events[-1].data["result"] == {"model": "minilm"}


def test_only_one_of_two_claims_succeeds(site: Site) -> None:
    site.jobs.submit(site.team_id, WORK)
    (queued,) = site.jobs.active()
    assert site.jobs.claim(queued) is not None
    assert site.jobs.claim(queued) is None


def test_an_older_attempt_changes_nothing(site: Site) -> None:
    job = site.jobs.submit(site.team_id, WORK)
    first = site.jobs.claim(site.jobs.active()[0])
    assert first is not None
    site.jobs.requeue(first)
    second = site.jobs.claim(site.jobs.active()[0])
    assert second is not None
    assert second.attempt == 2
    assert not site.jobs.is_current(job.id, 1)
    assert site.jobs.is_current(job.id, 2)
    assert not site.jobs.write_progress(first, Progress(stage="from the grave"))
    assert not site.jobs.finish(first, "failed", failure=Failed("internal", "from the grave"))
    site.jobs.requeue(first)
    found = site.jobs.find(site.team_id, job.id)
    assert (found.state, found.error, found.progress.stage) == ("running", "", "")


def test_a_job_that_outlives_five_restarts_is_blamed_for_them(site: Site) -> None:
    job = site.jobs.submit(site.team_id, WORK)
    for _ in range(jobs_module.MAX_ATTEMPTS):
        running = site.jobs.claim(site.jobs.active()[0])
        assert running is not None
        site.jobs.requeue(running)
    found = site.jobs.find(site.team_id, job.id)
    assert found.state == "failed"
    assert "restarted 5 times" in found.error


def test_a_running_job_that_was_cancelled_is_not_queued_again(site: Site) -> None:
    job = site.jobs.submit(site.team_id, WORK)
    running = site.jobs.claim(site.jobs.active()[0])
    assert running is not None
    assert site.jobs.cancel(site.team_id, job.id).state == "running"
    assert not site.jobs.is_current(job.id, 1)
    site.jobs.requeue(running)
    assert site.jobs.find(site.team_id, job.id).state == "cancelled"


def test_cancelling_a_finished_job_leaves_it(site: Site) -> None:
    job = site.jobs.submit(site.team_id, WORK)
    running = site.jobs.claim(site.jobs.active()[0])
    assert running is not None
    site.jobs.finish(running, "failed", failure=Failed("unavailable", "no network", "wait"))
    after = site.jobs.cancel(site.team_id, job.id)
    assert (after.state, after.error, after.hint) == ("failed", "no network", "wait")
    assert after.result == {"code": "unavailable"}


@pytest.mark.parametrize("job_id", ["", "job_none", "x" * 500, "job_\0", "' OR 1=1 --"])
def test_another_teams_job_is_not_there(site: Site, job_id: str) -> None:
    job = site.jobs.submit(site.team_id, WORK)
    for wanted in (job.id, job_id):
        with pytest.raises(errors.NotFound):
            site.jobs.find(site.other_id, wanted)
        with pytest.raises(errors.NotFound):
            site.jobs.cancel(site.other_id, wanted)
    assert site.jobs.page(site.other_id, "", 10) == []


def test_jobs_come_newest_first_page_by_page(site: Site) -> None:
    made = [site.jobs.submit(site.team_id, WORK).id for _ in range(5)]
    first = [job.id for job in site.jobs.page(site.team_id, "", 3)]
    rest = [job.id for job in site.jobs.page(site.team_id, first[-1], 3)]
    assert sorted(made, reverse=True) == first + rest


def test_a_team_cannot_queue_without_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MAX_ACTIVE_PER_TEAM", 2)
    for _ in range(2):
        site.jobs.submit(site.team_id, WORK)
    with pytest.raises(errors.QuotaExceeded):
        site.jobs.submit(site.team_id, WORK)
    assert site.jobs.submit(site.other_id, WORK).state == "queued"


def test_old_finished_jobs_are_forgotten_but_no_unfinished_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "MAX_FINISHED", 1)
    kept = site.jobs.submit(site.team_id, WORK)
    for _ in range(3):
        site.jobs.cancel(site.team_id, site.jobs.submit(site.team_id, WORK).id)
    assert site.jobs.trim() == 2
    states = [job.state for job in site.jobs.page(site.team_id, "", 10)]
    assert states == ["cancelled", "queued"]
    assert site.jobs.find(site.team_id, kept.id).state == "queued"


def test_the_revision_grows_with_every_change_and_only_then(site: Site) -> None:
    before = site.jobs.revision()
    job = site.jobs.submit(site.team_id, WORK)
    after = site.jobs.revision()
    assert after > before
    site.jobs.find(site.team_id, job.id)
    site.jobs.active()
    assert site.jobs.revision() == after


def test_the_team_with_fewest_running_jobs_is_next(make_site: Callable[..., Site]) -> None:
    import asyncio

    site = make_site()
    for team_id in (site.team_id, site.team_id, site.other_id):
        site.jobs.submit(team_id, WORK)

    async def choose() -> list[str]:
        queue = site.queue()
        queued = site.jobs.active()
        first = queue._choose(queued)
        queue._running["x"] = type("Process", (), {"job": first})()  # type: ignore[assignment]
        return [first.team_id, queue._choose([job for job in queued if job != first]).team_id]

    assert asyncio.run(choose()) == [site.team_id, site.other_id]


def test_work_survives_its_row(site: Site) -> None:
    site.jobs.submit(site.team_id, msgspec.structs.replace(WORK, task="tensor", sha256="0" * 64))
    with site.database.read() as connection:
        (row,) = store.list_active(connection)
    assert row.kind == "pull"
    assert site.jobs.active()[0].work == PullWork(
        source="minilm", name="minilm", task="tensor", sha256="0" * 64
    )


def test_a_job_too_large_to_be_kept_in_memory_is_refused(site: Site) -> None:
    work = TrainWork(recipe="a:B", name="large", parameters={"x": "A" * (2 << 20)})
    with pytest.raises(errors.TooLarge):
        site.jobs.submit(site.team_id, work)
    assert site.jobs.active() == []


def test_what_a_finished_job_was_asked_is_not_kept(site: Site) -> None:
    work = TrainWork(recipe="a:B", name="long", parameters={"x": "A" * 100_000})
    job = site.jobs.submit(site.team_id, work)
    site.jobs.cancel(site.team_id, job.id)
    with site.database.read() as connection:
        row = store.find_job(connection, job.id)
    assert row is not None
    assert len(row.request) < 100


def test_a_team_pushes_no_other_out_of_the_list(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "MAX_FINISHED_PER_TEAM", 3)
    theirs = site.jobs.submit(site.other_id, WORK)
    site.jobs.cancel(site.other_id, theirs.id)
    for _ in range(6):
        site.jobs.cancel(site.team_id, site.jobs.submit(site.team_id, WORK).id)
    assert len(site.jobs.page(site.team_id, "", 100)) == 4
    assert site.jobs.find(site.other_id, theirs.id).state == "cancelled"
