"""The command about work longer than a request: jobs."""

# ruff: noqa: D417  # what every command has is described once, in command.py

from __future__ import annotations

from wherry.cli.command import DEFAULT, MODELS, Common, DryRun, command
from wherry.cli.output import (
    UsageError,
    format_age,
    format_amount,
    print_fields,
    print_table,
    progress,
    show,
)
from wherry.client.schema import Job


@command(
    "jobs",
    group=MODELS,
    examples=["wherry jobs", "wherry jobs JOB_ID --wait", "wherry jobs JOB_ID --cancel"],
)
def jobs(
    job: str | None = None,
    /,
    *,
    wait: bool = False,
    cancel: bool = False,
    dry_run: DryRun = False,
    common: Common = DEFAULT,
) -> None:
    """List pulls, imports, trainings and installations, or look after one of them.

    Args:
        job: Its id.
        wait: Wait until it has succeeded.
        cancel: Stop it.
    """
    if job is None:
        if wait or cancel:
            raise UsageError("which job?", hint="wherry jobs lists them")
        with common.connect() as client:
            listed = client.jobs.list()
        show(common, listed, lambda: _print_jobs(listed))
        return
    with common.connect() as client, progress(job) as report:
        found = client.jobs.get(job)
        if cancel and not dry_run:
            found = client.jobs.cancel(job)
        elif wait:
            found = client.jobs.wait(job, on_progress=report)
    show(common, found, lambda: _print_job(found))


def _print_jobs(listed: list[Job]) -> None:
    columns = ("ID", "KIND", "STATE", "AGE", "NOW")
    rows = [(job.id, job.kind, job.state, format_age(job.created_at), _now(job)) for job in listed]
    print_table(columns, rows)


def _now(job: Job) -> str:
    """The error of one that failed, the result of one that succeeded, else how far it is."""
    if job.state == "failed":
        return job.error
    if "runtime" in job.result:
        return f"runtime {job.result['runtime']}"
    if "model" in job.result:
        return f"{job.result['model']}@{job.result.get('version')}"
    return f"{job.progress.stage} {format_amount(job.progress, None)}".strip()


def _print_job(job: Job) -> None:
    fields = {"id": job.id, "kind": job.kind, "state": job.state, "age": format_age(job.created_at)}
    print_fields({**fields, "now": _now(job), "hint": job.hint})
