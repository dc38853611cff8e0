"""Batches: files of requests that are answered when there is time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from wherry import errors
from wherry.client.batch_schema import Batch
from wherry.client.calls.files import fetch_file, send_file
from wherry.client.calls.jobs import OnProgress
from wherry.client.schema import Progress
from wherry.client.wire import Call, Pause, Request, ask, post, quote_segment

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
ANY_ENDPOINT = "*"
PAGE = 100
POLL_SECONDS = 0.5
MAX_FAILURES = 20
"""Looks in a row without an answer: ten seconds for a restart of the server."""


class Results(msgspec.Struct, frozen=True):
    """Where the answers of a batch, and what was refused or failed, were written."""

    output: str | None
    errors: str | None


class _Page(msgspec.Struct):
    data: list[Batch]
    has_more: bool
    last_id: str | None


def create_batch(
    path: str | Path,
    *,
    endpoint: str = ANY_ENDPOINT,
    window: str = "24h",
    metadata: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> Call[Batch]:
    """Send a file of requests, and let them be answered when there is time.

    Args:
        path: JSONL; a line is `{"custom_id", "method": "POST", "url", "body"}`.
        endpoint: the `url` of all lines; `*` = each names its own.
        window: time to answer them in, e.g. `90m`; `24h` at most.
        metadata: kept with the batch.
        on_progress: called with the bytes that were sent.
    """
    file_id = yield from send_file(Path(path), purpose="batch", on_progress=on_progress)
    body = {
        "input_file_id": file_id,
        "endpoint": endpoint,
        "completion_window": window,
        "metadata": dict(metadata or {}),
    }
    return (yield from ask(post("/v1/batches", msgspec.json.encode(body)), Batch))


def list_batches() -> Call[list[Batch]]:
    """Batches of your team, newest first."""
    found: list[Batch] = []
    query = {"limit": str(PAGE)}
    while True:
        page = yield from ask(Request(method="GET", path="/v1/batches", query=query), _Page)
        found += page.data
        if not page.has_more or page.last_id is None:
            return found
        query["after"] = page.last_id


def get_batch(batch_id: str) -> Call[Batch]:
    """A batch as it is now."""
    return (yield from ask(Request(method="GET", path=_path_of(batch_id)), Batch))


def cancel_batch(batch_id: str) -> Call[Batch]:
    """Stop a batch; what was answered is kept."""
    return (yield from ask(Request(method="POST", path=f"{_path_of(batch_id)}/cancel"), Batch))


def wait_for_batch(
    batch_id: str, *, on_progress: OnProgress | None = None, timeout: float | None = None
) -> Call[Batch]:
    """Wait until a batch has ended, in whatever way; survives a restart of the server.

    Args:
        batch_id: the batch.
        on_progress: called with the requests that are done.
        timeout: seconds; the batch itself goes on after them.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    failures_left = MAX_FAILURES
    while True:
        try:
            batch = yield from get_batch(batch_id)
        except errors.Unavailable:
            failures_left -= 1
            if failures_left == 0:
                raise
        else:
            failures_left = MAX_FAILURES
            if on_progress is not None:
                on_progress(_progress_of(batch))
            if batch.status in ENDED:
                return batch
        if deadline is not None and time.monotonic() > deadline:
            raise errors.TimedOut(f"batch {batch_id!r} has not ended", hint="it goes on")
        yield Pause(POLL_SECONDS)


def save_results(batch_id: str, folder: str | Path = ".", *, name: str = "") -> Call[Results]:
    """Write what a batch ended with: `NAME.output.jsonl` and `NAME.errors.jsonl`.

    Args:
        batch_id: the batch.
        folder: where to write.
        name: what the files' names begin with; default: the id.

    Raises:
        Conflict: it has not ended, or such a file is there.
    """
    batch = yield from get_batch(batch_id)
    if batch.status not in ENDED:
        raise errors.Conflict(f"batch {batch_id!r} is {batch.status}", hint="wait for its end")
    output, refused = name_results(folder, name or batch.id)
    return Results(
        output=(yield from _save(batch.output_file_id, output)),
        errors=(yield from _save(batch.error_file_id, refused)),
    )


def name_results(folder: str | Path, name: str) -> tuple[Path, Path]:
    """Paths of answers and errors, neither of which is there yet."""
    paths = tuple(Path(folder) / f"{name}.{what}.jsonl" for what in ("output", "errors"))
    for path in paths:
        if path.exists():
            raise errors.Conflict(
                f"the file {str(path)!r} is there already", hint="move it, or name another folder"
            )
    return paths[0], paths[1]


def _save(file_id: str | None, path: Path) -> Call[str | None]:
    if file_id is None:
        return None
    yield from fetch_file(file_id, path)
    return str(path)


def _progress_of(batch: Batch) -> Progress:
    counts = batch.request_counts
    return Progress(
        stage=batch.status.replace("_", " "),
        done=counts.completed + counts.failed,
        total=counts.total,
        unit="requests",
    )


def _path_of(batch_id: str) -> str:
    return f"/v1/batches/{quote_segment(batch_id)}"
