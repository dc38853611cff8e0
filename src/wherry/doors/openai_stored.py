"""What clients do with responses that are stored: read them again, stop, page through and delete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Literal, NamedTuple

import msgspec

from wherry import errors
from wherry.doors.invoke import SSE_HEADERS
from wherry.doors.openai_background import BackgroundRuns, Record, failed_event, split_events
from wherry.doors.openai_events import EventCount
from wherry.doors.route import Inquiry, Response, json_response
from wherry.models.codecs.responses_turn import InputItem, Turn, TurnFailure, with_outcome
from wherry.models.tasks.packing import unpack
from wherry.storage.responses import ResponseStore, StoredResponse

MAX_PAGE = 100
CANCEL_SECONDS = 5.0
"""How long a client that cancels waits for a gateway to do so."""
POLL_SECONDS = 0.2
FOLLOW_SECONDS = 0.5
"""How often a response that runs in another gateway is looked after, for one who streams it."""


class Deleted(msgspec.Struct):
    """What `DELETE` answers."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class ItemList(msgspec.Struct):
    """A page of input items."""

    data: list[msgspec.Raw]
    first_id: str
    last_id: str
    has_more: bool
    object: Literal["list"] = "list"


class Opened(NamedTuple):
    """A stored response and what is in it."""

    stored: StoredResponse
    record: Record
    turn: Turn

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.stored.state == "in_progress"

    def json(self) -> bytes:
        """As clients read it: as its worker encoded it, and how it ended."""
        stored, response = self.stored, self.turn.response
        if stored.state == "cancelled":
            return with_outcome(response, "cancelled")
        if stored.state == "failed":
            failure = msgspec.json.decode(stored.error, type=TurnFailure)
            return with_outcome(response, "failed", failure)
        return response

    def events(self) -> bytes:
        """Those it had; of one whose gateway has ended, that it failed."""
        if self.record.events or self.stored.state != "failed":
            return self.record.events
        return failed_event(0, self.json())


class StoredResponses:
    """Handlers of the rows below `/v1/responses/{id}`.

    Args:
        store: what keeps responses.
        runs: those that this gateway runs.
    """

    def __init__(self, store: ResponseStore, runs: BackgroundRuns) -> None:
        self._store = store
        self._runs = runs

    async def retrieve(self, inquiry: Inquiry) -> Response:
        """A response; with `?stream=true` the events of one that runs in the background."""
        query = inquiry.query
        found = await self._find(inquiry)
        if query.get("stream", "false").lower() != "true":
            return Response(found.json())
        if not found.stored.is_background:
            raise errors.InvalidInput(
                "only background responses can be streamed again", param="stream"
            )
        after = _number(query, "starting_after", -1, least=-1, most=1 << 31)
        run = self._runs.find(found.stored.id)
        events = run.follow(after) if run is not None else self._replay(inquiry, found, after)
        return stream_response(events)

    async def _replay(self, inquiry: Inquiry, found: Opened, after: int) -> AsyncGenerator[bytes]:
        """The events of a run that is over, or is another gateway's: those come at its end."""
        try:
            while found.is_running:
                await asyncio.sleep(FOLLOW_SECONDS)
                found = await self._find(inquiry)
        except errors.WherryError as error:
            yield EventCount().error_event(error)
            return
        yield b"".join(split_events(found.events())[after + 1 :])

    async def delete(self, inquiry: Inquiry) -> Response:
        """Forget a response; one that runs is stopped."""
        stored = (await self._find(inquiry)).stored
        await asyncio.to_thread(self._store.delete, inquiry.principal.team_id, stored.id)
        self._runs.cancel(stored.id)
        return json_response(Deleted(stored.id))

    async def cancel(self, inquiry: Inquiry) -> Response:
        """Stop a background response; one that has ended is answered as it is."""
        found = await self._find(inquiry)
        stored = found.stored
        if not stored.is_background:
            raise errors.InvalidInput("only background responses can be cancelled", param="id")
        if found.is_running:
            await asyncio.to_thread(self._store.ask_cancel, inquiry.principal.team_id, stored.id)
            self._runs.cancel(stored.id)
        deadline = time.monotonic() + CANCEL_SECONDS
        while found.is_running and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
            found = await self._find(inquiry)
        return Response(found.json())

    async def input_items(self, inquiry: Inquiry) -> Response:
        """What the request itself asked, newest first unless `order=asc`."""
        query = inquiry.query
        limit = _number(query, "limit", 20, least=1, most=MAX_PAGE)
        items = _sorted((await self._find(inquiry)).turn.input_items, query.get("order", "desc"))
        after = query.get("after")
        if after is not None:
            ids = [item.id for item in items]
            if after not in ids:
                raise errors.InvalidInput(f"no item {after[:80]!r}", param="after")
            items = items[ids.index(after) + 1 :]
        page = items[:limit]
        return json_response(
            ItemList(
                data=[msgspec.Raw(item.json) for item in page],
                first_id=page[0].id if page else "",
                last_id=page[-1].id if page else "",
                has_more=len(items) > len(page),
            )
        )

    async def _find(self, inquiry: Inquiry) -> Opened:
        return await asyncio.to_thread(self._open, inquiry)

    def _open(self, inquiry: Inquiry) -> Opened:
        stored = self._store.find(inquiry.principal.team_id, inquiry.params["id"])
        check_readable(inquiry, stored)
        return open_response(stored)


def open_response(stored: StoredResponse) -> Opened:
    """What is in a stored response."""
    record = unpack(stored.record, Record)
    return Opened(stored, record, record.read_turn())


def check_readable(inquiry: Inquiry, stored: StoredResponse) -> None:
    """To a key that may not call the deployment, what it answered is not there."""
    if not inquiry.principal.can_call(stored.deployment):
        raise errors.NotFound(f"no response {stored.id!r}")


def stream_response(events: AsyncGenerator[bytes]) -> Response:
    """Events that are made here."""
    return Response(events, content_type="text/event-stream", headers=dict(SSE_HEADERS))


def _sorted(items: list[InputItem], order: str) -> list[InputItem]:
    if order not in ("asc", "desc"):
        raise errors.InvalidInput(f"order {order[:20]!r} is not asc or desc", param="order")
    return items if order == "asc" else items[::-1]


def _number(query: dict[str, str], name: str, default: int, *, least: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    try:
        number = int(text[:20])
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise errors.InvalidInput(f"{name} must be from {least} to {most}", param=name)
    return number
