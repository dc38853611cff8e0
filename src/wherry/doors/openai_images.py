"""OpenAI's pictures: `POST /v1/images/generations`."""

from __future__ import annotations

import msgspec

from wherry.doors.envelope import BYTES_PER_TOKEN, read_envelope
from wherry.doors.errors import render_openai
from wherry.doors.invoke import invoke
from wherry.doors.route import Inquiry, Response, Row
from wherry.gateway.predict import Gateway


class ImagesEnvelope(msgspec.Struct):
    """What the gateway reads of the body; the worker reads the rest."""

    model: str


envelope_decoder = msgspec.json.Decoder(ImagesEnvelope)


class OpenAIImagesDoor:
    """The one row."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def rows(self) -> list[Row]:
        """The table."""
        return [
            Row(
                method="POST",
                path="/v1/images/generations",
                permission="invoke",
                handler=self.generate,
                summary="Make pictures of a text",
                render=render_openai,
                request=dict,
                answer=dict,
                tag="openai",
                body_limit=self._gateway.settings.max_body_bytes,
                content_types=("application/json",),
                codec="openai.images",
            )
        ]

    async def generate(self, inquiry: Inquiry) -> Response:
        """Pictures of a prompt."""
        body = await inquiry.body()
        return await invoke(
            self._gateway,
            inquiry,
            door="openai",
            deployment=read_envelope(body, envelope_decoder).model,
            codec="openai.images",
            body=body,
            tokens_bound=len(body) // BYTES_PER_TOKEN,
        )
