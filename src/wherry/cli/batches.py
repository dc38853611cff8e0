"""Commands about batches: batch create|list|show|cancel."""

# ruff: noqa: D417  # what every command has is described once, in command.py

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import App, Parameter

from wherry import errors
from wherry.cli.command import DEFAULT, TALK, Common, DryRun, app, command
from wherry.cli.output import (
    UsageError,
    format_age,
    format_bytes,
    note,
    print_fields,
    print_table,
    progress,
    show,
)
from wherry.client.batch_schema import Batch
from wherry.client.calls.batches import ANY_ENDPOINT, Results, name_results

if TYPE_CHECKING:
    from wherry.client import Client

MAX_SHOWN_FAULTS = 10

batch_app = App(name="batch", help="Let files of requests be answered.", group=TALK)
app.command(batch_app)

Folder = Annotated[Path, Parameter(name="--to")]
Wait = Annotated[bool, Parameter(negative="--no-wait")]


class Report(msgspec.Struct):
    """A batch, and where its results were written."""

    batch: Batch
    saved: Results | None = None


class Plan(msgspec.Struct):
    """What `batch create` would send."""

    file: str
    size_bytes: int
    requests: dict[str, int]
    """By url."""
    endpoint: str
    window: str


@command(
    "create",
    group=TALK,
    parent=batch_app,
    examples=[
        "wherry batch create requests.jsonl",
        "wherry batch create requests.jsonl --window 90m --to results",
        "wherry batch create requests.jsonl --no-wait -o json",
        "wherry batch create requests.jsonl --dry-run",
    ],
)
def create(
    file: Path,
    /,
    *,
    endpoint: str = ANY_ENDPOINT,
    window: str = "24h",
    to: Folder = Path(),
    wait: Wait = True,
    dry_run: DryRun = False,
    common: Common = DEFAULT,
) -> int:
    """Send a file of requests, wait for the answers and write them.

    FILE.output.jsonl has the answers, FILE.errors.jsonl what was refused or failed, in the order of
    the requests. Exit code 1 if the batch did not complete.

    Args:
        file: JSONL; a line is {"custom_id": …, "method": "POST", "url": …, "body": …}.
        endpoint: The url of all lines; `*` = each names its own.
        window: Time to answer them in, e.g. 90m; 24h at most.
        to: Folder for the results.
        wait: Wait for the answers.
    """
    if dry_run:
        plan = _read_plan(file, endpoint, window)
        show(common, plan, lambda: _print_plan(plan))
        return 0
    if wait:
        name_results(_existing(to), file.stem)  # refused before hours of work, not after
    with common.connect() as client:
        with progress(f"send {file.name}") as report:
            batch = client.batches.create(
                file, endpoint=endpoint, window=window, on_progress=report
            )
        note(f"batch {batch.id}; it goes on without us: wherry batch show {batch.id} --wait")
        done = _follow(client, batch, to, file.stem) if wait else Report(batch)
    return _show(common, done)


@command("list", group=TALK, parent=batch_app, examples=["wherry batch list"])
def list_batches(*, common: Common = DEFAULT) -> None:
    """List the batches of your team, newest first."""
    with common.connect() as client:
        found = client.batches.list()
    columns = ("ID", "STATE", "DONE", "FAILED", "AGE", "ENDPOINT")
    show(common, found, lambda: print_table(columns, [_row(batch) for batch in found]))


@command(
    "show",
    group=TALK,
    parent=batch_app,
    examples=[
        "wherry batch show BATCH_ID",
        "wherry batch show BATCH_ID --wait --to results",
    ],
)
def show_batch(
    batch: str,
    /,
    *,
    wait: bool = False,
    to: Annotated[Path | None, Parameter(name="--to")] = None,
    common: Common = DEFAULT,
) -> int:
    """Show how far a batch is, or wait for its end and write its results.

    Args:
        batch: Its id.
        wait: Wait until it has ended, and write its results here.
        to: Write the results of one that has ended into this folder.
    """
    folder = to or (Path() if wait else None)
    with common.connect() as client:
        found = client.batches.get(batch)
        if folder is None:
            return _show(common, Report(found))
        name_results(_existing(folder), found.id)
        if wait:
            return _show(common, _follow(client, found, folder, found.id))
        return _show(common, Report(found, client.batches.save(found.id, folder)))


@command("cancel", group=TALK, parent=batch_app, examples=["wherry batch cancel BATCH_ID"])
def cancel(batch: str, /, *, dry_run: DryRun = False, common: Common = DEFAULT) -> None:
    """Stop a batch; what was answered is kept.

    Args:
        batch: Its id.
    """
    with common.connect() as client:
        found = client.batches.get(batch) if dry_run else client.batches.cancel(batch)
    word = "would cancel" if dry_run else "cancelled"
    show(common, found, lambda: print(f"{word} {found.id}, {_done(found)} done"))


def _follow(client: Client, batch: Batch, folder: Path, name: str) -> Report:
    with progress(f"batch {name}") as report:
        ended = client.batches.wait(batch.id, on_progress=report)
    return Report(ended, client.batches.save(ended.id, folder, name=name))


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(f"there is no folder {str(folder)!r}", hint=f"mkdir {folder}")
    return folder


# ------------------------------------------------------------------------------ a plan


class _Line(msgspec.Struct):
    url: str
    body: dict[str, Any]
    custom_id: str


def _read_plan(file: Path, endpoint: str, window: str) -> Plan:
    """Look through a file without a server; the server looks more closely."""
    if not file.is_file():
        raise errors.InvalidInput(f"there is no file {str(file)!r}")
    decode = msgspec.json.Decoder(_Line).decode
    requests: Counter[str] = Counter()
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                requests[decode(line).url] += 1
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise errors.InvalidInput(f"line {number} is no request: {error}") from error
    return Plan(str(file), file.stat().st_size, dict(requests), endpoint, window)


def _print_plan(plan: Plan) -> None:
    print(f"would send {plan.file} ({format_bytes(plan.size_bytes)}):")
    print_table(("REQUESTS", "URL"), [(count, url) for url, count in plan.requests.items()])


# ------------------------------------------------------------------------------ printing


def _show(common: Common, done: Report) -> int:
    show(common, done, lambda: _print_report(done))
    return 1 if done.batch.status in ("failed", "expired", "cancelled") else 0


def _print_report(done: Report) -> None:
    batch, saved = done.batch, done.saved
    print_fields(
        {
            "id": batch.id,
            "state": batch.status.replace("_", " "),
            "age": format_age(batch.created_at),
            "requests": _done(batch),
            "failed": batch.request_counts.failed or "",
            "answers": saved.output if saved else batch.output_file_id,
            "errors": saved.errors if saved else batch.error_file_id,
        }
    )
    faults = batch.errors.data if batch.errors else []
    for fault in faults[:MAX_SHOWN_FAULTS]:
        where = f"line {fault.line}: " if fault.line else ""
        note(f"error: {where}{fault.message}")
    if len(faults) > MAX_SHOWN_FAULTS:
        note(f"and {len(faults) - MAX_SHOWN_FAULTS} more; -o json shows them")


def _row(batch: Batch) -> tuple[object, ...]:
    return (
        batch.id,
        batch.status.replace("_", " "),
        _done(batch),
        batch.request_counts.failed,
        format_age(batch.created_at),
        batch.endpoint,
    )


def _done(batch: Batch) -> str:
    counts = batch.request_counts
    return f"{counts.completed + counts.failed} of {counts.total}"
