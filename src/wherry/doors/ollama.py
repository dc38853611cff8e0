"""Ollama's API, for tools that speak only that: chat, generate, embeddings, and what is there.

https://github.com/ollama/ollama/blob/main/docs/api.md. A deployment is a model; `name:latest` is the
deployment `name`. Models are neither made nor removed here.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from wherry import errors
from wherry.client import schema
from wherry.doors.envelope import BYTES_PER_TOKEN, read_envelope
from wherry.doors.errors import encode, ollama_error, render_ollama
from wherry.doors.invoke import Piece, invoke
from wherry.doors.route import Handler, Inquiry, Permission, Response, Row, json_response
from wherry.gateway.admit import find_deployment
from wherry.gateway.exchange import Exchange
from wherry.gateway.predict import Gateway
from wherry.gateway.route import DeploymentRoute, VersionRoute
from wherry.models.registry.registry import Registry

OLLAMA_VERSION = "0.12.0"
"""Whose API this is: tools compare it with what they need."""
NDJSON = "application/x-ndjson"
LATEST = ":latest"
DEFAULT_TOKENS = 512
"""Reserved for an answer whose request names no maximum."""
CAPABILITIES = {
    "text-generation": ["completion", "tools"],
    "image-text-to-text": ["completion", "tools", "vision"],
    "feature-extraction": ["embedding"],
}
"""Tasks that can be called here → Ollama's words for what such models can do."""
FORMATS = {"llama_cpp": "gguf", "onnx": "onnx"}
END = b'"done":true}'
"""How the last piece of an answer ends: no text can, as its quotes would be escaped."""


class Options(msgspec.Struct):
    """Of `options`."""

    num_predict: int | None = None


class Envelope(msgspec.Struct):
    """The few fields that the gateway reads of a body; the worker reads the rest."""

    model: str = ""
    name: str = ""
    """What older clients call the model."""
    stream: bool | None = None
    options: Options | None = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()

    @property
    def deployment(self) -> str:
        """The name without `:latest`."""
        name = self.model or self.name
        if not name:
            raise errors.InvalidInput("the request names no model", param="model")
        return name.removesuffix(LATEST)

    @property
    def has_question(self) -> bool:
        """Whether there is anything to answer; else the model is only to be loaded."""
        return any(bytes(each) not in (b"", b"null", b"[]", b'""') for each in self._questions)

    @property
    def _questions(self) -> tuple[msgspec.Raw, msgspec.Raw]:
        return self.messages, self.prompt

    def tokens_bound(self, size: int) -> int:
        """Most tokens the request can cost."""
        wanted = self.options.num_predict if self.options else None
        asked = wanted if wanted and wanted > 0 else DEFAULT_TOKENS
        return asked + size // BYTES_PER_TOKEN


envelope_decoder = msgspec.json.Decoder(Envelope)


class OllamaDoor:
    """Rows of the API."""

    def __init__(self, gateway: Gateway, registry: Registry) -> None:
        self._gateway = gateway
        self._registry = registry

    def rows(self) -> list[Row]:
        """The table."""
        return [
            self._post("/api/chat", self.chat, "ollama.chat", "Chat, streaming unless told not to"),
            self._post(
                "/api/generate", self.generate, "ollama.generate", "Answer or continue a text"
            ),
            self._post("/api/embed", self.embed, "ollama.embed", "Vectors of texts"),
            self._post(
                "/api/embeddings", self.embeddings, "ollama.embeddings", "The vector of a text"
            ),
            _row("POST", "/api/show", "any", self.show, "One deployment", has_body=True),
            _row("GET", "/api/tags", "any", self.tags, "Deployments this key may call here"),
            _row("GET", "/api/ps", "any", self.running, "Those that are loaded"),
            _row("GET", "/api/version", "any", self.version, "The API's version"),
            _row("POST", "/api/pull", "any", self.pull, "Whether it is there", has_body=True),
            _row("POST", "/api/create", "any", self.refuse, "Not served: says how", has_body=True),
            _row("POST", "/api/copy", "any", self.refuse, "Not served: says how", has_body=True),
            _row("POST", "/api/push", "any", self.refuse, "Not served: says how", has_body=True),
            _row("DELETE", "/api/delete", "any", self.refuse, "Not served: says how"),
        ]

    def _post(self, path: str, handler: Handler, codec: str, summary: str) -> Row:
        return Row(
            method="POST",
            path=path,
            permission="invoke",
            handler=handler,
            summary=summary,
            render=render_ollama,
            request=dict,
            answer=dict,
            tag="ollama",
            body_limit=self._gateway.settings.max_body_bytes,
            streams="embed" not in path,
            stream_type=NDJSON,
            codec=codec,
        )

    # ------------------------------------------------------------------ answers of models

    async def chat(self, inquiry: Inquiry) -> Response:
        """The next message of a conversation."""
        return await self._generate(inquiry, "ollama.chat")

    async def generate(self, inquiry: Inquiry) -> Response:
        """An answer to a prompt."""
        return await self._generate(inquiry, "ollama.generate")

    async def embed(self, inquiry: Inquiry) -> Response:
        """Vectors."""
        return await self._embed(inquiry, "ollama.embed")

    async def embeddings(self, inquiry: Inquiry) -> Response:
        """One vector, as older clients ask for it."""
        return await self._embed(inquiry, "ollama.embeddings")

    async def _generate(self, inquiry: Inquiry, codec: str) -> Response:
        body = await inquiry.body()
        envelope = read_envelope(body, envelope_decoder)
        return await invoke(
            self._gateway,
            inquiry,
            door="ollama",
            deployment=envelope.deployment,
            codec=codec,
            body=body,
            stream=envelope.stream is not False and envelope.has_question,
            stream_type=NDJSON,
            tokens_bound=envelope.tokens_bound(len(body)),
            error_event=_error_line,
            amend=Stopwatch(),
        )

    async def _embed(self, inquiry: Inquiry, codec: str) -> Response:
        body = await inquiry.body()
        envelope = read_envelope(body, envelope_decoder)
        return await invoke(
            self._gateway,
            inquiry,
            door="ollama",
            deployment=envelope.deployment,
            codec=codec,
            body=body,
            tokens_bound=len(body) // BYTES_PER_TOKEN,
        )

    # ------------------------------------------------------------------ what is there

    async def tags(self, inquiry: Inquiry) -> Response:
        """Deployments that can be called here."""
        found = self._callable(inquiry)
        cards = await asyncio.to_thread(self._describe_all, found)
        return json_response({"models": [_entry(*each) for each in zip(found, cards, strict=True)]})

    async def running(self, inquiry: Inquiry) -> Response:
        """Those that have workers now."""
        found = [each for each in self._callable(inquiry) if each.versions[0].workers]
        cards = await asyncio.to_thread(self._describe_all, found)
        return json_response(
            {"models": [_running_entry(*each) for each in zip(found, cards, strict=True)]}
        )

    async def show(self, inquiry: Inquiry) -> Response:
        """What is known of one deployment."""
        envelope = read_envelope(await inquiry.body(), envelope_decoder)
        deployment, version = self._find(inquiry, envelope)
        (described,) = await asyncio.to_thread(self._describe_all, [deployment])
        context = (
            {"wherry.context_length": version.context_tokens} if version.context_tokens else {}
        )
        return json_response(
            {
                "modelfile": f"# {version.key} {version.digest}",
                "parameters": "",
                "template": "",
                "license": described.card.licence if described else "",
                "details": _details(version),
                "model_info": {"general.architecture": "wherry", "general.task": version.task}
                | context,
                "capabilities": CAPABILITIES.get(version.task, []),
                "modified_at": _moment(deployment.created_at),
            }
        )

    async def version(self, inquiry: Inquiry) -> Response:
        """The version of Ollama whose API this is."""
        return json_response({"version": OLLAMA_VERSION})

    # ------------------------------------------------------------------ what others make

    async def pull(self, inquiry: Inquiry) -> Response:
        """Success if the deployment is there, as many tools pull before they chat."""
        envelope = read_envelope(await inquiry.body(), envelope_decoder)
        self._find(inquiry, envelope)
        line = encode({"status": "success"})
        is_stream = envelope.stream is not False
        return Response(
            line + b"\n" * is_stream, content_type=NDJSON if is_stream else "application/json"
        )

    async def refuse(self, inquiry: Inquiry) -> Response:
        """Models are made and removed over the platform API."""
        raise errors.InvalidInput(
            "models are not made, copied, sent or removed over Ollama's API",
            hint="wherry pull, wherry import, wherry deploy, wherry undeploy and wherry rm do it",
        )

    def _find(self, inquiry: Inquiry, envelope: Envelope) -> tuple[DeploymentRoute, VersionRoute]:
        name = envelope.deployment
        deployment, _ = find_deployment(self._gateway.routes, inquiry.principal, name)
        if not deployment.versions:
            raise errors.ModelNotFound(f"deployment {name[:200]!r} serves no version")
        return deployment, deployment.versions[0]

    def _callable(self, inquiry: Inquiry) -> list[DeploymentRoute]:
        principal = inquiry.principal
        return [
            each
            for each in self._gateway.routes.of_team(principal.team_id)
            if principal.can_call(each.name)
            and each.versions
            and each.versions[0].task in CAPABILITIES
        ]

    def _describe_all(self, deployments: list[DeploymentRoute]) -> list[schema.Version | None]:
        """The versions that deployments serve; None for one that has been removed since."""
        found: list[schema.Version | None] = []
        for each in deployments:
            try:
                found.append(self._registry.describe(each.team_id, each.versions[0].key))
            except errors.ModelNotFound:
                found.append(None)
        return found


class Stopwatch:
    """Puts measured durations behind an answer, in nanoseconds.

    `load_duration` is the time until a worker began: the queue and, if it had to be loaded, the
    model. An answer in one piece does not tell when its first token came, so its `eval_duration` is
    that of prompt and answer together, and it has no `prompt_eval_duration`.
    """

    def __init__(self) -> None:
        self._first_at = 0.0

    def __call__(self, exchange: Exchange, piece: Piece) -> Piece:
        """The piece; with durations if it is the last one."""
        now = time.monotonic()
        is_first = not self._first_at
        self._first_at = self._first_at or now
        stripped = bytes(piece[-len(END) - 1 :]).rstrip(b"\n")
        if not stripped.endswith(END):
            return piece
        begun_at = max(exchange.started_at or exchange.sent_at, exchange.admitted_at)
        durations = {
            "total_duration": now - exchange.admitted_at,
            "load_duration": begun_at - exchange.admitted_at,
            "eval_duration": now - (begun_at if is_first else self._first_at),
        }
        if not is_first:
            durations["prompt_eval_duration"] = self._first_at - begun_at
        told = encode({name: max(0, int(value * 1e9)) for name, value in durations.items()})
        whole = bytes(piece).rstrip(b"\n")
        return whole[:-1] + b"," + told[1:] + bytes(piece)[len(whole) :]


def _row(
    method: str,
    path: str,
    permission: Permission,
    handler: Handler,
    summary: str,
    *,
    has_body: bool = False,
) -> Row:
    return Row(
        method=method,
        path=path,
        permission=permission,
        handler=handler,
        summary=summary,
        render=render_ollama,
        request=dict if has_body else None,
        answer=dict,
        tag="ollama",
    )


def _error_line(error: errors.WherryError) -> bytes:
    """After the first byte there is no status: clients raise on a line with `error`."""
    return encode({"error": ollama_error(error)}) + b"\n"


def _entry(deployment: DeploymentRoute, described: schema.Version | None) -> dict[str, Any]:
    version = deployment.versions[0]
    name = deployment.name + LATEST
    return {
        "name": name,
        "model": name,
        "modified_at": _moment(deployment.created_at),
        "size": described.card.size_bytes if described else 0,
        "digest": version.digest.removeprefix("sha256:"),
        "details": _details(version),
        "capabilities": CAPABILITIES.get(version.task, []),
    }


def _running_entry(deployment: DeploymentRoute, described: schema.Version | None) -> dict[str, Any]:
    """As in the list, but the size is that in memory, as it was measured at import."""
    memory_mib = described.card.memory_mib if described else 0
    version = deployment.versions[0]
    entry = _entry(deployment, described) | {"size": memory_mib << 20}
    return entry | ({"context_length": version.context_tokens} if version.context_tokens else {})


def _details(version: VersionRoute) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": FORMATS.get(version.runtime, version.runtime),
        "family": version.model,
        "families": [version.model],
        "parameter_size": "",
        "quantization_level": "",
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
