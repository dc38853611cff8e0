"""The body of OpenAI's `responses` → a conversation of the task `text-generation`.

Strict about the values of fields it knows, tolerant of fields it does not. What the model cannot do
(hosted tools, stored prompts) is refused: leaving it out would change the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, decode_json
from wherry.models.codecs.openai_common import (
    MaxTokens,
    WireFunction,
    WireJsonSchema,
    read_schema,
    read_tool_choice,
    read_tools,
)
from wherry.models.codecs.responses_items import describe_items, messages_of, read_items
from wherry.models.codecs.responses_turn import InputItem
from wherry.models.tasks.generation import (
    MAX_MESSAGES,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    ChatInput,
    FunctionName,
    JsonFormat,
    Message,
    Sampling,
    ShortText,
    cap_tokens,
)
from wherry.models.tasks.task import TaskConfig

MAX_METADATA = 16
LOGPROBS = "message.output_text.logprobs"
"""What `include` calls log-probabilities."""

Json: TypeAlias = dict[str, Any]

# ------------------------------------------------------------------------------ request body


class WireTool(msgspec.Struct):
    """A tool; only functions have the other fields, and only functions are offered."""

    type: str
    name: FunctionName | None = None
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class WireChoice(msgspec.Struct):
    """A `tool_choice` that names tools."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[Json], Meta(min_length=1, max_length=MAX_TOOLS)] | None = None


class TextFormat(msgspec.Struct, tag="text"):
    """Plain words."""


class ObjectFormat(msgspec.Struct, tag="json_object"):
    """Any JSON object."""


class SchemaFormat(WireJsonSchema, tag="json_schema"):
    """JSON that fits a schema."""


class TextOptions(msgspec.Struct):
    """`text`."""

    format: TextFormat | ObjectFormat | SchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(msgspec.Struct):
    """`reasoning`: accepted and told again; the model thinks as it does."""

    effort: ShortText | None = None
    summary: ShortText | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The body of `POST /v1/responses`."""

    model: str | None = None
    input: (
        str | Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=MAX_MESSAGES)] | None
    ) = None
    instructions: str | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[WireTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | WireChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    text: TextOptions | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Meta(max_length=64)],
                Annotated[str, Meta(max_length=512)],
            ],
            Meta(max_length=MAX_METADATA),
        ]
        | None
    ) = None
    previous_response_id: ShortText | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    include: Annotated[list[ShortText], Meta(max_length=16)] | None = None
    reasoning: ReasoningOptions | None = None
    conversation: Any = UNSET
    prompt: Any = UNSET
    grammar: Any = UNSET
    guided_json: Any = UNSET
    guided_regex: Any = UNSET
    guided_choice: Any = UNSET
    guided_grammar: Any = UNSET


REFUSED = {
    "conversation": "use previous_response_id",
    "prompt": "send the text itself, as instructions or input",
    "grammar": "use text.format",
    "guided_json": "use text.format",
    "guided_regex": "use text.format",
    "guided_choice": "use text.format with an enum",
    "guided_grammar": "use text.format",
}

_request_decoder = msgspec.json.Decoder(ResponsesRequest)

# ------------------------------------------------------------------------------ reading


class Asked(msgspec.Struct):
    """A request, understood."""

    request: ResponsesRequest
    chat: ChatInput
    """With the conversation so far."""
    messages: list[Message]
    """What the request itself adds to the conversation; instructions count for one turn only."""
    items: list[InputItem]


def read_request(
    body: bytes | memoryview,
    response_id: str,
    history: Sequence[Message],
    call: Call,
    config: TaskConfig,
) -> Asked:
    """A request that goes on after `history`."""
    request: ResponsesRequest = decode_json(memoryview(body), _request_decoder)
    for name, hint in REFUSED.items():
        if getattr(request, name) not in (UNSET, None):
            raise InvalidInput(f"{name!r} is not supported", hint=hint, param=name)
    if request.input is None:
        raise InvalidInput(
            "there is no input", hint="send a text or a list of items", param="input"
        )
    items = read_items(request.input)
    messages = messages_of(items, history)
    first = [Message("system", request.instructions)] if request.instructions else []
    if len(first) + len(history) + len(messages) > MAX_MESSAGES:
        raise InvalidInput(
            f"the conversation has more than {MAX_MESSAGES} messages",
            hint="begin a new one",
            param="input",
        )
    chat = _read_options(request, call, config)
    chat.messages = [*first, *history, *messages]
    return Asked(request, chat, messages, describe_items(items, response_id))


def _read_options(request: ResponsesRequest, call: Call, config: TaskConfig) -> ChatInput:
    """All that is asked for beside the conversation."""
    wanted = _offered(request)
    tools = read_tools(_functions_of(wanted), "parameters")
    choice = request.tool_choice
    mode, name = (choice.mode, choice.name) if isinstance(choice, WireChoice) else (choice, None)
    wants_logprobs = request.top_logprobs is not None or LOGPROBS in (request.include or [])
    return ChatInput(
        messages=[],
        sampling=Sampling(
            max_tokens=cap_tokens(request.max_output_tokens, config, call.max_tokens),
            temperature=request.temperature,
            top_p=request.top_p,
            top_logprobs=(request.top_logprobs or 0) if wants_logprobs else None,
        ),
        tools=tools,
        tool_choice=read_tool_choice(mode, name, tools),
        parallel_tool_calls=request.parallel_tool_calls is not False,
        json_format=_read_format(request.text),
    )


def _functions_of(tools: Sequence[WireTool]) -> list[WireFunction]:
    functions: list[WireFunction] = []
    for index, tool in enumerate(tools):
        if tool.type != "function":
            raise InvalidInput(
                f"tools of type {tool.type[:40]!r} are not offered",
                hint="declare a function, and call what you need yourself",
                param=f"tools[{index}].type",
            )
        if tool.name is None:
            raise InvalidInput("a function needs a name", param=f"tools[{index}].name")
        functions.append(WireFunction(tool.name, tool.description, tool.parameters, tool.strict))
    return functions


def _offered(request: ResponsesRequest) -> list[WireTool]:
    """The tools, or those that `tool_choice` leaves of them."""
    tools, choice = request.tools or [], request.tool_choice
    if not isinstance(choice, WireChoice) or choice.type == "function":
        return tools
    if choice.type != "allowed_tools":
        raise InvalidInput(
            f"tool_choice of type {choice.type[:40]!r} is not offered",
            hint="use 'function' or 'allowed_tools'",
            param="tool_choice.type",
        )
    allowed = {str(each.get("name")) for each in choice.tools or []}
    unknown = sorted(allowed - {str(tool.name) for tool in tools})
    if unknown:
        raise InvalidInput(
            f"tool_choice names {unknown[0][:128]!r}, which is not among the tools",
            param="tool_choice",
        )
    return [tool for tool in tools if tool.name in allowed]


def _read_format(text: TextOptions | None) -> JsonFormat | None:
    match text.format if text else None:
        case SchemaFormat() as found:
            return read_schema(found, "text.format")
        case ObjectFormat():
            return JsonFormat({"type": "object"})
        case _:
            return None
