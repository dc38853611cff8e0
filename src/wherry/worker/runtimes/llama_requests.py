"""Requests to llama.cpp's server: every parameter named, checked and bounded.

Only parameters set here reach it. It would take many more from a request (templates, grammars,
slot numbers, adapters), and trusts all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from wherry.errors import ContextLengthExceeded, InvalidInput
from wherry.models.tasks.generation import (
    ChatInput,
    CompletionInput,
    GenerationInput,
    Message,
    Sampling,
    check_json_size,
)
from wherry.worker.runtimes.chat_prompt import (
    Neutraliser,
    TemplateAbilities,
    forced_tools,
    render_messages,
    render_native_tools,
    tools_in_text,
)
from wherry.worker.runtimes.chat_template import no_template
from wherry.worker.runtimes.gguf import GgufFacts
from wherry.worker.runtimes.json_conformance import Schema
from wherry.worker.runtimes.json_schema_guard import guard_schema
from wherry.worker.runtimes.tool_calls import (
    AnswerReader,
    CallFinder,
    ForcedCallReader,
    TextReader,
)

RANDOM_SEED = 2**32 - 1
"""What llama.cpp takes as "choose a seed yourself"."""
GUIDANCE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value: a small model else spends its tokens on blanks."""


class LlamaFacts(msgspec.Struct, frozen=True):
    """What requests must fit."""

    gguf: GgufFacts
    context_tokens: int
    """Of one slot: prompt and answer together."""
    abilities: TemplateAbilities = TemplateAbilities()
    has_guidance: bool = True
    """Built with the llguidance engine (all wheels of ours on Linux are)."""
    temperature: float | None = None
    top_p: float | None = None
    system: str = ""
    """For conversations that have no system message."""
    has_template: bool = True
    """Whether the model says how a conversation is written, or its bundle does."""
    stops: tuple[str, ...] = ()
    """Texts at which the template ends an answer, where no token does."""


class LlamaRequest(msgspec.Struct):
    """One generation, ready to run."""

    body: dict[str, Any]
    is_chat: bool
    reader: AnswerReader
    schema: Schema | None = None
    """What the answer must conform to; guarded."""
    top_logprobs: int | None = None
    charge_prompt: bool = True
    stops: Sequence[str] = ()
    """The client's own: only these are told to have ended an answer."""
    count_only: bool = False
    """End as soon as the length of the prompt is known."""
    echo: str | list[int] = ""
    """Text, or tokens, to give back before the answer."""


def build_request(
    item: GenerationInput,
    facts: LlamaFacts,
    neutralise: Neutraliser,
    pictures: Sequence[str] = (),
) -> LlamaRequest:
    """The request for an item; raises `InvalidInput` for all that llama.cpp would get wrong.

    `pictures` are those of the conversation as `data:` URLs that llama.cpp may read.
    """
    if isinstance(item, ChatInput):
        request = _build_chat(item, facts, neutralise, pictures)
    else:
        request = _build_completion(item, facts)
    request.body = (
        _sampling_body(item.sampling, facts)
        | request.body
        | {
            "stream": True,  # only a streaming call can be cancelled
            "stream_options": {"include_usage": True},
            "return_progress": True,  # else nothing calls back, and nothing can cancel, in prefill
            "timings_per_token": True,  # exact counts also for a cancelled answer
        }
    )
    request.top_logprobs = item.sampling.top_logprobs
    request.stops = item.sampling.stop
    request.charge_prompt = item.charge_prompt
    return request


def _with_system(item: ChatInput, facts: LlamaFacts) -> ChatInput:
    """The conversation, begun with the bundle's system message if it has none."""
    if not facts.system or any(message.role == "system" for message in item.messages):
        return item
    messages = [Message("system", facts.system), *item.messages]
    return msgspec.structs.replace(item, messages=messages)


def _build_chat(
    item: ChatInput, facts: LlamaFacts, neutralise: Neutraliser, pictures: Sequence[str]
) -> LlamaRequest:
    if not facts.has_template:
        raise no_template()
    item = _with_system(item, facts)
    _refuse_overlong(_characters_of(item), facts)
    reader: AnswerReader = TextReader()
    schema: Schema | None = None
    body: dict[str, Any] = {}
    forced = forced_tools(item)
    if forced:
        schema = guard_schema(_call_schema(item), strict=any(tool.strict for tool in forced))
        reader = ForcedCallReader()
    elif item.tools and item.tool_choice.mode == "auto":
        if item.json_format is not None:
            raise InvalidInput(
                "response_format and tools cannot be combined on this model",
                hint="set tool_choice to 'none' or 'required', or leave response_format out",
            )
        for tool in item.tools:
            guard_schema(tool.parameters or {"type": "object"})
        reader = _auto_reader(item, facts, neutralise, body)
    elif item.json_format is not None:
        schema = guard_schema(item.json_format.schema, strict=item.json_format.strict)
    body["messages"] = render_messages(item, facts.abilities, neutralise, pictures)
    if facts.stops:
        body["stop"] = [*item.sampling.stop, *facts.stops]
    if item.continue_last:
        _refuse_call_after_text(item)
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if schema is not None:
        body |= _constraint(schema, facts)
    if item.sampling.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": max(1, item.sampling.top_logprobs)}
    return LlamaRequest(
        body, is_chat=True, reader=reader, schema=schema, count_only=item.count_only
    )


def _refuse_call_after_text(item: ChatInput) -> None:
    if forced_tools(item) or item.json_format is not None:
        raise InvalidInput(
            "an answer that has begun cannot be continued with a forced call or a schema",
            hint="end the conversation with a message of the user",
            param="messages",
        )


def _auto_reader(
    item: ChatInput, facts: LlamaFacts, neutralise: Neutraliser, body: dict[str, Any]
) -> AnswerReader:
    names = {tool.name for tool in tools_in_text(item, facts.abilities)}
    if names:
        return CallFinder(names, parallel=item.parallel_tool_calls)
    body["tools"] = render_native_tools(item.tools, neutralise)
    body["parallel_tool_calls"] = item.parallel_tool_calls
    return TextReader()


def _build_completion(item: CompletionInput, facts: LlamaFacts) -> LlamaRequest:
    prompt = item.prompt
    if isinstance(prompt, str):
        _refuse_overlong(len(prompt), facts)
    else:
        wrong = next((token for token in prompt if token >= facts.gguf.vocabulary_size), None)
        if wrong is not None:
            raise InvalidInput(
                f"token id {wrong} is not in the model's vocabulary",
                hint=f"ids go from 0 to {facts.gguf.vocabulary_size - 1}",
                param="prompt",
            )
        if len(prompt) > facts.context_tokens:
            raise context_exceeded(len(prompt), facts.context_tokens)
    body: dict[str, Any] = {"prompt": prompt}
    if item.sampling.top_logprobs is not None:
        body["logprobs"] = max(1, item.sampling.top_logprobs)
    return LlamaRequest(body, is_chat=False, reader=TextReader(), echo=prompt if item.echo else "")


def _sampling_body(sampling: Sampling, facts: LlamaFacts) -> dict[str, Any]:
    wrong = next(
        (token for token in sampling.logit_bias if token >= facts.gguf.vocabulary_size), None
    )
    if wrong is not None:
        raise InvalidInput(f"logit_bias names token {wrong}, which the model does not have")
    given = {
        "max_tokens": min(sampling.max_tokens or facts.context_tokens, facts.context_tokens),
        "temperature": facts.temperature if sampling.temperature is None else sampling.temperature,
        "top_p": facts.top_p if sampling.top_p is None else sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        # of the whole text, as everybody else counts, not of llama.cpp's last 64 tokens
        "repeat_last_n": facts.context_tokens if sampling.repetition_penalty else None,
        "seed": None if sampling.seed is None else sampling.seed % RANDOM_SEED,
        "stop": sampling.stop or None,
        "verbose": True if sampling.stop else None,  # else nothing tells which of them it was
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _constraint(schema: Schema, facts: LlamaFacts) -> dict[str, Any]:
    """What makes llama.cpp hold to a guarded schema."""
    if facts.has_guidance:
        text = msgspec.json.encode(schema | {"x-guidance": GUIDANCE}).decode()
        return {"grammar": "%llguidance {}\nstart: %json " + text}
    json_schema = {"name": "answer", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


def _call_schema(item: ChatInput) -> dict[str, Any]:
    """The schema of "a call of one of these tools"; its tools' own `$defs` are moved up."""
    definitions: dict[str, Any] = {}
    branches: list[dict[str, Any]] = []
    for index, tool in enumerate(forced_tools(item)):
        check_json_size(tool.parameters, "tools")
        prefix = f"t{index}."
        parameters = dict(tool.parameters)
        for key in ("$defs", "definitions"):
            own = parameters.pop(key, {})
            for name, definition in own.items() if isinstance(own, dict) else ():
                definitions[prefix + name] = _prefix_references(definition, prefix)
        branches.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    "arguments": {"type": "object"} | _prefix_references(parameters, prefix),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": branches, "$defs": definitions}


def _prefix_references(schema: Any, prefix: str) -> Any:
    if isinstance(schema, list):
        return [_prefix_references(each, prefix) for each in schema]
    if not isinstance(schema, dict):
        return schema
    prefixed = {key: _prefix_references(each, prefix) for key, each in schema.items()}
    reference = prefixed.get("$ref")
    if isinstance(reference, str) and reference.startswith(("#/$defs/", "#/definitions/")):
        prefixed["$ref"] = f"#/$defs/{prefix}{reference.split('/', 2)[2]}"
    return prefixed


def _characters_of(item: ChatInput) -> int:
    total = 0
    for message in item.messages:
        if isinstance(message.content, str):
            total += len(message.content)
        else:
            total += sum(len(getattr(part, "text", "")) for part in message.content)
    return total


def _refuse_overlong(characters: int, facts: LlamaFacts) -> None:
    """Refuse text that no tokenizer could fit, before a slot spends time on tokenising it."""
    least_tokens = characters // facts.gguf.longest_token_bytes
    if least_tokens > facts.context_tokens:
        raise context_exceeded(least_tokens, facts.context_tokens, "at least ")


def context_exceeded(tokens: int, limit: int, about: str = "") -> ContextLengthExceeded:
    """The error in the words that clients look for."""
    return ContextLengthExceeded(
        f"This model's maximum context length is {limit} tokens. However, your prompt has "
        f"{about}{tokens} tokens. Please reduce its length.",
        param="messages",
    )
