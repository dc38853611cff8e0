"""Anthropic's message batches: the same batches as OpenAI's, of requests to `/v1/messages`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from wherry import errors
from wherry.doors.anthropic_lists import PageOf, page_of, read_span, show_time, with_request_id
from wherry.doors.anthropic_results import read_results
from wherry.doors.errors import render_anthropic
from wherry.doors.platform_base import decode_body
from wherry.doors.route import Handler, Inquiry, Response, Row, json_response
from wherry.jobs.batches.batches import PURPOSE, Batches, BatchOrder
from wherry.jobs.batches.record import BatchRecord
from wherry.jobs.files.files import BATCH_SECONDS, Files

PATH = "/v1/messages/batches"
MESSAGES = "/v1/messages"
MAX_BODY_BYTES = 32 << 20
"""It is read here, in the gateway; a larger batch comes as a file."""
WINDOW, WINDOW_SECONDS = "24h", 86_400.0
ID = re.compile(r"batch_[0-9a-z]{26}")
RESULTS_TYPE = "application/x-jsonl"


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


class AnthropicBatchesDoor:
    """Rows of batches.

    Args:
        batches: of all teams.
        files: where their requests and results are.
        nudge: tells the queue that there is something to do.
        max_requests: of one batch.
    """

    def __init__(
        self, batches: Batches, files: Files, nudge: Callable[[], None], max_requests: int
    ) -> None:
        self._batches = batches
        self._files = files
        self._nudge = nudge
        self._max_requests = max_requests

    def rows(self) -> list[Row]:
        """The table."""
        one = PATH + "/{id}"
        return [
            _make_row(
                *("POST", PATH, self.create, "Answer messages when there is time"),
                request=MessageBatchRequest,
                answer=MessageBatch,
            ),
            _make_row(
                *("GET", PATH, self.batches, "Batches of your team, newest first"),
                answer=PageOf[MessageBatch],
            ),
            _make_row("GET", one, self.batch, "A batch of messages", answer=MessageBatch),
            _make_row(
                *("POST", one + "/cancel", self.cancel, "Stop a batch; what was answered is kept"),
                answer=MessageBatch,
            ),
            _make_row(
                *("DELETE", one, self.remove, "Delete a batch that has ended, and its results"),
                answer=DeletedBatch,
            ),
            _make_row(
                *("GET", one + "/results", self.results, "The results, a line a request"),
                answer=bytes,
            ),
        ]

    async def create(self, inquiry: Inquiry) -> Response:
        """Keep the requests as a file of lines, and let it be worked on."""
        body = await inquiry.body()
        batch = await asyncio.to_thread(self._create, inquiry, body)
        self._nudge()
        return _answer(batch, inquiry)

    def _create(self, inquiry: Inquiry, body: bytes) -> BatchRecord:
        items = decode_body(body, MessageBatchRequest).requests
        check_items(items, self._max_requests)
        team_id = inquiry.principal.team_id
        incoming = self._files.begin(team_id)
        try:
            incoming.spool.append(b"".join(map(encode_line, items)))
            incoming.spool.sync()
            file = self._files.keep(incoming, team_id, PURPOSE, "messages.jsonl", BATCH_SECONDS)
        finally:
            incoming.discard()
        order = BatchOrder(
            endpoint=MESSAGES,
            completion_window=WINDOW,
            window_seconds=WINDOW_SECONDS,
            input_file_id=file.id,
            total=len(items),
        )
        try:
            return self._batches.create(inquiry.principal, order)
        finally:
            with suppress(errors.Unavailable):  # it would be deleted in a month
                self._files.remove(team_id, file.id)  # the batch has its own name for the bytes

    async def batches(self, inquiry: Inquiry) -> Response:
        """Those of messages, also the ones that OpenAI's clients made."""
        span, team_id = read_span(inquiry.query), inquiry.principal.team_id
        for name, text in (("after_id", span.after), ("before_id", span.before)):
            if text and not ID.fullmatch(text):
                raise errors.InvalidInput(f"{name}={text[:80]!r} is no batch's id", param=name)

        def look() -> list[BatchRecord]:
            return self._batches.page(
                team_id,
                after=span.after,
                before=span.before,
                limit=span.limit + 1,
                endpoint=MESSAGES,
            )

        found = await asyncio.to_thread(look)
        has_more = len(found) > span.limit
        page = found[-span.limit :] if span.before else found[: span.limit]
        shown = [to_object(batch) for batch in page]
        return with_request_id(json_response(page_of(shown, has_more=has_more)), inquiry)

    async def batch(self, inquiry: Inquiry) -> Response:
        """How far it is."""
        return _answer(await asyncio.to_thread(self._find, inquiry), inquiry)

    async def cancel(self, inquiry: Inquiry) -> Response:
        """It ends a moment later."""

        def cancel() -> BatchRecord:
            batch = self._find(inquiry)
            return self._batches.cancel(batch.team_id, batch.id)

        return _answer(await asyncio.to_thread(cancel), inquiry)

    async def remove(self, inquiry: Inquiry) -> Response:
        """For good, with its results."""

        def remove() -> str:
            batch = self._find(inquiry)
            self._batches.remove(batch.team_id, batch.id)
            return batch.id

        deleted = DeletedBatch(await asyncio.to_thread(remove))
        return with_request_id(json_response(deleted), inquiry)

    async def results(self, inquiry: Inquiry) -> Response:
        """First the messages, then what was refused, failed or not answered."""
        lines = await asyncio.to_thread(self._open_results, inquiry)
        return with_request_id(Response(_stream(lines), content_type=RESULTS_TYPE), inquiry)

    def _open_results(self, inquiry: Inquiry) -> Iterator[bytes]:
        batch = self._find(inquiry)
        if not batch.has_ended:
            raise errors.NotFound(
                f"batch {batch.id!r} has no results yet", hint="wait until it has ended"
            )
        files = [each for each in (batch.output_file_id, batch.error_file_id) if each is not None]
        found = [self._files.find(batch.team_id, each) for each in files]
        return read_results([self._files.path(each) for each in found])

    def _find(self, inquiry: Inquiry) -> BatchRecord:
        batch = self._batches.find(inquiry.principal.team_id, inquiry.params["id"])
        if batch.endpoint != MESSAGES:
            raise errors.NotFound(
                f"batch {batch.id!r} is none of messages", hint=f"GET /v1/batches/{batch.id}"
            )
        return batch


def check_items(items: Sequence[BatchItem], max_requests: int) -> None:
    """Refuse what could not be told apart, or is no request; the rest is said in the results."""
    if len(items) > max_requests:
        raise errors.InvalidInput(
            f"the batch has {len(items)} requests, {max_requests} are taken",
            hint="make several",
            param="requests",
        )
    seen = set[str]()
    for index, item in enumerate(items):
        if item.custom_id in seen:
            raise errors.InvalidInput(
                f"custom_id {item.custom_id!r} has come before",
                param=f"requests[{index}].custom_id",
            )
        seen.add(item.custom_id)
        if not bytes(item.params).lstrip().startswith(b"{"):
            raise errors.InvalidInput("params is an object", param=f"requests[{index}].params")


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
        results_url=f"{PATH}/{batch.id}/results" if batch.has_ended else None,
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


def _answer(batch: BatchRecord, inquiry: Inquiry) -> Response:
    return with_request_id(json_response(to_object(batch)), inquiry)


async def _stream(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece


def _make_row(
    method: str, path: str, handler: Handler, summary: str, *, answer: Any, request: Any = None
) -> Row:
    return Row(
        method=method,
        path=path,
        permission="invoke",
        handler=handler,
        summary=summary,
        render=render_anthropic,
        request=request,
        answer=answer,
        tag="anthropic",
        body_limit=MAX_BODY_BYTES,
        content_types=("application/json",) if request is not None else (),
        in_batches=False,
    )
