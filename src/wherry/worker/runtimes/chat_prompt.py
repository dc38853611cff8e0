"""Turns a conversation into messages that a GGUF model's own chat template can render.

Two things happen here that a template cannot do: text that looks like a control token is broken,
so nobody can forge a turn, and tools are written into plain messages where the template does not
know them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from wherry.errors import InvalidInput
from wherry.models.tasks.generation import ChatInput, Message, TextPart, Tool, ToolCall

Content = str | list[dict[str, Any]]
"""Of a rendered message: text, or parts where there are pictures among them."""

WORD_JOINER = "\u2060"
"""Invisible, and in no control token: put into a look-alike it makes ordinary text of it."""

TOOLS_INTRODUCTION = (
    "You can call these functions, given as JSON schemas:\n<tools>\n{tools}\n</tools>\n"
)
TOOLS_BY_CHOICE = (
    "If a function helps, answer only with\n"
    '<tool_call>\n{"name": <function name>, "arguments": <JSON object>}\n</tool_call>\n'
    "Otherwise answer in words."
)
TOOLS_FORCED = (
    'Answer only with {"name": <function name>, "arguments": <JSON object>}, with short values.'
)


class TemplateAbilities(msgspec.Struct, frozen=True):
    """What the model's chat template renders (llama.cpp finds out when it loads the model)."""

    tools: bool = False
    tool_calls: bool = False
    system_role: bool = True


class Neutraliser:
    """Breaks control tokens in text that did not come from the template."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._pattern = (
            re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        )

    def text(self, text: str) -> str:
        """`text` without any control token; unchanged if it has none."""
        while self._pattern is not None and self._pattern.search(text):
            # again and again: breaking one can leave another that overlapped it
            text = self._pattern.sub(_break_token, text)
        return text

    def json(self, value: Any) -> Any:
        """A JSON value with every text and key in it made harmless."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.json(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.json(each) for each in value]
        return value


def _break_token(found: re.Match[str]) -> str:
    return found[0][0] + WORD_JOINER + found[0][1:]


def render_messages(
    item: ChatInput,
    abilities: TemplateAbilities,
    neutralise: Neutraliser,
    pictures: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Messages for the model's template, tools included where they must be plain text.

    Args:
        item: the conversation.
        abilities: of the template.
        neutralise: for all text of it.
        pictures: `data:` URLs to show, one for each picture of the conversation, in order.
    """
    messages: list[dict[str, Any]] = []
    shown = iter(pictures)
    for message in item.messages:
        if message.role == "user":
            content = _content_of(message, neutralise, shown)
            messages.append({"role": "user", "content": content})
            continue
        text = neutralise.text(_text_of(message))
        if message.role == "tool":
            _add_tool_result(messages, message, text, abilities)
        elif message.tool_calls:
            messages.append(_render_calls(message, text, abilities, neutralise))
        else:
            messages.append({"role": message.role, "content": text})
    tools = tools_in_text(item, abilities)
    if tools:
        _add_to_system(messages, _describe_tools(tools, item, neutralise.text))
    if not abilities.system_role:
        _move_system_to_user(messages)
    return messages


def tools_in_text(item: ChatInput, abilities: TemplateAbilities) -> list[Tool]:
    """Tools that we describe, rather than the template: all that it would pass over."""
    if item.tool_choice.mode == "none":
        return []
    if item.tool_choice.mode == "auto":
        return [] if abilities.tools else item.tools
    return forced_tools(item)


def forced_tools(item: ChatInput) -> list[Tool]:
    """The tools of which one must be called; empty if none must."""
    match item.tool_choice.mode:
        case "required":
            return item.tools
        case "named":
            return [tool for tool in item.tools if tool.name == item.tool_choice.name]
        case _:
            return []


def render_native_tools(tools: Sequence[Tool], neutralise: Neutraliser) -> list[dict[str, Any]]:
    """Tools in the form that templates which know tools expect."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": neutralise.text(tool.description),
                "parameters": neutralise.json(tool.parameters) or {"type": "object"},
            },
        }
        for tool in tools
    ]


def _text_of(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    texts: list[str] = []
    for part in message.content:
        if not isinstance(part, TextPart):
            raise InvalidInput(
                f"this model takes no pictures in a message of role {message.role!r}",
                hint="send them in a message of the user",
                param="messages",
            )
        texts.append(part.text)
    return "\n".join(texts)


def _content_of(message: Message, neutralise: Neutraliser, pictures: Iterator[str]) -> Content:
    """A user's message; its pictures are taken from `pictures`."""
    if isinstance(message.content, str) or _is_text(message):
        return neutralise.text(_text_of(message))
    return [
        {"type": "text", "text": neutralise.text(part.text)}
        if isinstance(part, TextPart)
        else {"type": "image_url", "image_url": {"url": next(pictures)}}
        for part in message.content
    ]


def _is_text(message: Message) -> bool:
    return all(isinstance(part, TextPart) for part in message.content)


def _put_before(text: str, content: Content) -> Content:
    if isinstance(content, str):
        return f"{text}\n\n{content}"
    return [{"type": "text", "text": text}, *content]


def _add_tool_result(
    messages: list[dict[str, Any]], message: Message, text: str, abilities: TemplateAbilities
) -> None:
    if abilities.tool_calls:
        messages.append({"role": "tool", "tool_call_id": message.tool_call_id, "content": text})
        return
    result = f"<tool_response>\n{text}\n</tool_response>"
    if messages and _holds_results(messages[-1]):
        messages[-1]["content"] += "\n" + result  # templates want roles to alternate
    else:
        messages.append({"role": "user", "content": result})


def _holds_results(message: dict[str, Any]) -> bool:
    content = message["content"]
    return message["role"] == "user" and isinstance(content, str) and content.startswith("<tool_")


def _render_calls(
    message: Message, text: str, abilities: TemplateAbilities, neutralise: Neutraliser
) -> dict[str, Any]:
    if abilities.tool_calls:
        calls = [_native_call(call, neutralise) for call in message.tool_calls]
        return {"role": "assistant", "content": text, "tool_calls": calls}
    written = [
        f'<tool_call>\n{{"name": "{call.name}", "arguments": {neutralise.text(call.arguments)}}}'
        "\n</tool_call>"
        for call in message.tool_calls
    ]
    return {"role": "assistant", "content": "\n".join([text, *written] if text else written)}


def _native_call(call: ToolCall, neutralise: Neutraliser) -> dict[str, Any]:
    function = {"name": call.name, "arguments": neutralise.text(call.arguments)}
    return {"id": neutralise.text(call.id), "type": "function", "function": function}


def _describe_tools(
    tools: Sequence[Tool], item: ChatInput, neutralise: Callable[[str], str]
) -> str:
    lines = [
        msgspec.json.encode(
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        ).decode()
        for tool in tools
    ]
    introduction = TOOLS_INTRODUCTION.format(tools="\n".join(lines))
    how = TOOLS_BY_CHOICE if item.tool_choice.mode == "auto" else TOOLS_FORCED
    return neutralise(introduction) + how


def _add_to_system(messages: list[dict[str, Any]], text: str) -> None:
    if messages and messages[0]["role"] == "system":
        messages[0]["content"] += "\n\n" + text
    else:
        messages.insert(0, {"role": "system", "content": text})


def _move_system_to_user(messages: list[dict[str, Any]]) -> None:
    """Put system text in front of the first user message: the template has no system role."""
    texts = [message["content"] for message in messages if message["role"] == "system"]
    messages[:] = [message for message in messages if message["role"] != "system"]
    if not texts:
        return
    if messages and messages[0]["role"] == "user":
        messages[0]["content"] = _put_before("\n\n".join(texts), messages[0]["content"])
    else:
        messages.insert(0, {"role": "user", "content": "\n\n".join(texts)})
