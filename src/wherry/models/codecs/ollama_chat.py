"""Ollama's `/api/chat` ↔ the tasks that chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.chat_tools import check_tools
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.codecs.ollama_common import (
    LOADED,
    GenerationFields,
    calls_json,
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
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    TEXT_GENERATION,
    ChatInput,
    FinishReason,
    FunctionName,
    Generation,
    Message,
    Part,
    ShortText,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    check_json_size,
)
from wherry.models.tasks.task import Task, TaskConfig, Usage

# ------------------------------------------------------------------------------ request body


class WireCalled(msgspec.Struct):
    """Name and arguments of a call."""

    name: FunctionName
    arguments: dict[str, Any] = {}


class WireCall(msgspec.Struct):
    """A call in an assistant's message."""

    function: WireCalled
    id: ShortText = ""


class WireMessage(msgspec.Struct):
    """One message; `thinking` is not given to the model again."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: Annotated[list[str], Meta(max_length=MAX_PARTS)] | None = None
    tool_calls: Annotated[list[WireCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_name: ShortText | None = None
    tool_call_id: ShortText | None = None


class WireFunction(msgspec.Struct):
    """A function the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class WireTool(msgspec.Struct):
    """`{"type": "function", "function": {…}}`."""

    function: WireFunction
    type: Literal["function"] = "function"


class ChatRequest(GenerationFields, kw_only=True):
    """The body."""

    messages: Annotated[list[WireMessage], Meta(max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[WireTool], Meta(max_length=MAX_TOOLS)] | None = None


_request_decoder = msgspec.json.Decoder(ChatRequest)

# ------------------------------------------------------------------------------ the codec


class OllamaChat:
    """The codec; its one instance is `OLLAMA_CHAT`. Its context is the decoded request."""

    tasks = GENERATION_TASKS

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """One conversation, or none to answer: then the model is only to be loaded."""
        request: ChatRequest = decode_json(body, _request_decoder)
        if not request.messages:
            return Decoded([], request)
        item = ChatInput(
            messages=_read_messages(request.messages),
            sampling=sampling_of(request, call, config),
            tools=_read_tools(request.tools or []),
            json_format=json_format_of(request.format),
        )
        return Decoded([item], request)

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
            return Reply(msgspec.json.encode(answer | {"message": _message_json("")} | LOADED))
        (output,) = outputs
        answer["message"] = _message_json(output.text, output.tool_calls)
        if output.logprobs is not None:
            answer["logprobs"] = logprobs_json(output.logprobs)
        return Reply(msgspec.json.encode(answer | end_of(output.finish_reason, output.usage)))

    def stream(self, decoded: Decoded, call: Call) -> ChatLines:
        """An encoder of lines."""
        return ChatLines(head_of(decoded.context.model, call))


OLLAMA_CHAT = OllamaChat()


class ChatLines:
    """Lines of one request: texts as they come, tool calls when they are whole, then the end."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = head
        self._calls: list[TextDelta] = []
        self._reason: FinishReason | None = None

    def event(self, index: int, output: TextDelta) -> bytes:
        """A line for what can be read of the next delta."""
        self._reason = output.finish_reason or self._reason
        if output.tool_calls:
            self._calls.append(TextDelta(tool_calls=output.tool_calls))
        if not output.text and not output.logprobs:
            return b""
        extra = {"logprobs": logprobs_json(output.logprobs)} if output.logprobs else {}
        return line(self._head | {"message": _message_json(output.text)} | extra | {"done": False})

    def end(self, usage: Usage) -> bytes:
        """Tool calls, if there are any, and the last line."""
        calls = TEXT_GENERATION.join(self._calls).tool_calls
        called = b""
        if calls:
            called = line(self._head | {"message": _message_json("", calls), "done": False})
        return called + line(
            self._head | {"message": _message_json("")} | end_of(self._reason, usage)
        )


def _message_json(text: str, calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = calls_json(calls)
    return message


# ------------------------------------------------------------------------------ reading


def _read_messages(given: Sequence[WireMessage]) -> list[Message]:
    """Messages of the task; calls get numbers, as Ollama's answers to them may name none."""
    messages: list[Message] = []
    unanswered: list[ToolCall] = []
    for index, message in enumerate(given):
        place = f"messages[{index}]"
        calls = _read_calls(message, index)
        if calls:
            unanswered = list(calls)
        messages.append(
            Message(
                role=message.role,
                content=_read_content(message, place),
                tool_calls=calls,
                tool_call_id=_take_answered(message, unanswered, place),
            )
        )
    return messages


def _read_calls(message: WireMessage, index: int) -> list[ToolCall]:
    if not message.tool_calls:
        return []
    if message.role != "assistant":
        raise InvalidInput(
            f"a message of role {message.role!r} cannot have tool_calls",
            param=f"messages[{index}].tool_calls",
        )
    calls: list[ToolCall] = []
    for number, each in enumerate(message.tool_calls):
        place = f"messages[{index}].tool_calls[{number}]"
        check_json_size(each.function.arguments, f"{place}.function.arguments")
        arguments = msgspec.json.encode(each.function.arguments).decode()
        calls.append(ToolCall(each.id or f"call_{index}_{number}", each.function.name, arguments))
    return calls


def _take_answered(message: WireMessage, unanswered: list[ToolCall], place: str) -> str | None:
    """The call that a message of a tool answers: by number, by name, else the first one open."""
    if message.role != "tool":
        return None
    wanted, name = message.tool_call_id, message.tool_name
    for call in unanswered:
        if call.id == wanted or (not wanted and name in (None, "", call.name)):
            unanswered.remove(call)
            return call.id
    raise InvalidInput(
        "a message of role 'tool' answers no call of the message before",
        hint="send the assistant's message with its tool_calls, too",
        param=place,
    )


def _read_content(message: WireMessage, place: str) -> str | list[Part]:
    if message.images:
        if message.role != "user":
            raise InvalidInput(
                f"a message of role {message.role!r} cannot hold a picture",
                param=f"{place}.images",
            )
        text: list[Part] = [TextPart(message.content)] if message.content else []
        return text + picture_parts(message.images, f"{place}.images")
    if message.content is None and not message.tool_calls:
        raise InvalidInput(
            f"a message of role {message.role!r} needs content", param=f"{place}.content"
        )
    return message.content or ""


def _read_tools(given: Sequence[WireTool]) -> list[Tool]:
    tools = [
        Tool(each.function.name, each.function.description or "", each.function.parameters or {})
        for each in given
    ]
    check_tools(tools, "function.parameters")
    return tools
