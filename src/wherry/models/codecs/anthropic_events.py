"""What Anthropic's clients read: messages, their blocks, and the events that build them up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from wherry.models.codecs.codec import Call
from wherry.models.tasks.generation import FinishReason, TextDelta, ToolCallDelta
from wherry.models.tasks.task import Usage

StopReason: TypeAlias = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]


def message_json(call: Call, content: Sequence[dict[str, Any]], usage: Usage) -> dict[str, Any]:
    """A message that has not ended."""
    return {
        "id": f"msg_{call.request_id}",
        "type": "message",
        "role": "assistant",
        "model": call.deployment,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_json(usage),
    }


def text_block(text: str) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": text}


def tool_use_block(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A block of a call."""
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def usage_json(usage: Usage) -> dict[str, int]:
    """Anthropic's `usage`; it never tells whether a prompt was cached."""
    return {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": usage.output_tokens,
    }


def stop_reason_of(reason: FinishReason | None, stop_text: str, *, called: bool) -> StopReason:
    """A reason that clients know; a cancelled answer reads as cut off."""
    match reason:
        case "stop" | "tool_calls" if called:
            return "tool_use"  # some servers say "stop" after a call that was forced
        case "stop" | "tool_calls":
            return "stop_sequence" if stop_text else "end_turn"
        case "content_filter":
            return "refusal"
        case _:
            return "max_tokens"


class MessageStream:
    """Events of one message. Blocks follow one another: the next begins where the last has ended."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._has_started = False
        self._begun_blocks = 0
        self._open: Literal["text", "call", ""] = ""
        """What the last block is, until it is closed."""
        self._block_of_call: dict[int, int] = {}
        self._last = TextDelta(finish_reason="cancelled")

    def event(self, index: int, output: TextDelta) -> bytes:
        """Events for the next delta; the first says how long the prompt is, if it is known."""
        events: list[bytes] = []
        if not self._has_started:
            self._has_started = True
            usage = Usage(input_tokens=output.input_tokens)
            events.append(sse("message_start", message=message_json(self._call, [], usage)))
        if output.text:
            events += self._write_text(output.text)
        for piece in output.tool_calls:
            events += self._write_call(piece)
        if output.finish_reason is not None:
            self._last = output
        return b"".join(events)

    def end(self, usage: Usage) -> bytes:
        """The end of the last block (an empty text if there was none) and of the message."""
        events = [] if self._begun_blocks else self._begin("text", text_block(""))
        events += self._close()
        reason = stop_reason_of(
            self._last.finish_reason, self._last.stop_text, called=bool(self._block_of_call)
        )
        delta = {"stop_reason": reason, "stop_sequence": self._last.stop_text or None}
        events += [
            sse("message_delta", delta=delta, usage=usage_json(usage)),
            sse("message_stop"),
        ]
        return b"".join(events)

    def _write_text(self, text: str) -> list[bytes]:
        events = [] if self._open == "text" else self._begin("text", text_block(""))
        delta = {"type": "text_delta", "text": text}
        return [*events, self._delta(self._begun_blocks - 1, delta)]

    def _write_call(self, piece: ToolCallDelta) -> list[bytes]:
        events: list[bytes] = []
        if piece.index not in self._block_of_call:
            self._block_of_call[piece.index] = self._begun_blocks
            events = self._begin("call", tool_use_block(piece.id, piece.name, {}))
        if piece.arguments:
            delta = {"type": "input_json_delta", "partial_json": piece.arguments}
            events.append(self._delta(self._block_of_call[piece.index], delta))
        return events

    def _begin(self, kind: Literal["text", "call"], block: dict[str, Any]) -> list[bytes]:
        start = sse("content_block_start", index=self._begun_blocks, content_block=block)
        events = [*self._close(), start]
        self._open = kind
        self._begun_blocks += 1
        return events

    def _close(self) -> list[bytes]:
        if not self._open:
            return []
        self._open = ""
        return [sse("content_block_stop", index=self._begun_blocks - 1)]

    def _delta(self, block: int, delta: dict[str, Any]) -> bytes:
        return sse("content_block_delta", index=block, delta=delta)


def sse(kind: str, **fields: Any) -> bytes:
    """One server-sent event, named for its type."""
    data = msgspec.json.encode({"type": kind} | fields)
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
