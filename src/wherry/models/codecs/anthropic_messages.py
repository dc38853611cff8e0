"""Anthropic's `messages` and `messages/count_tokens` ↔ the task `text-generation`.

Strict about the values of fields it knows, tolerant of fields it does not. Shapes follow the
official SDK with strict validation on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from wherry.errors import InvalidInput
from wherry.models.codecs.anthropic_events import (
    MessageStream,
    message_json,
    stop_reason_of,
    text_block,
    tool_use_block,
)
from wherry.models.codecs.anthropic_prompt import check_beginning, read_messages
from wherry.models.codecs.anthropic_wire import CountRequest, MessagesRequest
from wherry.models.codecs.chat_tools import check_tool_choice, check_tools
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.tasks.generation import (
    GENERATION_TASKS,
    ChatInput,
    Generation,
    JsonFormat,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    cap_tokens,
    check_json_size,
)
from wherry.models.tasks.task import Task, TaskConfig

_messages_decoder = msgspec.json.Decoder(MessagesRequest)
_count_decoder = msgspec.json.Decoder(CountRequest)


class AnthropicMessages:
    """The codec of `messages`; its one instance is `ANTHROPIC_MESSAGES`."""

    tasks = GENERATION_TASKS

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """One conversation; a last message of the assistant is continued."""
        request: MessagesRequest = decode_json(body, _messages_decoder)
        item = _read_chat(request)
        item.sampling = Sampling(
            max_tokens=cap_tokens(request.max_tokens, config, call.max_tokens),
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=request.stop_sequences or [],
        )
        return Decoded([item])

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Generation],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """A `message`; one without any content has an empty text, as many clients read the first."""
        (output,) = outputs
        content = [text_block(output.text)] if output.text or not output.tool_calls else []
        content += [
            tool_use_block(call.id, call.name, _read_arguments(call)) for call in output.tool_calls
        ]
        message = message_json(call, content, output.usage) | {
            "stop_reason": stop_reason_of(
                output.finish_reason, output.stop_text, called=bool(output.tool_calls)
            ),
            "stop_sequence": output.stop_text or None,
        }
        return Reply(msgspec.json.encode(message))

    def stream(self, decoded: Decoded, call: Call) -> MessageStream:
        """An encoder of the events of one message."""
        return MessageStream(call)


class AnthropicCount:
    """The codec of `messages/count_tokens`; its one instance is `ANTHROPIC_COUNT`."""

    tasks = GENERATION_TASKS

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """The conversation that `messages` would make of the same body, to be counted."""
        item = _read_chat(decode_json(body, _count_decoder))
        item.count_only = True
        return Decoded([item])

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Generation],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """The count."""
        (output,) = outputs
        return Reply(msgspec.json.encode({"input_tokens": output.input_tokens}))


ANTHROPIC_MESSAGES = AnthropicMessages()
ANTHROPIC_COUNT = AnthropicCount()


def _read_chat(request: CountRequest) -> ChatInput:
    """The conversation with its tools; nothing yet of how it is answered."""
    _refuse_unsupported(request)
    messages = read_messages(request)
    goes_on = messages[-1].role == "assistant"
    if goes_on:
        check_beginning(messages[-1])
    tools = _read_tools(request)
    choice = _read_tool_choice(request)
    check_tool_choice(choice, tools)
    chosen = request.tool_choice
    return ChatInput(
        messages=messages,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=not (chosen and chosen.disable_parallel_tool_use),
        json_format=_read_format(request),
        continue_last=goes_on,
    )


def _refuse_unsupported(request: CountRequest) -> None:
    if request.mcp_servers:
        raise InvalidInput(
            "'mcp_servers' is not supported", hint="send their tools", param="mcp_servers"
        )
    if request.container is not None:
        raise InvalidInput(
            "'container' is not supported", hint="no code runs here", param="container"
        )


def _read_tools(request: CountRequest) -> list[Tool]:
    tools: list[Tool] = []
    for index, tool in enumerate(request.tools or []):
        if tool.type not in (None, "custom"):
            raise InvalidInput(
                f"tools of type {tool.type!r} are Anthropic's own and do not run here",
                hint="send a tool of your own, with an input_schema",
                param=f"tools[{index}].type",
            )
        if tool.input_schema is None:
            raise InvalidInput(
                f"the tool {tool.name!r} has no input_schema", param=f"tools[{index}].input_schema"
            )
        tools.append(
            Tool(tool.name, tool.description or "", tool.input_schema, strict=bool(tool.strict))
        )
    check_tools(tools, "input_schema")
    return tools


def _read_tool_choice(request: CountRequest) -> ToolChoice:
    choice = request.tool_choice
    if choice is None:
        return ToolChoice()
    match choice.type:
        case "any":
            return ToolChoice("required")
        case "tool":
            return ToolChoice("named", choice.name)
        case _:
            return ToolChoice(choice.type)


def _read_format(request: CountRequest) -> JsonFormat | None:
    wanted = request.output_format
    if request.output_config is not None:
        wanted = request.output_config.format or wanted
    if wanted is None:
        return None
    check_json_size(wanted.schema, "output_config.format.schema")
    return JsonFormat(wanted.schema, strict=True)


def _read_arguments(call: ToolCall) -> dict[str, Any]:
    """The arguments as an object; an empty one if `max_tokens` cut them off."""
    try:
        arguments: Any = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}
