"""Ollama's `/api/generate` ↔ the tasks that chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.codecs.ollama_common import (
    LOADED,
    GenerationFields,
    end_of,
    head_of,
    json_format_of,
    line,
    logprobs_json,
    sampling_of,
)
from wherry.models.codecs.ollama_images import picture_parts
from wherry.models.tasks.generation import (
    GENERATION_TASKS,
    MAX_PARTS,
    ChatInput,
    CompletionInput,
    FinishReason,
    Generation,
    GenerationInput,
    Message,
    TextDelta,
    TextPart,
)
from wherry.models.tasks.task import Task, TaskConfig, Usage

REFUSED = {
    "suffix": "the model only continues text",
    "template": "the model's own chat template is used; with raw, the prompt is taken as it is",
    "context": "send the conversation so far to /api/chat",
}
"""Fields whose silent loss would change the answer → what to do instead."""


class GenerateRequest(GenerationFields, kw_only=True):
    """The body."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: Annotated[list[str], Meta(max_length=MAX_PARTS)] | None = None
    suffix: Any = UNSET
    template: Any = UNSET
    context: Any = UNSET


_request_decoder = msgspec.json.Decoder(GenerateRequest)


class OllamaGenerate:
    """The codec; its one instance is `OLLAMA_GENERATE`. Its context is the decoded request."""

    tasks = GENERATION_TASKS

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """One prompt, or none: then the model is only to be loaded."""
        request: GenerateRequest = decode_json(body, _request_decoder)
        for name, hint in REFUSED.items():
            if getattr(request, name) not in (UNSET, None, "", []):
                raise InvalidInput(f"{name!r} is not supported", hint=hint, param=name)
        if not request.prompt:
            return Decoded([], request)
        return Decoded([_read_item(request, request.prompt, call, config)], request)

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Generation],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """The whole answer."""
        answer = head_of(decoded.context.model, call)
        if not outputs:
            return Reply(msgspec.json.encode(answer | {"response": ""} | LOADED))
        (output,) = outputs
        answer["response"] = output.text
        if output.logprobs is not None:
            answer["logprobs"] = logprobs_json(output.logprobs)
        return Reply(msgspec.json.encode(answer | end_of(output.finish_reason, output.usage)))

    def stream(self, decoded: Decoded, call: Call) -> GenerateLines:
        """An encoder of lines."""
        return GenerateLines(head_of(decoded.context.model, call))


OLLAMA_GENERATE = OllamaGenerate()


class GenerateLines:
    """Lines of one request."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = head
        self._reason: FinishReason | None = None

    def event(self, index: int, output: TextDelta) -> bytes:
        """A line for the next delta, if it has text."""
        self._reason = output.finish_reason or self._reason
        if not output.text and not output.logprobs:
            return b""
        extra = {"logprobs": logprobs_json(output.logprobs)} if output.logprobs else {}
        return line(self._head | {"response": output.text} | extra | {"done": False})

    def end(self, usage: Usage) -> bytes:
        """The last line."""
        return line(self._head | {"response": ""} | end_of(self._reason, usage))


def _read_item(
    request: GenerateRequest, prompt: str, call: Call, config: TaskConfig
) -> GenerationInput:
    sampling = sampling_of(request, call, config)
    json_format = json_format_of(request.format)
    if request.raw:
        for name in ("system", "images", "format"):
            if getattr(request, name):
                raise InvalidInput(f"'raw' takes no {name!r}", param=name)
        return CompletionInput(prompt, sampling)
    user = Message("user", prompt)
    if request.images:
        user.content = [TextPart(prompt), *picture_parts(request.images, "images")]
    system = [Message("system", request.system)] if request.system else []
    return ChatInput([*system, user], sampling, json_format=json_format)
