"""Anthropic's API: messages, token counts, models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from wherry import errors
from wherry.doors.anthropic_lists import (
    PageOf,
    page_of,
    read_span,
    show_time,
    with_request_id,
)
from wherry.doors.envelope import BYTES_PER_TOKEN, read_envelope
from wherry.doors.errors import (
    ANTHROPIC_HEADER,
    anthropic_error,
    encode,
    render_anthropic,
)
from wherry.doors.invoke import invoke
from wherry.doors.route import Inquiry, Response, Row, json_response
from wherry.gateway.admit import callable_deployments, find_deployment
from wherry.gateway.predict import Gateway
from wherry.gateway.route import DeploymentRoute


class Envelope(msgspec.Struct):
    """The few fields that the gateway reads of any body; the worker reads the rest."""

    model: str
    stream: bool | None = None
    max_tokens: int | None = None

    def tokens_bound(self, size: int) -> int:
        """Most tokens the message can cost."""
        return max(0, self.max_tokens or 0) + size // BYTES_PER_TOKEN


class Model(msgspec.Struct):
    """An entry of `GET /v1/models`, for Anthropic's clients."""

    id: str
    created_at: str
    """RFC 3339."""
    display_name: str
    lifecycle: Literal["active"] = "active"
    type: Literal["model"] = "model"


envelope_decoder = msgspec.json.Decoder(Envelope)


ABSENT = {
    "/v1/files": ("GET", "POST"),
    "/v1/files/{id}": ("GET", "DELETE"),
    "/v1/files/{id}/content": ("GET",),
    "/v1/batches": ("GET", "POST"),
    "/v1/batches/{id}": ("GET",),
    "/v1/batches/{id}/cancel": ("POST",),
    "/v1/uploads": ("POST",),
    "/v1/uploads/{id}": ("GET",),
    "/v1/uploads/{id}/parts": ("POST",),
    "/v1/uploads/{id}/complete": ("POST",),
    "/v1/uploads/{id}/cancel": ("POST",),
}
"""Paths of OpenAI's that Anthropic's clients may ask for → methods."""


def _absent(method: str, path: str) -> Row:
    """A row for a path that is not served to Anthropic's clients, so that they can read why."""
    return Row(
        method=method,
        path=path,
        permission="any",
        handler=_refuse_absent,
        summary="Not served to Anthropic's clients",
        render=render_anthropic,
        tag="anthropic",
        with_header=ANTHROPIC_HEADER,
    )


async def _refuse_absent(inquiry: Inquiry) -> Response:
    raise errors.NotFound(
        f"{inquiry.method} {inquiry.scope['path'][:200]} is not part of Anthropic's API here",
        hint="batches are made by /v1/messages/batches; files and their batches are OpenAI's: "
        "/v1/files and /v1/batches, with /v1/messages as a line's url",
    )


class AnthropicDoor:
    """Rows of the API."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def rows(self) -> list[Row]:
        """The table."""
        return [
            self._get("/v1/models", self.models, "Deployments this key may call", PageOf[Model]),
            self._get("/v1/models/{name:path}", self.model, "One deployment", Model),
            self._post(
                "/v1/messages",
                self.messages,
                "anthropic.messages",
                "The next message, streaming or not",
            ),
            self._post(
                "/v1/messages/count_tokens",
                self.count,
                "anthropic.count_tokens",
                "Tokens of a prompt, not charged",
            ),
            *(_absent(method, path) for path, methods in ABSENT.items() for method in methods),
        ]

    def _get(self, path: str, handler: Any, summary: str, answer: Any) -> Row:
        return Row(
            method="GET",
            path=path,
            permission="any",
            handler=handler,
            summary=f"{summary} (with the header `{ANTHROPIC_HEADER}`)",
            render=render_anthropic,
            answer=answer,
            tag="anthropic",
            with_header=ANTHROPIC_HEADER,
        )

    def _post(self, path: str, handler: Any, codec: str, summary: str) -> Row:
        return Row(
            codec=codec,
            method="POST",
            path=path,
            permission="invoke",
            handler=handler,
            summary=summary,
            render=render_anthropic,
            request=dict,
            answer=dict,
            tag="anthropic",
            body_limit=self._gateway.settings.max_body_bytes,
            content_types=("application/json",),
            streams=path.endswith("messages"),
        )

    async def messages(self, inquiry: Inquiry) -> Response:
        """The next message of a conversation."""
        body = await inquiry.body()
        envelope = read_envelope(body, envelope_decoder)
        response = await invoke(
            self._gateway,
            inquiry,
            door="anthropic",
            deployment=envelope.model,
            codec="anthropic.messages",
            body=body,
            stream=bool(envelope.stream),
            tokens_bound=envelope.tokens_bound(len(body)),
            error_event=partial(_error_event, inquiry.id),
        )
        return with_request_id(response, inquiry)

    async def count(self, inquiry: Inquiry) -> Response:
        """The length of a prompt, by the model's own tokenizer and template."""
        body = await inquiry.body()
        envelope = read_envelope(body, envelope_decoder)
        response = await invoke(
            self._gateway,
            inquiry,
            door="anthropic",
            deployment=envelope.model,
            codec="anthropic.count_tokens",
            body=body,
        )
        return with_request_id(response, inquiry)

    async def models(self, inquiry: Inquiry) -> Response:
        """A page of the deployments that the key may call, the newest first."""
        deployments = callable_deployments(self._gateway.routes, inquiry.principal)
        deployments.sort(key=lambda each: (-each.created_at, each.name))
        page = _cut_page([_model(each) for each in deployments], inquiry.query)
        return with_request_id(json_response(page), inquiry)

    async def model(self, inquiry: Inquiry) -> Response:
        """One deployment, 404 if there is none."""
        name = inquiry.params["name"]
        deployment, _ = find_deployment(self._gateway.routes, inquiry.principal, name)
        return with_request_id(json_response(_model(deployment, name)), inquiry)


def _model(deployment: DeploymentRoute, name: str = "") -> Model:
    return Model(
        id=name or deployment.name,
        created_at=show_time(deployment.created_at),
        display_name=deployment.name,
    )


def _cut_page(models: Sequence[Model], query: dict[str, str]) -> PageOf[Model]:
    span = read_span(query)
    start, end = 0, len(models)
    if span.after:
        start = _find_index(models, "after_id", span.after) + 1
    if span.before:
        end = _find_index(models, "before_id", span.before)
        start = max(0, end - span.limit)
    page = models[start : min(end, start + span.limit)]
    return page_of(page, has_more=start > 0 if span.before else start + len(page) < end)


def _find_index(models: Sequence[Model], field: str, name: str) -> int:
    for index, model in enumerate(models):
        if model.id == name:
            return index
    raise errors.InvalidInput(
        f"no model {name[:200]!r} is in the list", hint="begin anew", param=field
    )


def _error_event(request_id: str, error: errors.WherryError) -> bytes:
    """After the first byte there is no status: the SDKs raise on an event `error`."""
    status, _, _ = render_anthropic(error, request_id)
    return b"event: error\ndata: %b\n\n" % encode(anthropic_error(error, status, request_id))
