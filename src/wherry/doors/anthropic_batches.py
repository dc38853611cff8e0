"""Anthropic's message batches: the same batches as OpenAI's, of requests to `/v1/messages`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

from wherry import errors
from wherry.doors.anthropic_batch_shapes import (
    MESSAGES,
    DeletedBatch,
    MessageBatch,
    MessageBatchRequest,
    check_items,
    encode_line,
    to_object,
)
from wherry.doors.anthropic_lists import PageOf, page_of, read_span, with_request_id
from wherry.doors.anthropic_results import read_results
from wherry.doors.errors import render_anthropic
from wherry.doors.platform_base import decode_body
from wherry.doors.route import Handler, Inquiry, Response, Row, json_response
from wherry.jobs.batches.batches import PURPOSE, Batches, BatchOrder
from wherry.jobs.batches.record import BatchRecord
from wherry.jobs.files.files import BATCH_SECONDS, Files

PATH = "/v1/messages/batches"
MAX_BODY_BYTES = 32 << 20
"""It is read here, in the gateway; a larger batch comes as a file."""
WINDOW, WINDOW_SECONDS = "24h", 86_400.0
ID = re.compile(r"batch_[0-9a-z]{26}")
RESULTS_TYPE = "application/x-jsonl"


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
                "POST",
                PATH,
                self.create,
                "Answer messages when there is time",
                request=MessageBatchRequest,
                answer=MessageBatch,
            ),
            _make_row(
                "GET",
                PATH,
                self.batches,
                "Batches of your team, newest first",
                answer=PageOf[MessageBatch],
            ),
            _make_row("GET", one, self.batch, "A batch of messages", answer=MessageBatch),
            _make_row(
                "POST",
                one + "/cancel",
                self.cancel,
                "Stop a batch; what was answered is kept",
                answer=MessageBatch,
            ),
            _make_row(
                "DELETE",
                one,
                self.remove,
                "Delete a batch that has ended, and its results",
                answer=DeletedBatch,
            ),
            _make_row(
                "GET",
                one + "/results",
                self.results,
                "The results, a line a request",
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
