"""A batch of messages as Anthropic's clients ask for it and read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from wherry.doors.anthropic_lists import show_time
from wherry.errors import InvalidInput
from wherry.jobs.batches.record import BatchRecord

MESSAGES = "/v1/messages"


class BatchItem(msgspec.Struct):
    """A request of a batch."""

    custom_id: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}(?!\n)$")]
    params: msgspec.Raw
    """The body of a message."""


class MessageBatchRequest(msgspec.Struct):
    """Asks for a batch."""

    requests: Annotated[list[BatchItem], Meta(min_length=1)]


class _Line(msgspec.Struct):
    """A request as batches keep it."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class ResultCounts(msgspec.Struct):
    """Of requests; all are `processing` until the batch has ended."""

    processing: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0


class MessageBatch(msgspec.Struct, kw_only=True):
    """A batch; times are RFC 3339."""

    id: str
    type: Literal["message_batch"] = "message_batch"
    processing_status: Literal["in_progress", "canceling", "ended"]
    request_counts: ResultCounts
    created_at: str
    expires_at: str
    ended_at: str | None
    cancel_initiated_at: str | None
    archived_at: str | None = None
    results_url: str | None
    """Without scheme and host, which a proxy may have changed; the SDKs put theirs before it."""


class DeletedBatch(msgspec.Struct):
    """What deleting a batch answers."""

    id: str
    type: Literal["message_batch_deleted"] = "message_batch_deleted"


def check_items(items: Sequence[BatchItem], max_requests: int) -> None:
    """Refuse what could not be told apart, or is no request; the rest is said in the results."""
    if len(items) > max_requests:
        raise InvalidInput(
            f"the batch has {len(items)} requests, {max_requests} are taken",
            hint="make several",
            param="requests",
        )
    seen = set[str]()
    for index, item in enumerate(items):
        if item.custom_id in seen:
            raise InvalidInput(
                f"custom_id {item.custom_id!r} has come before",
                param=f"requests[{index}].custom_id",
            )
        seen.add(item.custom_id)
        if not bytes(item.params).lstrip().startswith(b"{"):
            raise InvalidInput("params is an object", param=f"requests[{index}].params")


def encode_line(item: BatchItem) -> bytes:
    """A request on one line of its own, however its client laid it out."""
    body = msgspec.Raw(msgspec.json.format(item.params, indent=-1))
    return msgspec.json.encode(_Line(item.custom_id, "POST", MESSAGES, body)) + b"\n"


def to_object(batch: BatchRecord) -> MessageBatch:
    """A batch as Anthropic's clients read it."""
    times = batch.times
    cancelling_at = times.get("cancelling")
    return MessageBatch(
        id=batch.id,
        processing_status=_status_of(batch),
        request_counts=_count(batch),
        created_at=show_time(batch.created_at),
        expires_at=show_time(batch.expires_at),
        ended_at=show_time(times[batch.state]) if batch.has_ended else None,
        cancel_initiated_at=None if cancelling_at is None else show_time(cancelling_at),
        results_url=f"{MESSAGES}/batches/{batch.id}/results" if batch.has_ended else None,
    )


def _status_of(batch: BatchRecord) -> Literal["in_progress", "canceling", "ended"]:
    if batch.has_ended:
        return "ended"
    return "canceling" if batch.state == "cancelling" else "in_progress"


def _count(batch: BatchRecord) -> ResultCounts:
    if not batch.has_ended:
        return ResultCounts(processing=batch.total)
    canceled = batch.unanswered if batch.state == "cancelled" else 0
    expired = batch.unanswered if batch.state == "expired" else 0
    errored = batch.failed - canceled - expired
    return ResultCounts(0, batch.completed, errored, canceled, expired)
