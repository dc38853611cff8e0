"""Keeps clients of a server that reads control tokens anywhere from forging turns with them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from wherry.errors import InvalidInput
from wherry.models.tasks.generation import ChatInput, Message, Part, TextPart, Tool, ToolCall
from wherry.worker.runtimes.chat_prompt import Neutraliser

TOKENIZER = "tokenizer.json"


class AddedToken(msgspec.Struct):
    """A token that is not of the vocabulary's own making."""

    content: str
    special: bool = False


class TokenizerFile(msgspec.Struct):
    """The part of `tokenizer.json` that is of use here."""

    added_tokens: list[AddedToken] = []


def special_tokens_of(folder: Path) -> list[str]:
    """Texts that a Hugging Face folder's tokenizer reads as control tokens."""
    file = folder / TOKENIZER
    if not file.is_file():
        raise InvalidInput(
            f"the model has no {TOKENIZER}", hint="save it with a recent version of transformers"
        )
    try:
        found = msgspec.json.decode(file.read_bytes(), type=TokenizerFile)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{TOKENIZER!r} is no tokenizer: {error}") from error
    return [token.content for token in found.added_tokens if token.special]


def without_control_tokens(item: ChatInput, neutralise: Neutraliser) -> ChatInput:
    """The same conversation, with no control token in any text of it."""
    return msgspec.structs.replace(
        item,
        messages=[_harmless_message(message, neutralise) for message in item.messages],
        tools=[_harmless_tool(tool, neutralise) for tool in item.tools],
    )


def _harmless_message(message: Message, neutralise: Neutraliser) -> Message:
    content = message.content
    return msgspec.structs.replace(
        message,
        content=neutralise.text(content)
        if isinstance(content, str)
        else [_harmless_part(part, neutralise) for part in content],
        name=neutralise.text(message.name) if message.name else message.name,
        tool_calls=[
            ToolCall(neutralise.text(call.id), call.name, neutralise.text(call.arguments))
            for call in message.tool_calls
        ],
    )


def _harmless_part(part: Part, neutralise: Neutraliser) -> Part:
    return TextPart(neutralise.text(part.text)) if isinstance(part, TextPart) else part


def _harmless_tool(tool: Tool, neutralise: Neutraliser) -> Tool:
    return msgspec.structs.replace(
        tool,
        description=neutralise.text(tool.description),
        parameters=neutralise.json(tool.parameters),
    )
