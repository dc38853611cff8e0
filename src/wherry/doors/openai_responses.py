"""OpenAI's Responses API: create, read again, go on from, cancel and delete responses.

A request that stands alone and is not to be stored passes through as it came. For the others the
gateway adds the conversation so far, which it keeps without reading it (`responses_turn`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta

from wherry import errors
from wherry.doors.envelope import BYTES_PER_TOKEN, read_envelope
from wherry.doors.errors import render_openai
from wherry.doors.invoke import ErrorEvent, invoke
from wherry.doors.openai_background import BackgroundRuns, Record
from wherry.doors.openai_events import EventCount
from wherry.doors.openai_stored import (
    Deleted,
    ItemList,
    StoredResponses,
    check_readable,
    open_response,
    stream_response,
)
from wherry.doors.route import Field, Inquiry, Response, Row
from wherry.gateway.admit import Inbound, find_deployment
from wherry.gateway.predict import Gateway
from wherry.models.codecs.responses_turn import TurnPiece, TurnReader, TurnRequest, read_turn
from wherry.models.tasks.packing import frame, pack
from wherry.storage.database import new_id
from wherry.storage.responses import ResponseStore, StoredResponse

TURN_CODEC = "openai.responses.turn"
JSON = ("application/json", "text/json")
DEFAULT_TOKENS = 512
"""Reserved for an answer whose request names no maximum."""


class Envelope(msgspec.Struct):
    """The few fields that the gateway reads of a request; the worker reads the rest."""

    model: str
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: Annotated[str, Meta(max_length=256)] | None = None
    max_output_tokens: int | None = None

    @property
    def is_stored(self) -> bool:
        """Unless the client says otherwise."""
        return self.store is not False


_envelope_decoder = msgspec.json.Decoder(Envelope)


class Ask(msgspec.Struct):
    """A request whose conversation is known, on its way to a worker."""

    envelope: Envelope
    deployment: str
    """What the model's name means."""
    turn: TurnRequest


class OpenAIResponsesDoor:
    """Rows of the API.

    Args:
        gateway: what runs requests.
        store: what keeps responses.
        runs: those whose clients do not wait.
    """

    def __init__(self, gateway: Gateway, store: ResponseStore, runs: BackgroundRuns) -> None:
        self._gateway = gateway
        self._store = store
        self._runs = runs

    def rows(self) -> list[Row]:
        """The table."""
        one, stored = "/v1/responses/{id}", StoredResponses(self._store, self._runs)
        return [
            self._row(
                "POST",
                "/v1/responses",
                self.create,
                "Answer, and keep the answer",
                dict,
                codec="openai.responses",
            ),
            self._row(
                "POST",
                "/v1/responses/input_tokens",
                self.count,
                "Tokens of a prompt",
                dict,
                codec="openai.responses.count",
            ),
            self._row("GET", one, stored.retrieve, "A stored response"),
            self._row("DELETE", one, stored.delete, "Forget a stored response", answer=Deleted),
            self._row("POST", f"{one}/cancel", stored.cancel, "Stop a background response"),
            self._row(
                "GET", f"{one}/input_items", stored.input_items, "What was asked", answer=ItemList
            ),
        ]

    def _row(
        self,
        method: str,
        path: str,
        handler: Any,
        summary: str,
        request: Any = None,
        answer: Any = dict,
        codec: str = "",
    ) -> Row:
        return Row(
            method=method,
            path=path,
            permission="invoke",
            handler=handler,
            summary=summary,
            render=render_openai,
            request=request,
            answer=answer,
            tag="openai",
            body_limit=self._gateway.settings.max_body_bytes,
            content_types=JSON if request else (),
            streams=path.endswith("/responses"),
            codec=codec,
        )

    # ------------------------------------------------------------------ create

    async def create(self, inquiry: Inquiry) -> Response:
        """A response, streaming or not, or its beginning if it runs in the background."""
        body = await inquiry.body()
        envelope = read_envelope(body, _envelope_decoder)
        if envelope.background and not envelope.is_stored:
            raise errors.InvalidInput(
                "a background response must be stored", hint="leave store out", param="background"
            )
        if not envelope.is_stored and envelope.previous_response_id is None:
            return await self._pass_on(inquiry, envelope, body)
        ask = await self._prepare(inquiry, envelope, body)
        if envelope.background:
            return await self._run_in_background(inquiry, ask)
        if envelope.stream:
            return await self._stream(inquiry, ask)
        response = await self._invoke(inquiry, ask)
        packed = _body_of(response)
        turn = read_turn(packed)
        await self._keep(inquiry, ask, turn.status, packed)
        return _with_json(response, turn.response)

    async def _pass_on(self, inquiry: Inquiry, envelope: Envelope, body: bytes) -> Response:
        """The body as it came: nothing is known of it here, and nothing kept."""
        counted = EventCount()
        response = await invoke(
            self._gateway,
            inquiry,
            door="openai",
            deployment=envelope.model,
            codec="openai.responses",
            body=body,
            stream=bool(envelope.stream),
            tokens_bound=_tokens_bound(envelope, len(body)),
            error_event=counted.error_event,
        )
        if envelope.stream:
            pieces = cast("AsyncGenerator[bytes | memoryview]", response.body)
            response.body = counted.follow(pieces)
        return response

    async def count(self, inquiry: Inquiry) -> Response:
        """The length of a prompt, by the model's own tokenizer and template; not charged."""
        body = await inquiry.body()
        envelope = read_envelope(body, _envelope_decoder)
        return await invoke(
            self._gateway,
            inquiry,
            door="openai",
            deployment=envelope.model,
            codec="openai.responses.count",
            body=body,
        )

    async def _prepare(self, inquiry: Inquiry, envelope: Envelope, body: bytes) -> Ask:
        """The request with the turns that it follows."""
        routes, principal = self._gateway.routes, inquiry.principal
        deployment, _ = find_deployment(routes, principal, envelope.model)
        history: list[bytes] = []
        if envelope.previous_response_id is not None:
            find = partial(self._history, inquiry, envelope.previous_response_id)
            history = await asyncio.to_thread(find)
        size = len(body) + sum(map(len, history))
        if size > self._gateway.settings.max_body_bytes:
            raise errors.TooLarge(
                f"the conversation has {size} bytes, at most "
                f"{self._gateway.settings.max_body_bytes} are taken",
                hint="begin a new one",
            )
        turn = TurnRequest(new_id("resp"), body, history)
        return Ask(envelope, deployment.name, turn)

    def _history(self, inquiry: Inquiry, response_id: str) -> list[bytes]:
        found = self._store.history(inquiry.principal.team_id, response_id)
        for each in found:
            check_readable(inquiry, each)
            if each.state not in ("completed", "incomplete"):
                raise errors.InvalidInput(
                    f"response {each.id!r} is {each.state.replace('_', ' ')}: there is no answer "
                    "to go on from",
                    param="previous_response_id",
                )
        return [open_response(each).turn.messages for each in found]

    async def _invoke(
        self,
        inquiry: Inquiry,
        ask: Ask,
        *,
        stream: bool = False,
        error_event: ErrorEvent | None = None,
    ) -> Response:
        packed = pack(ask.turn)
        return await invoke(
            self._gateway,
            inquiry,
            door="openai",
            deployment=ask.envelope.model,
            codec=TURN_CODEC,
            body=packed,
            stream=stream,
            tokens_bound=0 if ask.turn.is_announced else _tokens_bound(ask.envelope, len(packed)),
            error_event=error_event,
        )

    async def _stream(self, inquiry: Inquiry, ask: Ask) -> Response:
        counted = EventCount()
        response = await self._invoke(
            inquiry,
            ask,
            stream=True,
            error_event=lambda error: frame(pack(TurnPiece(counted.error_event(error)))),
        )
        pieces = cast("AsyncGenerator[bytes | memoryview]", response.body)
        response.body = self._keep_stream(inquiry, ask, pieces, counted)
        return response

    async def _keep_stream(
        self,
        inquiry: Inquiry,
        ask: Ask,
        pieces: AsyncGenerator[bytes | memoryview],
        counted: EventCount,
    ) -> AsyncGenerator[bytes]:
        """The events of a stream; the last of them leave when the response is kept."""
        reader = TurnReader()
        try:
            async with aclosing(pieces):
                async for chunk in pieces:
                    for piece in reader.feed(chunk):
                        if piece.turn is not None:
                            await self._keep(inquiry, ask, piece.turn.status, pack(piece.turn))
                        yield counted.note(piece.events)
        except errors.WherryError as error:
            yield counted.error_event(error)

    async def _keep(self, inquiry: Inquiry, ask: Ask, state: str, packed: bytes) -> None:
        if not ask.envelope.is_stored:
            return
        stored = StoredResponse(
            id=ask.turn.id,
            deployment=ask.deployment,
            previous_id=ask.envelope.previous_response_id or "",
            state=state,
            is_background=bool(ask.envelope.background),
            error="",
            record=pack(Record(packed)),
        )
        await asyncio.to_thread(self._store.add, inquiry.principal.team_id, stored)

    async def _run_in_background(self, inquiry: Inquiry, ask: Ask) -> Response:
        """Store what is asked as the worker understands it, answer with that, and let it run."""
        team_id, envelope = inquiry.principal.team_id, ask.envelope
        self._runs.check_room(team_id)
        beginning = msgspec.structs.replace(ask.turn, is_announced=True)
        announced = await self._invoke(inquiry, msgspec.structs.replace(ask, turn=beginning))
        packed = _body_of(announced)
        await self._keep(inquiry, ask, "in_progress", packed)
        body = pack(ask.turn)
        inbound = Inbound(
            door="openai",
            request_id=ask.turn.id,
            principal=inquiry.principal,
            deployment=envelope.model,
            codec=TURN_CODEC,
            body=body,
            stream=True,
            tokens_bound=_tokens_bound(envelope, len(body)),
        )
        try:
            run = self._runs.start(inbound, ask.turn.id, packed)
        except errors.WherryError:
            await asyncio.to_thread(self._store.delete, team_id, ask.turn.id)
            raise
        if envelope.stream:
            return stream_response(run.follow(after=-1))
        return _with_json(announced, read_turn(packed).response)


# ------------------------------------------------------------------------------ answers


def _tokens_bound(envelope: Envelope, size: int) -> int:
    asked = envelope.max_output_tokens or DEFAULT_TOKENS
    return max(0, asked) + size // BYTES_PER_TOKEN


def _body_of(response: Response) -> bytes:
    return bytes(cast("bytes | memoryview", response.body))


def _with_json(response: Response, body: bytes) -> Response:
    """The same answer with another body."""
    changed = {b"content-type": b"application/json", b"content-length": b"%d" % len(body)}
    fields: list[Field] = [(name, changed.get(name, value)) for name, value in response.fields]
    return Response(body, fields=fields)
