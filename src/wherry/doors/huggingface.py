"""Hugging Face's task API: a URL for each deployment, which takes what its task takes.

`/hf/{name}` is what clients are given as `model`. `/models/{name}` and `/pipeline/{task}/{name}` are
the paths of Hugging Face's own service, for clients that are given its address instead.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from wherry import __version__, errors
from wherry.doors.envelope import BYTES_PER_TOKEN, ChatEnvelope, read_envelope
from wherry.doors.errors import encode, huggingface_error, render_huggingface, status_of
from wherry.doors.invoke import invoke, invoke_direct
from wherry.doors.route import Direct, Handler, Inquiry, Response, Row, json_response
from wherry.gateway.admit import find_deployment
from wherry.gateway.predict import Gateway
from wherry.gateway.route import DeploymentRoute
from wherry.models.tasks.generation import GENERATION_TASKS

TASK = Direct(
    "huggingface",
    "hf",
    forward=("accept", "content-type", "user-agent"),
    # what a model that writes texts is asked, and nearly nobody else
    read_words=(b'"stream"', b'"max_new_tokens"'),
)
DEFAULT_NEW_TOKENS = 100
"""Reserved for an answer whose request names no maximum: the codec's default."""
EMBEDDER_TASKS = frozenset(
    {"feature-extraction", "sentence-similarity", "text-ranking", "zero-shot-classification"}
)
"""What a path may ask of an embedder: the body says which it is."""
URLS = ("/hf/{name:path}", "/models/{name:path}")


class GenerationBounds(msgspec.Struct):
    """Of `parameters`, what the gateway reads."""

    max_new_tokens: Annotated[int, Meta(ge=0)] | None = None


class GenerationEnvelope(msgspec.Struct):
    """What the gateway reads of a body that asks for a text; the worker reads the rest."""

    stream: bool | None = None
    parameters: GenerationBounds | None = None

    def tokens_bound(self, size: int) -> int:
        """Most tokens the request can cost."""
        asked = self.parameters.max_new_tokens if self.parameters else None
        return (DEFAULT_NEW_TOKENS if asked is None else asked) + size // BYTES_PER_TOKEN


class EndpointInfo(msgspec.Struct):
    """What `GET …/info` answers: the names that Hugging Face's servers use."""

    model_id: str
    model_sha: str
    """Digest of the version that serves."""
    model_pipeline_tag: str
    """The task."""
    version: str
    """Of Wherry."""


openai_decoder = msgspec.json.Decoder(ChatEnvelope)
generation_decoder = msgspec.json.Decoder(GenerationEnvelope)


class HuggingFaceDoor:
    """Rows of the API."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def rows(self) -> list[Row]:
        """The table; what has more after the name comes first."""
        below = [row for url in URLS for row in self._rows_below(url)]
        named = [self._post(url, self.task, "Ask a model what its task is", TASK) for url in URLS]
        pipeline = "Ask a model for a task by name"
        return [
            *below,
            self._post("/models/{name:path}/pipeline/{task}", self.pipeline, pipeline),
            self._post("/pipeline/{task}/{name:path}", self.pipeline, pipeline),
            *named,
        ]

    def _rows_below(self, url: str) -> list[Row]:
        chat = "Chat with the deployment of the path, whatever the body calls it"
        text = "Let the deployment of the path complete a text"
        return [
            self._post(f"{url}/v1/completions", self.complete, text, codec="openai.completions"),
            self._post(f"{url}/v1/chat/completions", self.chat, chat, codec="openai.chat"),
            self._post(f"{url}/chat/completions", self.chat, chat, codec="openai.chat"),
            self._get(f"{url}/health", self.health, "Whether a deployment can answer"),
            self._get(f"{url}/info", self.info, "What a deployment serves", EndpointInfo),
        ]

    def _post(
        self,
        path: str,
        handler: Handler,
        summary: str,
        direct: Direct | None = None,
        codec: str = TASK.codec,
    ) -> Row:
        return Row(
            method="POST",
            path=path,
            permission="invoke",
            handler=handler,
            summary=summary,
            render=render_huggingface,
            request=dict,
            answer=dict,
            tag="huggingface",
            body_limit=self._gateway.settings.max_body_bytes,
            streams=True,
            codec=codec,
            direct=direct,
        )

    def _get(self, path: str, handler: Handler, summary: str, answer: Any = None) -> Row:
        return Row(
            method="GET",
            path=path,
            permission="any",
            handler=handler,
            summary=summary,
            render=render_huggingface,
            answer=answer,
            tag="huggingface",
        )

    async def task(self, inquiry: Inquiry) -> Response:
        """Whatever the deployment does."""
        return await self._ask(inquiry, self._find(inquiry))

    async def pipeline(self, inquiry: Inquiry) -> Response:
        """The same, if it does what the path says."""
        deployment = self._find(inquiry)
        asked, own = inquiry.params["task"], task_of(deployment)
        if asked != own and not (own == "feature-extraction" and asked in EMBEDDER_TASKS):
            raise errors.InvalidInput(
                f"deployment {deployment.name!r} does {own}, not {asked[:100]!r}",
                hint=f"ask /hf/{deployment.name}, or name its own task",
            )
        return await self._ask(inquiry, deployment)

    async def chat(self, inquiry: Inquiry) -> Response:
        """A conversation in OpenAI's form; `model` is what the path says."""
        return await self._ask_as_openai(inquiry, "openai.chat")

    async def complete(self, inquiry: Inquiry) -> Response:
        """A text to be gone on with, in OpenAI's form."""
        return await self._ask_as_openai(inquiry, "openai.completions")

    async def health(self, inquiry: Inquiry) -> Response:
        """200 if a request would be answered."""
        deployment = self._find(inquiry)
        if not deployment.is_servable:
            raise errors.NotReady(
                f"deployment {deployment.name!r} is {deployment.state}",
                hint="ask again in a moment",
                retry_after_seconds=max(1.0, deployment.retry_after_seconds),
            )
        return json_response({"status": "ok"})

    async def info(self, inquiry: Inquiry) -> Response:
        """Name, digest and task."""
        deployment = self._find(inquiry)
        digest = deployment.versions[0].digest if deployment.versions else ""
        return json_response(
            EndpointInfo(deployment.name, digest, task_of(deployment), __version__)
        )

    def _find(self, inquiry: Inquiry) -> DeploymentRoute:
        name = inquiry.params["name"]
        return find_deployment(self._gateway.routes, inquiry.principal, name)[0]

    async def _ask(self, inquiry: Inquiry, deployment: DeploymentRoute) -> Response:
        if task_of(deployment) not in GENERATION_TASKS:
            return await invoke_direct(self._gateway, inquiry, TASK)
        body = await inquiry.body()
        envelope = read_envelope(body, generation_decoder)
        return await self._generate(
            inquiry, TASK.codec, body, bool(envelope.stream), envelope.tokens_bound(len(body))
        )

    async def _ask_as_openai(self, inquiry: Inquiry, codec: str) -> Response:
        body = await inquiry.body()
        envelope = read_envelope(body, openai_decoder)
        return await self._generate(
            inquiry, codec, body, bool(envelope.stream), envelope.tokens_bound(len(body))
        )

    async def _generate(
        self, inquiry: Inquiry, codec: str, body: bytes, stream: bool, tokens_bound: int
    ) -> Response:
        return await invoke(
            self._gateway,
            inquiry,
            door=TASK.door,
            deployment=inquiry.params["name"],
            codec=codec,
            body=body,
            stream=stream,
            tokens_bound=tokens_bound,
            error_event=_error_event,
        )


def task_of(deployment: DeploymentRoute) -> str:
    """What its versions do; "" before it has any."""
    return deployment.versions[0].task if deployment.versions else ""


def _error_event(error: errors.WherryError) -> bytes:
    """After the first byte there is no status: clients raise on a line with `error`."""
    return b"data: " + encode(huggingface_error(error, status_of(error))) + b"\n\n"
