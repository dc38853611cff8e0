"""A batch as its row describes it."""

from __future__ import annotations

from typing import Any

import msgspec

from wherry.client.batch_schema import Fault
from wherry.jobs.batches.store import ENDED, Row
from wherry.jobs.files.files import BATCH_SECONDS

_decode_times = msgspec.json.Decoder(dict[str, float]).decode
_decode_faults = msgspec.json.Decoder(list[Fault]).decode
_decode_metadata = msgspec.json.Decoder(dict[str, str]).decode


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as its row describes it."""

    id: str
    team_id: str
    key_id: str
    job_id: str
    endpoint: str
    completion_window: str
    state: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    kept_seconds: float
    created_at: float
    expires_at: float
    times: dict[str, float]
    """State → when it began, Unix seconds."""
    faults: list[Fault]
    metadata: dict[str, str]
    total: int
    completed: int
    failed: int
    unanswered: int
    """Of those that failed: expired, cancelled, or left when the key was revoked."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED


def to_record(row: Row[Any]) -> BatchRecord:
    """A row as the rest of the program sees it."""
    return BatchRecord(
        id=row.id,
        team_id=row.team_id,
        key_id=row.key_id,
        job_id=row.job_id,
        endpoint=row.endpoint,
        completion_window=row.completion_window,
        state=row.state,
        input_file_id=row.input_file_id,
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        kept_seconds=BATCH_SECONDS if row.kept_seconds is None else row.kept_seconds,
        created_at=row.created_at,
        expires_at=row.expires_at,
        times=_decode_times(row.times),
        faults=_decode_faults(row.faults),
        metadata=_decode_metadata(row.metadata),
        total=row.total,
        completed=row.completed,
        failed=row.failed,
        unanswered=row.unanswered,
    )
