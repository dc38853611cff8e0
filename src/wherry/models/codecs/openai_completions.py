"""OpenAI's older `completions` ↔ the task `text-generation`: a prompt is continued as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.codecs.openai_common import (
    DONE,
    REFUSED,
    SamplingFields,
    finish_json,
    legacy_logprobs,
    refuse_fields,
    sampling_of,
    seed_of_choice,
    sse,
    usage_json,
)
from wherry.models.tasks.generation import (
    GENERATION_TASKS,
    MAX_PROMPT_TOKENS,
    MAX_TOP_LOGPROBS,
    CompletionInput,
    Generation,
    TextDelta,
    TokenId,
)
from wherry.models.tasks.task import Task, TaskConfig, Usage

DEFAULT_MAX_TOKENS = 16
MAX_ITEMS = 128
"""Most answers of one request: prompts times `n`."""


class CompletionRequest(SamplingFields, kw_only=True):
    """The body of `POST /v1/completions`."""

    prompt: (
        str
        | Annotated[
            list[str | TokenId | Annotated[list[TokenId], Meta(max_length=MAX_PROMPT_TOKENS)]],
            Meta(min_length=1, max_length=MAX_PROMPT_TOKENS),
        ]
    )
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None


_request_decoder = msgspec.json.Decoder(CompletionRequest)


class OpenAICompletions:
    """The codec; its one instance is `OPENAI_COMPLETIONS`. Its context is the decoded request."""

    tasks = GENERATION_TASKS

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """Prompts in order, each `n` times; the first of each is charged for the prompt."""
        request: CompletionRequest = decode_json(body, _request_decoder)
        refuse_fields(request, REFUSED)
        _refuse_unsupported(request)
        prompts = _read_prompts(request)
        if len(prompts) * request.choices > MAX_ITEMS:
            raise InvalidInput(
                f"{len(prompts)} prompts times n={request.choices} is over {MAX_ITEMS}",
                hint="send several requests",
                param="prompt",
            )
        sampling = sampling_of(
            request, request.max_tokens or DEFAULT_MAX_TOKENS, request.logprobs, call, config
        )
        items = [
            CompletionInput(
                prompt,
                msgspec.structs.replace(sampling, seed=seed_of_choice(sampling.seed, choice)),
                echo=bool(request.echo),
                charge_prompt=choice == 0,
            )
            for prompt in prompts
            for choice in range(request.choices)
        ]
        return Decoded(items, request)

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Generation],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """A `text_completion` with a choice an output."""
        usage = sum((output.usage for output in outputs), Usage())
        answer = _head(call) | {
            "choices": [
                {
                    "index": index,
                    "text": output.text,
                    "logprobs": None
                    if output.logprobs is None
                    else legacy_logprobs(output.logprobs, 0),
                    "finish_reason": finish_json(output.finish_reason),
                }
                for index, output in enumerate(outputs)
            ],
            "usage": usage_json(usage),
        }
        return Reply(msgspec.json.encode(answer))

    def stream(self, decoded: Decoded, call: Call) -> CompletionStream:
        """An encoder of `text_completion` events."""
        return CompletionStream(call, decoded.context.include_usage)


OPENAI_COMPLETIONS = OpenAICompletions()


class CompletionStream:
    """Events of one request; the last of each choice has its finish reason."""

    def __init__(self, call: Call, include_usage: bool) -> None:
        self._head = _head(call)
        self._include_usage = include_usage
        self._offset_of: dict[int, int] = {}
        self._finished: set[int] = set()

    def event(self, index: int, output: TextDelta) -> bytes:
        """An event for the next delta of choice `index`; none for an empty one."""
        ends = output.finish_reason is not None and index not in self._finished
        if not (output.text or output.logprobs or ends):
            return b""
        offset = self._offset_of.get(index, 0)
        self._offset_of[index] = offset + len(output.text)
        if ends:
            self._finished.add(index)
        choice = {
            "index": index,
            "text": output.text,
            "logprobs": legacy_logprobs(output.logprobs, offset) if output.logprobs else None,
            "finish_reason": finish_json(output.finish_reason) if ends else None,
        }
        event = self._head | {"choices": [choice]}
        if self._include_usage:
            event["usage"] = None
        return sse(event)

    def end(self, usage: Usage) -> bytes:
        """The usage event if it was asked for, and `[DONE]`."""
        if not self._include_usage:
            return DONE
        return sse(self._head | {"choices": [], "usage": usage_json(usage)}) + DONE


def _head(call: Call) -> dict[str, Any]:
    return {
        "id": f"cmpl-{call.request_id}",
        "object": "text_completion",
        "created": call.created,
        "model": call.deployment,
        "system_fingerprint": f"version-{call.version}",
    }


def _refuse_unsupported(request: CompletionRequest) -> None:
    if request.suffix:
        raise InvalidInput(
            "'suffix' is not supported", hint="the model only continues text", param="suffix"
        )
    if request.best_of is not None and request.best_of != request.choices:
        raise InvalidInput(
            "'best_of' must equal 'n'", hint="choose the best answer yourself", param="best_of"
        )
    if request.echo and request.logprobs is not None:
        raise InvalidInput(
            "'echo' with 'logprobs' is not supported",
            hint="log-probabilities are known for generated tokens only",
            param="echo",
        )


def _read_prompts(request: CompletionRequest) -> list[str | list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(each, int) for each in prompt):
        return [[each for each in prompt if isinstance(each, int)]]
    texts: list[str | list[int]] = [each for each in prompt if isinstance(each, str)]
    token_lists: list[str | list[int]] = [
        each for each in prompt if isinstance(each, list) and each
    ]
    if len(prompt) not in (len(texts), len(token_lists)):
        raise InvalidInput(
            "'prompt' mixes texts, token ids and lists, or holds an empty list",
            hint="send one text, a list of texts, a list of token ids or a list of such lists",
            param="prompt",
        )
    return texts or token_lists
