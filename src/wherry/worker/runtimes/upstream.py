"""Runtime `upstream`: answers by asking another OpenAI-compatible server.

It chats, continues texts, and translates or summarizes by a prompt (`upstream_prompts`); the other
server may be this one, with a deployment that chats.

Bundle options: `upstream_client.ServerOptions`. The key is no option: a bundle is copied, shown and exported.
It arrives through `configure`, as the secret `api_key`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from threading import Event
from typing import Any

import httpx

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.generation import GenerationInput, TextDelta
from wherry.models.tasks.image_text_to_text import IMAGE_TEXT_TO_TEXT
from wherry.models.tasks.options import read_options
from wherry.models.tasks.text_to_text import TextToTextInput, TextToTextOutput
from wherry.worker.runtimes.upstream_client import ServerOptions, UpstreamClient, admit
from wherry.worker.runtimes.upstream_prompts import PROMPTS, PromptedTask, read_answer


class UpstreamRuntime:
    """Streams answers of one model of one server."""

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        self.max_concurrency = 1
        self._secrets = dict(secrets or {})
        self._client: UpstreamClient | None = None
        self._prompted: PromptedTask | None = None
        self._sees = False

    def configure(
        self, secrets: Mapping[str, str], options: Mapping[str, Any] | None = None
    ) -> None:
        """Take the deployment's secrets, of which `api_key` is used; there are no options."""
        del options
        self._secrets = dict(secrets)

    def load(self, bundle: Bundle, device: str) -> None:
        """Check the options; the server is not asked, it may be down now and up later."""
        del device
        options = bundle.manifest.options
        if "api_key" in options:
            raise InvalidInput(
                "'api_key' must not be in a bundle", hint="give it as a secret of the deployment"
            )
        found = read_options(options, ServerOptions)
        _check_url(found.base_url)
        self.max_concurrency = found.max_concurrency
        self._sees = bundle.manifest.task == IMAGE_TEXT_TO_TEXT.name
        if bundle.manifest.task in PROMPTS:
            self._prompted = PromptedTask(bundle)
        self._client = UpstreamClient(found, self._secrets.get("api_key", ""))

    async def stream(
        self, item: GenerationInput | TextToTextInput, cancelled: Event, tenant: str
    ) -> AsyncIterator[TextDelta | TextToTextOutput]:
        """Deltas as the server sends them; a text that is made by a prompt comes in one piece."""
        del tenant  # the server behind knows one client: us
        if self._client is None:
            raise ModelFailed("the model is not loaded")
        if isinstance(item, TextToTextInput):
            yield await self._answer_by_prompt(self._client, item, cancelled)
            return
        await admit(item, sees=self._sees)
        async with aclosing(self._client.stream(item, cancelled)) as deltas:
            async for delta in deltas:
                yield delta

    async def _answer_by_prompt(
        self, client: UpstreamClient, item: TextToTextInput, cancelled: Event
    ) -> TextToTextOutput:
        if self._prompted is None:
            raise ModelFailed("the model is not loaded")
        pair = self._prompted.choose_languages(item)
        chat = self._prompted.chat_of(item, pair)
        async with aclosing(client.stream(chat, cancelled)) as deltas:
            return await read_answer(deltas, item, pair)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()


def _check_url(base_url: str) -> None:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise InvalidInput("base_url is not a URL") from error
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
        raise InvalidInput(
            "base_url is not usable",
            hint="http or https, a host, no user and no query: https://llm.example/v1",
        )
