"""The bodies of Anthropic's `messages` and `messages/count_tokens` as they come over the wire.

Fields that are not here are ignored: caching, metadata, thinking and effort change how an answer is
made, not what was asked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from wherry.models.tasks.generation import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_STOPS,
    MAX_TOKEN_ID,
    MAX_TOOLS,
    FunctionName,
    ShortText,
    StopText,
)

# ------------------------------------------------------------------------------ blocks


class WireText(msgspec.Struct, tag="text"):
    """`{"type": "text", "text": …}`."""

    text: str


class Base64Source(msgspec.Struct, tag="base64"):
    """A picture in the request itself."""

    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlSource(msgspec.Struct, tag="url"):
    """A picture somewhere else."""

    url: str


class FileSource(msgspec.Struct, tag="file"):
    """A picture that was uploaded before; nothing can be uploaded here."""

    file_id: str


class WireImage(msgspec.Struct, tag="image"):
    """A picture."""

    source: Base64Source | UrlSource | FileSource


class WireDocument(msgspec.Struct, tag="document"):
    """A PDF or a text with citations; no model here reads them."""


class WireSearchResult(msgspec.Struct, tag="search_result"):
    """A text with its source, to be cited."""


class WireThinking(msgspec.Struct, tag="thinking"):
    """What a model thought before it answered; dropped from the history."""


class WireRedactedThinking(msgspec.Struct, tag="redacted_thinking"):
    """The same, encrypted."""


class WireToolUse(msgspec.Struct, tag="tool_use"):
    """A call that the model made."""

    id: ShortText
    name: FunctionName
    input: dict[str, Any]


Readable: TypeAlias = WireText | WireImage | WireDocument | WireSearchResult
"""Blocks that a user or a tool may send; the latter two are known in order to be refused."""


class WireToolResult(msgspec.Struct, tag="tool_result"):
    """What a call gave."""

    tool_use_id: ShortText
    content: str | Annotated[list[Readable], Meta(max_length=MAX_PARTS)] | None = None
    is_error: bool | None = None


Block: TypeAlias = Readable | WireThinking | WireRedactedThinking | WireToolUse | WireToolResult


class WireMessage(msgspec.Struct):
    """One message; neighbours of one role are one turn."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Meta(min_length=1, max_length=MAX_PARTS)]


# ------------------------------------------------------------------------------ tools


class WireTool(msgspec.Struct):
    """A tool of the client's. Anthropic's own have another `type`, and no schema."""

    name: FunctionName
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class WireToolChoice(msgspec.Struct):
    """Whether a tool is called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool | None = None


class WireFormat(msgspec.Struct):
    """A schema that the answer must fit."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class WireOutput(msgspec.Struct):
    """`output_config`."""

    format: WireFormat | None = None


# ------------------------------------------------------------------------------ bodies


class CountRequest(msgspec.Struct, kw_only=True):
    """What a prompt is made of: the body of `POST /v1/messages/count_tokens`."""

    messages: Annotated[list[WireMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Annotated[list[WireText], Meta(max_length=MAX_PARTS)] | None = None
    tools: Annotated[list[WireTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: WireToolChoice | None = None
    output_config: WireOutput | None = None
    output_format: WireFormat | None = None
    mcp_servers: list[Any] | None = None
    container: Any = None


class MessagesRequest(CountRequest, kw_only=True):
    """The body of `POST /v1/messages`."""

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKEN_ID)]
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)] | None = None
    stop_sequences: Annotated[list[StopText], Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
