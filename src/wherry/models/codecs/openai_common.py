"""What OpenAI's generation codecs share: parameters, tools, formats, usage, log-probabilities, events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.chat_tools import check_tool_choice, check_tools
from wherry.models.codecs.codec import Call
from wherry.models.tasks.generation import (
    MAX_LOGIT_BIASES,
    MAX_TOKEN_ID,
    FunctionName,
    JsonFormat,
    Penalty,
    Sampling,
    StopText,
    TokenId,
    TokenLogprob,
    Tool,
    ToolChoice,
    cap_tokens,
    check_json_size,
)
from wherry.models.tasks.task import TaskConfig, Usage

MAX_CHOICES = 8
MAX_STOPS = 4
LEAST_LOGPROB = -9999.0
"""What OpenAI writes for "impossible": JSON has no infinity."""

DONE = b"data: [DONE]\n\n"

MaxTokens: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_TOKEN_ID)]
Choices: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]


class WireFunction(msgspec.Struct):
    """A function the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class WireJsonSchema(msgspec.Struct):
    """A schema that the answer must fit."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    schema: dict[str, Any] = {}
    strict: bool | None = None
    description: str | None = None


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """Fields with one meaning in both request bodies; `null` is the same as leaving out.

    `top_k`, `min_p` and `repetition_penalty` are not OpenAI's but vLLM's and Hugging Face's.
    """

    model: str | None = None
    n: Choices | None = None
    max_tokens: MaxTokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=MAX_STOPS)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]],
            Meta(max_length=MAX_LOGIT_BIASES),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    chat_template: Any = UNSET
    chat_template_kwargs: Any = UNSET
    grammar: Any = UNSET
    guided_json: Any = UNSET
    guided_regex: Any = UNSET
    guided_choice: Any = UNSET
    guided_grammar: Any = UNSET

    @property
    def choices(self) -> int:
        """How many answers are wanted for one prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


REFUSED = {
    "chat_template": "the model's own chat template is used",
    "chat_template_kwargs": "the model's own chat template is used",
    "grammar": "use response_format",
    "guided_json": "use response_format",
    "guided_regex": "use response_format",
    "guided_choice": "use response_format with an enum",
    "guided_grammar": "use response_format",
}
"""Fields of other servers whose silent loss would change the answer → what to do instead."""


def refuse_fields(request: SamplingFields, refused: dict[str, str]) -> None:
    """Refuse fields that are known, cannot be honoured and must not be ignored."""
    for name, hint in refused.items():
        if getattr(request, name) not in (UNSET, None):
            raise InvalidInput(f"{name!r} is not supported", hint=hint, param=name)


def sampling_of(
    request: SamplingFields,
    max_tokens: int | None,
    top_logprobs: int | None,
    call: Call,
    config: TaskConfig,
) -> Sampling:
    """The task's sampling of a request's fields, tokens capped by bundle and deployment."""
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return Sampling(
        max_tokens=cap_tokens(max_tokens, config, call.max_tokens),
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=None if request.top_k is None else max(0, request.top_k),  # -1 is vLLM's for all
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed,
        stop=stop,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=request.logit_bias or {},
        top_logprobs=top_logprobs,
    )


def read_tools(functions: Sequence[WireFunction], schema_field: str) -> list[Tool]:
    """The tools of functions; `schema_field` is where one of the request's `tools` has its schema."""
    tools = [
        Tool(
            name=function.name,
            description=function.description or "",
            parameters=function.parameters or {},
            strict=bool(function.strict),
        )
        for function in functions
    ]
    check_tools(tools, schema_field)
    return tools


def read_tool_choice(
    mode: Literal["none", "auto", "required"] | None, name: str | None, tools: Sequence[Tool]
) -> ToolChoice:
    """Whether a tool is called; `name` forces one of them."""
    choice = ToolChoice(mode or "auto") if name is None else ToolChoice("named", name)
    check_tool_choice(choice, tools)
    return choice


def read_schema(found: WireJsonSchema, place: str) -> JsonFormat:
    """The format of a schema that a request names at `place`."""
    check_json_size(found.schema, f"{place}.schema")
    return JsonFormat(found.schema, strict=bool(found.strict), name=found.name)


def seed_of_choice(seed: int | None, choice: int) -> int | None:
    """Each answer to one prompt gets its own seed, or all would be equal."""
    return None if seed is None else (seed + choice + 2**63) % 2**64 - 2**63


def usage_json(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`; it never tells whether a prompt was cached."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


OpenAIFinish: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]


def finish_json(reason: str | None) -> OpenAIFinish:
    """A finish reason that clients know; a cancelled answer reads as cut off."""
    match reason:
        case "stop" | "tool_calls" | "content_filter":
            return reason
        case _:
            return "length"


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The shape of chat completions."""
    return {
        "content": [
            {
                "token": each.token,
                "logprob": max(each.logprob, LEAST_LOGPROB),
                "bytes": each.bytes,
                "top_logprobs": [
                    {
                        "token": rival.token,
                        "logprob": max(rival.logprob, LEAST_LOGPROB),
                        "bytes": rival.bytes,
                    }
                    for rival in each.top
                ],
            }
            for each in logprobs
        ],
        "refusal": None,
    }


def legacy_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """The shape of completions; `offset` is where the first token starts in the text."""
    offsets: list[int] = []
    for each in logprobs:
        offsets.append(offset)
        offset += len(each.token)
    return {
        "tokens": [each.token for each in logprobs],
        "token_logprobs": [max(each.logprob, LEAST_LOGPROB) for each in logprobs],
        "top_logprobs": [
            {rival.token: max(rival.logprob, LEAST_LOGPROB) for rival in each.top}
            for each in logprobs
        ],
        "text_offset": offsets,
    }


def sse(event: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(event) + b"\n\n"
