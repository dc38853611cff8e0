"""Answers of the inference calls."""

from __future__ import annotations

from typing import Any

import msgspec


class ChatUsage(msgspec.Struct, frozen=True):
    """What an answer cost."""

    input_tokens: int = 0
    output_tokens: int = 0


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of a text generation model; `str(answer)` is its text."""

    text: str
    finish_reason: str
    """`stop`, `length` (cut at `max_tokens`), `tool_calls` …"""
    model: str
    usage: ChatUsage
    message: dict[str, Any]
    """The assistant's message as it came, to append to the conversation."""
    id: str = ""

    def __str__(self) -> str:
        """The text."""
        return self.text
