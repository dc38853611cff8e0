"""The two files that a batch ends with: one line for each of its input's, in the input's order."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from wherry.client.batch_schema import Fault
from wherry.jobs.batches.lines import Line, read_lines
from wherry.jobs.batches.progress import ProgressFile
from wherry.jobs.batches.record import BatchRecord
from wherry.jobs.files.files import Files, Incoming, StoredFile

PURPOSE = "batch_output"
WRITE_BYTES = 1 << 20


class EntryError(msgspec.Struct):
    """Why a line has no answer."""

    code: str
    message: str


class EntryResponse(msgspec.Struct):
    """What a line's row answered."""

    status_code: int
    request_id: str
    body: Any


class Entry(msgspec.Struct):
    """A line of the output or of the errors, as OpenAI's clients read it."""

    id: str
    custom_id: str
    response: EntryResponse | None
    error: EntryError | None


class Rest(msgspec.Struct, frozen=True):
    """What is said of lines that were not answered."""

    code: str
    message: str


EXPIRED = Rest("batch_expired", "the batch's window had passed before this request was answered")
CANCELLED = Rest("batch_cancelled", "the batch was cancelled before this request was answered")
REVOKED = Rest("batch_failed", "the key that made the batch was revoked, or has expired")
UNANSWERED = Rest("internal", "this request was not answered")


class Outputs(msgspec.Struct):
    """Files that are placed, and what is counted in them."""

    output: StoredFile | None
    errors: StoredFile | None
    completed: int
    failed: int
    unanswered: int

    @property
    def files(self) -> list[StoredFile]:
        """Those that there are."""
        return [file for file in (self.output, self.errors) if file is not None]

    def fields(self) -> dict[str, Any]:
        """Columns of the batch."""
        return {
            "output_file_id": self.output.id if self.output else None,
            "error_file_id": self.errors.id if self.errors else None,
            "completed": self.completed,
            "failed": self.failed,
            "unanswered": self.unanswered,
        }


encode_entry = msgspec.json.Encoder().encode


def id_of(batch_id: str, number: int) -> str:
    """Id of a line's request: the same whenever it is sent again, so it is metered once."""
    return f"batch_req_{batch_id.rpartition('_')[2]}-{number}"


@contextmanager
def publish_outputs(
    files: Files, batch: BatchRecord, source: Path, progress: ProgressFile, rest: Rest
) -> Generator[Outputs]:
    """Write both files; they are kept if the block that gives them their rows succeeds."""
    with ExitStack() as stack:
        output, errors = (_Writer(files.begin(batch.team_id, is_ours=True)) for _ in range(2))
        stack.callback(output.incoming.discard)
        stack.callback(errors.incoming.discard)
        unanswered = 0
        for line in read_lines(source, max_line_bytes=source.stat().st_size):
            if isinstance(line, Fault):
                continue  # validation has refused the batch for it
            unanswered += not _write_line(batch, line, progress, rest, output, errors)
        yield Outputs(
            output.place(files, batch, "output"),
            errors.place(files, batch, "errors"),
            output.count,
            errors.count,
            unanswered,
        )


def _write_line(
    batch: BatchRecord,
    line: Line,
    progress: ProgressFile,
    rest: Rest,
    output: _Writer,
    errors: _Writer,
) -> bool:
    """Write what came of a line; whether it was answered."""
    place = progress.ended.get(line.number)
    entry = progress.entry(line.number)
    if place is None or entry is None:
        error = EntryError(rest.code, rest.message)
        errors.write(encode_entry(Entry(id_of(batch.id, line.number), line.custom_id, None, error)))
        return False
    (errors if place.is_failed else output).write(entry)
    return True


class _Writer:
    """One of the two files."""

    def __init__(self, incoming: Incoming) -> None:
        self.incoming = incoming
        self.count = 0
        self._waiting = bytearray()

    def write(self, entry: bytes) -> None:
        """Add a line."""
        self.count += 1
        self._waiting += entry + b"\n"
        if len(self._waiting) >= WRITE_BYTES:
            self._flush()

    def place(self, files: Files, batch: BatchRecord, what: str) -> StoredFile | None:
        """Give it its name; None if there is nothing in it."""
        self._flush()
        if not self.count:
            return None
        self.incoming.spool.sync()
        name = f"{batch.id}_{what}.jsonl"
        return files.place(self.incoming, batch.team_id, PURPOSE, name, batch.kept_seconds)

    def _flush(self) -> None:
        self.incoming.spool.append(self._waiting)
        self._waiting = bytearray()
