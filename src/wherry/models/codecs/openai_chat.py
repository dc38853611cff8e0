"""OpenAI `chat/completions` ↔ the task `text-generation`.

Strict about the values of fields it knows, tolerant of fields it does not: clients send their
vendors' extras. Shapes follow the official SDK with strict validation on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.codecs.openai_common import (
    DONE,
    REFUSED,
    MaxTokens,
    SamplingFields,
    WireFunction,
    WireJsonSchema,
    chat_logprobs,
    finish_json,
    read_schema,
    read_tool_choice,
    read_tools,
    refuse_fields,
    sampling_of,
    seed_of_choice,
    sse,
    usage_json,
)
from wherry.models.tasks.generation import (
    GENERATION_TASKS,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    ChatInput,
    FunctionName,
    Generation,
    ImagePart,
    JsonFormat,
    Message,
    Part,
    ShortText,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    check_json_size,
)
from wherry.models.tasks.task import Task, TaskConfig, Usage

# ------------------------------------------------------------------------------ request body


class WireText(msgspec.Struct, tag="text"):
    """`{"type": "text", "text": …}`."""

    text: str


class WireRefusal(msgspec.Struct, tag="refusal"):
    """What an assistant said instead of an answer."""

    refusal: str


class ImageUrl(msgspec.Struct):
    """`image_url` of a part."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class WireImage(msgspec.Struct, tag="image_url"):
    """`{"type": "image_url", "image_url": {"url": …}}`."""

    image_url: ImageUrl


class WireSound(msgspec.Struct, tag="input_audio"):
    """Known only to be refused in words."""


class WireVideo(msgspec.Struct, tag="video_url"):
    """Known only to be refused in words."""


class WireFile(msgspec.Struct, tag="file"):
    """Known only to be refused in words."""


UNREAD_PARTS = {
    WireSound: ("sound", "transcribe it with a speech model first"),
    WireVideo: ("video", "send single pictures of it"),
    WireFile: ("files", "send their text, or pictures of their pages"),
}
"""What no chat model here takes → its name, and what to do instead."""
WirePart: TypeAlias = WireText | WireImage | WireRefusal | WireSound | WireVideo | WireFile


class WireFunctionCall(msgspec.Struct):
    """Name and arguments of a call."""

    name: FunctionName
    arguments: str


class WireToolCall(msgspec.Struct):
    """A call in an assistant message."""

    id: ShortText
    function: WireFunctionCall
    type: Literal["function"] = "function"


class WireMessage(msgspec.Struct):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[WirePart], Meta(min_length=1, max_length=MAX_PARTS)] | None = None
    name: ShortText | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[WireToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: ShortText | None = None


class WireTool(msgspec.Struct):
    """`{"type": "function", "function": {…}}`."""

    type: Literal["function"]
    function: WireFunction


class NamedFunction(msgspec.Struct):
    """The name inside a forced choice."""

    name: str


class NamedTool(msgspec.Struct):
    """`{"type": "function", "function": {"name": …}}`."""

    type: Literal["function"]
    function: NamedFunction


class ResponseFormat(msgspec.Struct):
    """`response_format`; `value` is how Hugging Face's client sends a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: WireJsonSchema | None = None
    value: dict[str, Any] | None = None
    schema: dict[str, Any] | None = None


class ChatRequest(SamplingFields, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[WireMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[WireTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    functions: Any = UNSET
    function_call: Any = UNSET
    audio: Any = UNSET
    web_search_options: Any = UNSET


REFUSED_IN_CHAT = REFUSED | {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "audio": "this model writes text",
    "web_search_options": "this model has no web search",
}

_request_decoder = msgspec.json.Decoder(ChatRequest)

# ------------------------------------------------------------------------------ the codec


class OpenAIChat:
    """The codec; its one instance is `OPENAI_CHAT`. Its context is the decoded request."""

    tasks = GENERATION_TASKS

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """`n` items, alike but for their seed; the first is charged for the prompt."""
        request: ChatRequest = decode_json(body, _request_decoder)
        refuse_fields(request, REFUSED_IN_CHAT)
        functions = [each.function for each in request.tools or []]
        tools = read_tools(functions, "function.parameters")
        first = ChatInput(
            messages=[
                _read_message(message, f"messages[{index}]")
                for index, message in enumerate(request.messages)
            ],
            sampling=sampling_of(
                request,
                request.max_completion_tokens or request.max_tokens,
                _read_top_logprobs(request),
                call,
                config,
            ),
            tools=tools,
            tool_choice=_read_tool_choice(request, tools),
            parallel_tool_calls=request.parallel_tool_calls is not False,
            json_format=_read_format(request.response_format),
        )
        items = [first]
        for choice in range(1, request.choices):
            seed = seed_of_choice(first.sampling.seed, choice)
            sampling = msgspec.structs.replace(first.sampling, seed=seed)
            items.append(msgspec.structs.replace(first, sampling=sampling, charge_prompt=False))
        return Decoded(items, request)

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Generation],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """A `chat.completion` with a choice an output."""
        usage = sum((output.usage for output in outputs), Usage())
        answer = _head(call, "chat.completion") | {
            "choices": [
                {
                    "index": index,
                    "message": _message_json(output),
                    "logprobs": None if output.logprobs is None else chat_logprobs(output.logprobs),
                    "finish_reason": finish_json(output.finish_reason),
                }
                for index, output in enumerate(outputs)
            ],
            "usage": usage_json(usage),
        }
        return Reply(msgspec.json.encode(answer))

    def stream(self, decoded: Decoded, call: Call) -> ChatStream:
        """An encoder of `chat.completion.chunk` events."""
        return ChatStream(call, decoded.context.include_usage)


OPENAI_CHAT = OpenAIChat()


class ChatStream:
    """Chunks of one request: role first, one finish reason a choice, usage only if asked."""

    def __init__(self, call: Call, include_usage: bool) -> None:
        self._head = _head(call, "chat.completion.chunk")
        self._include_usage = include_usage
        self._started: set[int] = set()
        self._finished: set[int] = set()

    def event(self, index: int, output: TextDelta) -> bytes:
        """Chunks for the next delta of choice `index`."""
        events: list[bytes] = []
        if index not in self._started:
            self._started.add(index)
            content = None if output.tool_calls else ""
            events.append(self._chunk(index, {"role": "assistant", "content": content}))
        if output.text or output.logprobs:
            logprobs = chat_logprobs(output.logprobs) if output.logprobs else None
            events.append(self._chunk(index, {"content": output.text}, logprobs))
        events += [
            self._chunk(index, {"tool_calls": [_tool_call_delta_json(piece)]})
            for piece in output.tool_calls
        ]
        if output.finish_reason is not None and index not in self._finished:
            self._finished.add(index)
            events.append(self._chunk(index, {}, finish=finish_json(output.finish_reason)))
        return b"".join(events)

    def end(self, usage: Usage) -> bytes:
        """The usage chunk if it was asked for, and `[DONE]`."""
        if not self._include_usage:
            return DONE
        return sse(self._head | {"choices": [], "usage": usage_json(usage)}) + DONE

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = self._head | {"choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return sse(chunk)


def _head(call: Call, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{call.request_id}",
        "object": kind,
        "created": call.created,
        "model": call.deployment,
        "system_fingerprint": f"version-{call.version}",
    }


def _message_json(output: Generation) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": output.text, "refusal": None}
    if output.tool_calls:
        message["content"] = output.text or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in output.tool_calls
        ]
    return message


def _tool_call_delta_json(piece: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": piece.arguments}
    if not piece.name:
        return {"index": piece.index, "function": function}
    return {
        "index": piece.index,
        "id": piece.id,
        "type": "function",
        "function": {"name": piece.name} | function,
    }


# ------------------------------------------------------------------------------ reading


def _read_message(message: WireMessage, place: str) -> Message:
    role = "system" if message.role == "developer" else message.role
    if message.tool_calls and role != "assistant":
        raise InvalidInput(
            f"a message of role {message.role!r} cannot have tool_calls",
            param=f"{place}.tool_calls",
        )
    if role == "tool" and not message.tool_call_id:
        raise InvalidInput(
            "a message of role 'tool' needs tool_call_id", param=f"{place}.tool_call_id"
        )
    has_content = message.content is not None or message.refusal is not None
    if not has_content and not message.tool_calls:
        raise InvalidInput(
            f"a message of role {message.role!r} needs content", param=f"{place}.content"
        )
    return Message(
        role=role,
        content=_read_content(message, place),
        name=message.name,
        tool_calls=[
            ToolCall(each.id, each.function.name, each.function.arguments)
            for each in message.tool_calls or []
        ],
        tool_call_id=message.tool_call_id,
    )


def _read_content(message: WireMessage, place: str) -> str | list[Part]:
    if message.content is None:
        return message.refusal or ""
    if isinstance(message.content, str):
        return message.content
    parts: list[Part] = []
    for index, part in enumerate(message.content):
        match part:
            case WireText(text):
                parts.append(TextPart(text))
            case WireRefusal(refusal):
                parts.append(TextPart(refusal))
            case WireImage(image) if message.role == "user":
                parts.append(ImagePart(image.url, image.detail))
            case WireImage():
                raise InvalidInput(
                    f"a message of role {message.role!r} cannot hold a picture",
                    param=f"{place}.content",
                )
            case WireSound() | WireVideo() | WireFile():
                kind, hint = UNREAD_PARTS[type(part)]
                raise InvalidInput(
                    f"{kind} cannot be part of a message here",
                    hint=hint,
                    param=f"{place}.content[{index}]",
                )
    return parts


def _read_tool_choice(request: ChatRequest, tools: list[Tool]) -> ToolChoice:
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        return read_tool_choice(None, choice.function.name, tools)
    return read_tool_choice(choice, None, tools)


def _read_top_logprobs(request: ChatRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise InvalidInput("top_logprobs needs logprobs: true", param="top_logprobs")
    return None


def _read_format(wanted: ResponseFormat | None) -> JsonFormat | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise InvalidInput(
                "response_format of type 'json_schema' needs json_schema",
                param="response_format.json_schema",
            )
        return read_schema(wanted.json_schema, "response_format.json_schema")
    schema = wanted.value or wanted.schema or {"type": "object"}
    check_json_size(schema, "response_format.value")
    return JsonFormat(schema)
