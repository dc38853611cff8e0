"""OpenAI's batches, for every model and task: a line may name any row that a model is called by."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from wherry import errors
from wherry.client.batch_schema import Batch, Counts, Faults
from wherry.doors.openai_lists import ExpiresAfter, ListOf, make_row, page_of, read_after
from wherry.doors.platform_base import read_body, read_number
from wherry.doors.route import Inquiry, Response, Row, json_response
from wherry.jobs.batches.batches import Batches, BatchOrder
from wherry.jobs.batches.lines import ANY_ENDPOINT, PATH
from wherry.jobs.batches.record import BatchRecord

DEFAULT_PAGE, MAX_PAGE = 20, 100
WINDOW = re.compile(r"([1-9][0-9]{0,4})([smh])")
SECONDS = {"s": 1, "m": 60, "h": 3600}
MAX_WINDOW_SECONDS = 24 * 3600

MetadataKey = Annotated[str, Meta(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]
FindRow = Callable[[str, str], Row | None]


class BatchRequest(msgspec.Struct):
    """Asks for a batch."""

    input_file_id: str
    endpoint: Annotated[str, Meta(min_length=1, max_length=1024)]
    completion_window: str
    metadata: Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=16)] | None = None
    output_expires_after: ExpiresAfter | None = None


class OpenAIBatchesDoor:
    """Rows of batches.

    Args:
        batches: of all teams.
        nudge: tells the queue that there is something to do.
        find_row: the row of a method and a path.
    """

    def __init__(self, batches: Batches, nudge: Callable[[], None], find_row: FindRow) -> None:
        self._batches = batches
        self._nudge = nudge
        self._find_row = find_row

    def rows(self) -> list[Row]:
        """The table."""
        return [
            make_row(
                "POST",
                "/v1/batches",
                self.create,
                "Answer the requests in a file when there is time",
                request=BatchRequest,
                answer=Batch,
            ),
            make_row(
                "GET",
                "/v1/batches",
                self.batches,
                "Batches of your team, newest first",
                answer=ListOf[Batch],
            ),
            make_row("GET", "/v1/batches/{id}", self.batch, "A batch", answer=Batch),
            make_row(
                "POST",
                "/v1/batches/{id}/cancel",
                self.cancel,
                "Stop a batch; what was answered is kept",
                answer=Batch,
            ),
        ]

    async def create(self, inquiry: Inquiry) -> Response:
        """It is validated, and worked on, by a process of its own."""
        request = await read_body(inquiry, BatchRequest)
        self._check_endpoint(request.endpoint)
        wish = request.output_expires_after
        order = BatchOrder(
            endpoint=request.endpoint,
            completion_window=request.completion_window,
            window_seconds=read_window(request.completion_window),
            input_file_id=request.input_file_id,
            metadata=request.metadata or {},
            kept_seconds=float(wish.seconds) if wish else None,
        )
        batch = await asyncio.to_thread(self._batches.create, inquiry.principal, order)
        self._nudge()
        return json_response(to_object(batch))

    def _check_endpoint(self, endpoint: str) -> None:
        if endpoint == ANY_ENDPOINT:
            return
        row = self._find_row("POST", endpoint) if PATH.fullmatch(endpoint) else None
        if row is None or row.permission != "invoke" or not row.in_batches:
            raise errors.InvalidInput(
                f"{endpoint[:200]!r} is not an endpoint that models are called by",
                hint=f"e.g. /v1/chat/completions, /v2/models/NAME/infer, {ANY_ENDPOINT!r} = any",
                param="endpoint",
            )

    async def batches(self, inquiry: Inquiry) -> Response:
        """Newest first."""
        limit = read_number(inquiry, "limit", DEFAULT_PAGE, 1, MAX_PAGE)
        team_id, after = inquiry.principal.team_id, read_after(inquiry)

        def look() -> list[BatchRecord]:
            return self._batches.page(team_id, after=after, limit=limit + 1)

        found = await asyncio.to_thread(look)
        return json_response(page_of([to_object(each) for each in found], limit))

    async def batch(self, inquiry: Inquiry) -> Response:
        """How far it is."""
        team_id, batch_id = inquiry.principal.team_id, inquiry.params["id"]
        return json_response(
            to_object(await asyncio.to_thread(self._batches.find, team_id, batch_id))
        )

    async def cancel(self, inquiry: Inquiry) -> Response:
        """It ends a moment later."""
        team_id, batch_id = inquiry.principal.team_id, inquiry.params["id"]
        batch = await asyncio.to_thread(self._batches.cancel, team_id, batch_id)
        return json_response(to_object(batch))


def read_window(text: str) -> float:
    """Seconds of `24h`, which OpenAI's clients send, or of a shorter window."""
    found = WINDOW.fullmatch(text)
    seconds = int(found[1]) * SECONDS[found[2]] if found else 0
    if not 0 < seconds <= MAX_WINDOW_SECONDS:
        raise errors.InvalidInput(
            f"completion_window {text[:80]!r} is none",
            hint="24h, or less: 90m, 30s",
            param="completion_window",
        )
    return float(seconds)


def to_object(batch: BatchRecord) -> Batch:
    """A batch as OpenAI's clients read it."""
    times: dict[str, Any] = {
        f"{state}_at": int(batch.times[state]) if state in batch.times else None
        for state in (
            "in_progress",
            "finalizing",
            "completed",
            "failed",
            "expired",
            "cancelling",
            "cancelled",
        )
    }
    return Batch(
        id=batch.id,
        endpoint=batch.endpoint,
        completion_window=batch.completion_window,
        status=batch.state,
        input_file_id=batch.input_file_id,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        errors=Faults(batch.faults) if batch.faults else None,
        request_counts=Counts(batch.total, batch.completed, batch.failed),
        metadata=batch.metadata or None,
        created_at=int(batch.created_at),
        expires_at=int(batch.expires_at),
        **times,
    )
