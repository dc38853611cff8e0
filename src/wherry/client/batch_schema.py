"""A batch as `/v1/batches` tells of it, shared by server, SDK and CLI: OpenAI's shape."""

from __future__ import annotations

from typing import Literal

import msgspec


class Fault(msgspec.Struct, omit_defaults=False):
    """What is wrong with a batch as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Faults(msgspec.Struct):
    """What was wrong with the batch as a whole."""

    data: list[Fault]
    object: Literal["list"] = "list"


class Counts(msgspec.Struct):
    """Of requests."""

    total: int
    completed: int
    failed: int


class Batch(msgspec.Struct, kw_only=True):
    """A batch; times are Unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    completion_window: str
    status: str
    """`validating`, `in_progress`, `finalizing`, `cancelling`, or one of the ends: `completed`,
    `failed`, `expired`, `cancelled`."""
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    errors: Faults | None
    request_counts: Counts
    metadata: dict[str, str] | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
