"""From Anthropic's turns of content blocks to the messages of the task `text-generation`.

A turn may hold several calls, or the results of several calls beside text; the task has a message
for each result. What the task cannot say is refused, naming the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import msgspec

from wherry.errors import InvalidInput
from wherry.models.codecs.anthropic_wire import (
    Base64Source,
    Block,
    CountRequest,
    FileSource,
    UrlSource,
    WireDocument,
    WireImage,
    WireMessage,
    WireRedactedThinking,
    WireSearchResult,
    WireText,
    WireThinking,
    WireToolResult,
    WireToolUse,
)
from wherry.models.tasks.generation import (
    ImagePart,
    Message,
    Part,
    TextPart,
    ToolCall,
    check_json_size,
)

ERROR_MARK = TextPart("Error:")
"""Before the result of a call that failed: the task has no other way to say it."""

Placed = tuple[str, Block]
"""A block, and where it stands in the request."""


def read_messages(request: CountRequest) -> list[Message]:
    """All messages of a request, the system's first."""
    return _PromptReader().read(request)


class _PromptReader:
    """Reads the turns of one request, in order, and remembers its calls."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._call_ids: set[str] = set()

    def read(self, request: CountRequest) -> list[Message]:
        system = _read_system(request)
        if system:
            self._messages.append(Message("system", system))
        numbered = enumerate(request.messages)
        for role, turn in groupby(numbered, key=lambda each: each[1].role):
            blocks = [placed for index, message in turn for placed in _place(message, index)]
            if role == "user":
                self._read_user(blocks)
            elif role == "assistant":
                self._read_assistant(blocks)
            else:
                parts = [_read_text(place, block) for place, block in blocks]
                self._messages.append(Message("system", _content_of(parts)))
        return self._messages

    def _read_user(self, blocks: Sequence[Placed]) -> None:
        parts: list[Part] = []
        for place, block in blocks:
            if isinstance(block, WireToolResult):
                self._add_user(parts)
                parts = []
                self._read_result(place, block)
            else:
                parts.append(_read_part(place, block))
        self._add_user(parts)

    def _add_user(self, parts: Sequence[Part]) -> None:
        if parts:
            self._messages.append(Message("user", _content_of(parts)))

    def _read_result(self, place: str, result: WireToolResult) -> None:
        if result.tool_use_id not in self._call_ids:
            raise InvalidInput(
                f"no tool_use before this result has the id {result.tool_use_id!r}",
                param=f"{place}.tool_use_id",
            )
        content = result.content or ""
        blocks = [WireText(content)] if isinstance(content, str) else content
        parts = [_read_part(f"{place}.content[{at}]", block) for at, block in enumerate(blocks)]
        if result.is_error:
            parts.insert(0, ERROR_MARK)
        self._messages.append(Message("tool", _content_of(parts), tool_call_id=result.tool_use_id))

    def _read_assistant(self, blocks: Sequence[Placed]) -> None:
        parts: list[Part] = []
        calls: list[ToolCall] = []
        for place, block in blocks:
            match block:
                case WireToolUse():
                    calls.append(self._read_call(place, block))
                case WireThinking() | WireRedactedThinking():
                    continue  # no template takes it, and only the model that had it could use it
                case _:
                    parts.append(_read_text(place, block))
        self._messages.append(Message("assistant", _content_of(parts), tool_calls=calls))

    def _read_call(self, place: str, call: WireToolUse) -> ToolCall:
        check_json_size(call.input, f"{place}.input")
        if call.id in self._call_ids:
            raise InvalidInput(f"two calls have the id {call.id!r}", param=f"{place}.id")
        self._call_ids.add(call.id)
        return ToolCall(call.id, call.name, msgspec.json.encode(call.input).decode())


def check_beginning(message: Message) -> None:
    """Refuse a last message of the assistant that an answer cannot continue."""
    texts = [part.text for part in _parts_of(message) if isinstance(part, TextPart)]
    if message.tool_calls or not any(texts):
        raise InvalidInput(
            "the last message is the assistant's, and has no text to continue",
            hint="end with a message of the user, or with tool_result blocks",
            param="messages",
        )
    if texts[-1] != texts[-1].rstrip():
        raise InvalidInput(
            "the last message is the assistant's, and must not end with blanks",
            hint="leave them out: the answer begins with them",
            param="messages",
        )


def _read_system(request: CountRequest) -> str:
    system = request.system or ""
    return system if isinstance(system, str) else "\n".join(block.text for block in system)


def _place(message: WireMessage, index: int) -> Iterator[Placed]:
    place = f"messages[{index}].content"
    if isinstance(message.content, str):
        yield place, WireText(message.content)
        return
    for at, block in enumerate(message.content):
        yield f"{place}[{at}]", block


def _read_part(place: str, block: Block) -> Part:
    """A part of what a user or a tool says."""
    return _read_image(place, block) if isinstance(block, WireImage) else _read_text(place, block)


def _read_text(place: str, block: Block) -> TextPart:
    match block:
        case WireText(text):
            return TextPart(text)
        case WireDocument() | WireSearchResult():
            kind = "documents" if isinstance(block, WireDocument) else "search results"
            raise InvalidInput(
                f"{kind} are not read here", hint="send their text in a text block", param=place
            )
        case _:
            kind = block.__struct_config__.tag
            raise InvalidInput(f"a block of type {kind!r} cannot stand here", param=place)


def _read_image(place: str, image: WireImage) -> ImagePart:
    match image.source:
        case Base64Source(media_type, data):
            return ImagePart(f"data:{media_type};base64,{data}")
        case UrlSource(url):
            return ImagePart(url)
        case FileSource():
            raise InvalidInput(
                "pictures cannot be uploaded here",
                hint="send the picture as base64",
                param=f"{place}.source",
            )


def _parts_of(message: Message) -> Sequence[Part]:
    return [TextPart(message.content)] if isinstance(message.content, str) else message.content


def _content_of(parts: Sequence[Part]) -> str | list[Part]:
    match parts:
        case []:
            return ""
        case [TextPart(text)]:
            return text
        case _:
            return list(parts)
