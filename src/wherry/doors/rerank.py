"""Reranking: `/v1/rerank` and `/v2/rerank` for clients of Jina and Cohere, `/rerank` for TEI's."""

from __future__ import annotations

from typing import Any

import msgspec

from wherry import errors
from wherry.doors.envelope import BYTES_PER_TOKEN, read_envelope
from wherry.doors.errors import Renderer, render_cohere, render_tei
from wherry.doors.invoke import invoke
from wherry.doors.route import Inquiry, Response, Row
from wherry.gateway.admit import callable_deployments
from wherry.gateway.predict import Gateway

TASKS = frozenset({"text-ranking", "feature-extraction"})


class RerankEnvelope(msgspec.Struct):
    """What the gateway reads; the worker reads the rest."""

    model: str


class TeiEnvelope(msgspec.Struct):
    """The same of TEI, whose servers have one model and do not ask for its name."""

    model: str | None = None


decoder = msgspec.json.Decoder(RerankEnvelope)
tei_decoder = msgspec.json.Decoder(TeiEnvelope)


class RerankDoor:
    """The same question, in the three shapes that clients know."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def rows(self) -> list[Row]:
        """The table."""
        cohere = "Documents by relevance (Jina, Cohere)"
        return [
            self._row("/v1/rerank", self.version_1, "rerank.v1", render_cohere, cohere),
            self._row("/v2/rerank", self.version_2, "rerank.v2", render_cohere, cohere),
            self._row("/rerank", self.tei, "rerank.tei", render_tei, "Texts by relevance (TEI)"),
        ]

    def _row(self, path: str, handler: Any, codec: str, render: Renderer, summary: str) -> Row:
        return Row(
            method="POST",
            path=path,
            permission="invoke",
            handler=handler,
            summary=summary,
            render=render,
            request=dict,
            answer=dict,
            tag="rerank",
            body_limit=self._gateway.settings.max_body_bytes,
            content_types=("application/json",),
            codec=codec,
        )

    async def version_1(self, inquiry: Inquiry) -> Response:
        """Jina's and Cohere's shape."""
        body = await inquiry.body()
        return await self._invoke(inquiry, read_envelope(body, decoder).model, "rerank.v1", body)

    async def version_2(self, inquiry: Inquiry) -> Response:
        """Cohere's second."""
        body = await inquiry.body()
        return await self._invoke(inquiry, read_envelope(body, decoder).model, "rerank.v2", body)

    async def tei(self, inquiry: Inquiry) -> Response:
        """TEI's shape."""
        body = await inquiry.body()
        named = read_envelope(body, tei_decoder).model
        return await self._invoke(inquiry, named or self._only(inquiry), "rerank.tei", body)

    def _only(self, inquiry: Inquiry) -> str:
        """The one deployment that can be meant."""
        found = [
            each.name
            for each in callable_deployments(self._gateway.routes, inquiry.principal)
            if any(version.task in TASKS for version in each.versions)
        ]
        if len(found) != 1:
            raise errors.InvalidInput(
                f"this key may call {len(found)} deployments that rank texts",
                hint="name one as 'model', or use a key that may call exactly one",
                param="model",
            )
        return found[0]

    async def _invoke(self, inquiry: Inquiry, deployment: str, codec: str, body: bytes) -> Response:
        return await invoke(
            self._gateway,
            inquiry,
            door="rerank",
            deployment=deployment,
            codec=codec,
            body=body,
            tokens_bound=len(body) // BYTES_PER_TOKEN,
        )
