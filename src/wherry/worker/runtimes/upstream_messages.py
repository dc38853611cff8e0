"""What `upstream` says to an OpenAI-compatible server, and how its chunks read."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from wherry.errors import InvalidInput, UpstreamFailed
from wherry.models.tasks.generation import (
    ChatInput,
    CompletionInput,
    FinishReason,
    GenerationInput,
    Message,
    Sampling,
    TextDelta,
    TextPart,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)
from wherry.models.tasks.task import Usage

BYTES_PER_TOKEN = 4
"""A guess for prompts of servers that tell no usage."""
MAX_TOOL_CALLS = 128


class RequestOptions(Protocol):
    """The options that shape a request."""

    @property
    def model(self) -> str:
        """The model's name at the server."""
        ...

    @property
    def include_usage(self) -> bool:
        """Whether to ask for token counts."""
        ...

    @property
    def max_tokens_field(self) -> str:
        """The name of the token limit."""
        ...

    @property
    def takes_top_k(self) -> bool:
        """Whether `top_k` and its kin are understood; OpenAI's own API refuses them."""
        ...


def encode_request(item: GenerationInput, options: RequestOptions) -> tuple[str, dict[str, Any]]:
    """Path and body that ask for an item's answer, as a stream."""
    body: dict[str, Any] = {"model": options.model, "stream": True}
    if options.include_usage:
        body["stream_options"] = {"include_usage": True}
    body |= _sampling_body(item.sampling, options)
    if isinstance(item, ChatInput):
        return "chat/completions", body | _chat_body(item)
    return "completions", body | _completion_body(item)


def _sampling_body(sampling: Sampling, options: RequestOptions) -> dict[str, Any]:
    for name in ("min_p", "repetition_penalty"):
        if getattr(sampling, name) is not None and not options.takes_top_k:
            raise InvalidInput(
                f"the server behind this model takes no {name}",
                hint="leave it out; the operator may set the bundle's option takes_top_k",
                param=name,
            )
    given = {
        options.max_tokens_field: sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k if options.takes_top_k else None,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": sampling.seed,
        "stop": sampling.stop or None,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _chat_body(item: ChatInput) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [_message_json(message) for message in item.messages]}
    if item.sampling.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": item.sampling.top_logprobs}
    if item.tools:
        body["tools"] = [
            {"type": "function", "function": msgspec.structs.asdict(tool)} for tool in item.tools
        ]
        body["tool_choice"] = (
            {"type": "function", "function": {"name": item.tool_choice.name}}
            if item.tool_choice.mode == "named"
            else item.tool_choice.mode
        )
        if not item.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    if item.json_format is not None:
        wanted = item.json_format
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": wanted.name, "schema": wanted.schema, "strict": wanted.strict},
        }
        if wanted.schema == {"type": "object"}:
            body["response_format"] = {"type": "json_object"}
    return body


def _completion_body(item: CompletionInput) -> dict[str, Any]:
    body: dict[str, Any] = {"prompt": item.prompt}
    if item.echo:
        body["echo"] = True
    if item.sampling.top_logprobs is not None:
        body["logprobs"] = item.sampling.top_logprobs
    return body


def _message_json(message: Message) -> dict[str, Any]:
    content: Any = message.content
    if isinstance(content, list):
        content = [
            {"type": "text", "text": part.text}
            if isinstance(part, TextPart)
            else {
                "type": "image_url",
                "image_url": {"url": part.url} | ({"detail": part.detail} if part.detail else {}),
            }
            for part in content
        ]
    found: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        found["name"] = message.name
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["content"] = content or None
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return found


# ------------------------------------------------------------------------------ chunks


class ChunkTopLogprob(msgspec.Struct):
    """One of `top_logprobs`."""

    token: str = ""
    logprob: float | None = None
    bytes: list[int] | None = None
    id: int | None = None
    """Of llama.cpp's server."""


class ChunkLogprob(ChunkTopLogprob):
    """A token of a chat chunk."""

    top_logprobs: list[ChunkTopLogprob] | None = None


class ChunkLogprobs(msgspec.Struct):
    """`logprobs`: `content` in chat, the other fields in completions."""

    content: list[ChunkLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class ChunkFunction(msgspec.Struct):
    """`function` of a tool call delta."""

    name: str | None = None
    arguments: str | None = None


class ChunkToolCall(msgspec.Struct):
    """A tool call delta."""

    index: int = 0
    id: str | None = None
    function: ChunkFunction = msgspec.field(default_factory=ChunkFunction)


class ChunkDelta(msgspec.Struct):
    """`delta` of a chat chunk."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ChunkToolCall] | None = None


class ChunkChoice(msgspec.Struct):
    """A choice: `delta` in chat, `text` in completions."""

    delta: ChunkDelta | None = None
    text: str | None = None
    logprobs: ChunkLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """Of vLLM: the stop text that was found."""


class ChunkError(msgspec.Struct):
    """An error in the middle of a stream."""

    message: str | None = None

    @property
    def text(self) -> str:
        """The message, if there is one."""
        return self.message or "it gave no reason"


class ChunkUsage(msgspec.Struct):
    """`usage` of the last chunk."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class UpstreamChunk(msgspec.Struct):
    """One event."""

    choices: list[ChunkChoice] | None = None
    usage: ChunkUsage | None = None
    error: ChunkError | None = None


chunk_decoder = msgspec.json.Decoder(UpstreamChunk)


class DeltaReader:
    """Chunks of one answer → deltas, with a count of tokens in case the server tells none."""

    def __init__(self, item: GenerationInput) -> None:
        self._item = item
        self._counted_tokens = 0
        self._usage: ChunkUsage | None = None
        self._finish_reason: FinishReason | None = None
        self._stop_text = ""

    def read(self, chunk: UpstreamChunk) -> TextDelta | None:
        """The delta of a chunk, if it has one."""
        self._usage = chunk.usage or self._usage
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        if choice.finish_reason is not None:
            self._finish_reason = _finish_of(choice.finish_reason)
        if choice.stop_reason in self._item.sampling.stop:
            self._stop_text = str(choice.stop_reason)
        words = choice.delta or ChunkDelta()
        delta = TextDelta(
            text=words.content or words.refusal or choice.text or "",
            tool_calls=[
                ToolCallDelta(
                    min(max(call.index, 0), MAX_TOOL_CALLS),
                    call.id or "",
                    call.function.name or "",
                    call.function.arguments or "",
                )
                for call in words.tool_calls or []
            ],
        )
        if self._item.sampling.top_logprobs is not None and choice.logprobs is not None:
            delta.logprobs = _logprobs_of(choice.logprobs)
        if not (delta.text or delta.tool_calls or delta.logprobs):
            return None
        self._counted_tokens += max(1, len(delta.logprobs))
        return delta

    def finish(self, *, cancelled: bool) -> TextDelta:
        """The last delta; raises if the answer broke off and nobody cancelled it."""
        ended = self._finish_reason is not None
        if not ended and not cancelled:
            raise UpstreamFailed("the upstream server broke off in the middle of its answer")
        usage = self._usage or ChunkUsage(
            _guess_prompt_tokens(self._item) if ended or self._counted_tokens else 0,
            self._counted_tokens,
        )
        return TextDelta(
            finish_reason=self._finish_reason or "cancelled",
            stop_text=self._stop_text,
            usage=Usage(
                input_tokens=max(0, usage.prompt_tokens) if self._item.charge_prompt else 0,
                output_tokens=max(0, usage.completion_tokens),
                rows=1 if ended else 0,
            ),
        )


def _finish_of(reason: str) -> FinishReason:
    match reason:
        case "length" | "tool_calls" | "content_filter":
            return reason
        case _:
            return "stop"


def _logprobs_of(found: ChunkLogprobs) -> list[TokenLogprob]:
    if found.content is not None:
        return [
            TokenLogprob(
                each.token,
                _finite(each.logprob),
                each.bytes,
                [
                    TopLogprob(rival.token, _finite(rival.logprob), rival.bytes, rival.id)
                    for rival in each.top_logprobs or []
                ],
                each.id,
            )
            for each in found.content
        ]
    rivals = found.top_logprobs or [None] * len(found.tokens or [])
    rows = zip(found.tokens or [], found.token_logprobs or [], rivals, strict=False)
    return [
        TokenLogprob(
            token,
            _finite(logprob),
            top=[TopLogprob(name, _finite(each)) for name, each in (top or {}).items()],
        )
        for token, logprob, top in rows
    ]


def _finite(logprob: float | None) -> float:
    return -9999.0 if logprob is None else min(0.0, max(logprob, -9999.0))


def _guess_prompt_tokens(item: GenerationInput) -> int:
    if isinstance(item, CompletionInput):
        if isinstance(item.prompt, list):
            return len(item.prompt)
        return 1 + len(item.prompt.encode()) // BYTES_PER_TOKEN
    texts = [
        message.content
        if isinstance(message.content, str)
        else "".join(part.text for part in message.content if isinstance(part, TextPart))
        for message in item.messages
    ]
    return sum(1 + len(text.encode()) // BYTES_PER_TOKEN for text in texts)
