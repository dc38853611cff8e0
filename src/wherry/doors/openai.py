"""OpenAI's API: models, chat completions, completions, embeddings, moderations."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import msgspec

from wherry import errors
from wherry.doors.envelope import ChatEnvelope, read_envelope
from wherry.doors.errors import encode, openai_error, render_openai, status_of
from wherry.doors.invoke import invoke
from wherry.doors.route import Inquiry, Response, Row, json_response
from wherry.gateway.admit import callable_deployments, find_deployment
from wherry.gateway.predict import Gateway
from wherry.gateway.route import DeploymentRoute

JSON = ("application/json", "text/json", "application/x-www-form-urlencoded+json")
ONE_ANSWER = frozenset({"openai.embeddings", "openai.moderations"})
"""Codecs whose protocol knows no stream: the field means nothing there."""


class Envelope(ChatEnvelope, kw_only=True):
    """The few fields that the gateway reads of any OpenAI body; the worker reads the rest."""

    model: str


class Model(msgspec.Struct):
    """An entry of `GET /v1/models`."""

    id: str
    created: int
    owned_by: str
    task: str = ""
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct):
    """What `GET /v1/models` answers."""

    data: list[Model]
    object: Literal["list"] = "list"


envelope_decoder = msgspec.json.Decoder(Envelope)


class OpenAIDoor:
    """Rows of the API."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def rows(self) -> list[Row]:
        """The table."""
        return [
            self._get("/v1/models", self.models, "Deployments this key may call", ModelList),
            self._get("/v1/models/{name:path}", self.model, "One deployment", Model),
            self._post("/v1/chat/completions", "openai.chat", "Chat, streaming or not"),
            self._post("/v1/completions", "openai.completions", "Complete a text"),
            self._post("/v1/embeddings", "openai.embeddings", "Vectors of texts"),
            self._post("/v1/moderations", "openai.moderations", "Whether texts are harmful"),
        ]

    def _get(self, path: str, handler: Any, summary: str, answer: Any) -> Row:
        return Row(
            method="GET",
            path=path,
            permission="any",
            handler=handler,
            summary=summary,
            render=render_openai,
            answer=answer,
            tag="openai",
        )

    def _post(self, path: str, codec: str, summary: str) -> Row:
        return Row(
            method="POST",
            path=path,
            permission="invoke",
            handler=partial(self._invoke, codec=codec),
            summary=summary,
            render=render_openai,
            request=dict,
            answer=dict,
            tag="openai",
            body_limit=self._gateway.settings.max_body_bytes,
            content_types=JSON,
            streams=path.endswith("completions"),
            codec=codec,
        )

    async def models(self, inquiry: Inquiry) -> Response:
        """Every deployment of the key's team that it may call."""
        found = callable_deployments(self._gateway.routes, inquiry.principal)
        return json_response(ModelList([_model(each) for each in found]))

    async def model(self, inquiry: Inquiry) -> Response:
        """One deployment, 404 if there is none."""
        name = inquiry.params["name"]
        deployment, _ = find_deployment(self._gateway.routes, inquiry.principal, name)
        return json_response(_model(deployment, name))

    async def _invoke(self, inquiry: Inquiry, codec: str) -> Response:
        body = await inquiry.body()
        envelope = read_envelope(body, envelope_decoder)
        return await invoke(
            self._gateway,
            inquiry,
            door="openai",
            deployment=envelope.model,
            codec=codec,
            body=body,
            stream=bool(envelope.stream) and codec not in ONE_ANSWER,
            tokens_bound=envelope.tokens_bound(len(body)),
            error_event=_error_event,
        )


def _error_event(error: errors.WherryError) -> bytes:
    """After the first byte there is no status: the SDKs raise on a chunk with `error`."""
    return b"data: " + encode({"error": openai_error(error, status_of(error))}) + b"\n\n"


def _model(deployment: DeploymentRoute, name: str = "") -> Model:
    task = deployment.versions[0].task if deployment.versions else ""
    return Model(name or deployment.name, int(deployment.created_at), deployment.team, task)
