"""A generation → OpenAI's `response` object, whole or as events.

Shapes follow the official SDK with strict validation on: every key is there, null where there is
nothing to say. The numbers of cached and reasoning tokens are 0: the first is never told, the
second not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from wherry.models.codecs.codec import Call
from wherry.models.codecs.openai_common import LEAST_LOGPROB
from wherry.models.codecs.responses_request import Asked, WireChoice
from wherry.models.codecs.responses_turn import Turn
from wherry.models.tasks.generation import (
    Generation,
    Message,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
)
from wherry.models.tasks.packing import pack
from wherry.models.tasks.task import Usage

Json: TypeAlias = dict[str, Any]
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reasons of an answer that is not whole → `incomplete_details.reason`."""


class MessageOutput(msgspec.Struct):
    """What the model says."""

    id: str
    text: str = ""
    logprobs: list[TokenLogprob] = []

    def json(self, status: str, *, is_empty: bool = False) -> Json:
        """The item; while it is being said it has no parts yet."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if is_empty else [self.part()],
        }

    def part(self) -> Json:
        """Its one part."""
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": [_logprob_json(each) for each in self.logprobs],
        }


class CallOutput(msgspec.Struct):
    """A function that the model calls."""

    id: str
    call_id: str
    name: str
    arguments: str = ""

    def json(self, status: str, *, is_empty: bool = False) -> Json:
        """The item."""
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": "" if is_empty else self.arguments,
        }


Output: TypeAlias = MessageOutput | CallOutput


class Answer:
    """A response in the making.

    Args:
        response_id: `resp_…`.
        asked: what it answers.
        call: the request's head.
    """

    def __init__(self, response_id: str, asked: Asked, call: Call) -> None:
        self.asked = asked
        self.outputs: list[Output] = []
        self._number = response_id.removeprefix("resp_")
        self._head = _head_of(response_id, asked, call)

    def say(self, text: str = "", logprobs: Sequence[TokenLogprob] = ()) -> MessageOutput:
        """Begin a message."""
        output = MessageOutput(f"msg_{self._number}_{len(self.outputs)}", text, list(logprobs))
        self.outputs.append(output)
        return output

    def call(self, call_id: str, name: str, arguments: str = "") -> CallOutput:
        """Begin a call."""
        output = CallOutput(f"fc_{self._number}_{len(self.outputs)}", call_id, name, arguments)
        self.outputs.append(output)
        return output

    def take(self, generation: Generation) -> None:
        """A whole answer at once."""
        if generation.text or not generation.tool_calls:
            self.say(generation.text, generation.logprobs or ())
        for each in generation.tool_calls:
            self.call(each.id, each.name, each.arguments)

    def status_of(self, output: Output, finish: str | None) -> str:
        """An item's own status: what was cut off is the last."""
        is_cut = finish in INCOMPLETE and output is self.outputs[-1]
        return "incomplete" if is_cut else "completed"

    def json(self, usage: Usage | None = None, finish: str | None = None) -> Json:
        """The object; in progress unless there is a usage."""
        reason = INCOMPLETE.get(finish or "")
        ended = "incomplete" if reason else "completed"
        return self._head | {
            "status": "in_progress" if usage is None else ended,
            "incomplete_details": {"reason": reason} if reason else None,
            "output": []
            if usage is None
            else [each.json(self.status_of(each, finish)) for each in self.outputs],
            "usage": None if usage is None else _usage_json(usage),
        }

    def turn(self, response: Json) -> Turn:
        """What is kept: the object, and what this turn adds to the conversation."""
        messages = self.asked.messages
        if response["usage"] is not None:
            messages = [*messages, self._message()]
        return Turn(
            response["status"], msgspec.json.encode(response), self.asked.items, pack(messages)
        )

    def _message(self) -> Message:
        texts = [each.text for each in self.outputs if isinstance(each, MessageOutput)]
        calls = [
            ToolCall(each.call_id, each.name, each.arguments)
            for each in self.outputs
            if isinstance(each, CallOutput)
        ]
        return Message("assistant", "".join(texts), tool_calls=calls)


class AnswerEvents:
    """The events of one response, in the order that clients expect."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._count = 0
        self._open: Output | None = None
        self._call_index = -1
        self._finish: str | None = None

    def event(self, output: TextDelta) -> bytes:
        """Events for the next delta."""
        events = self._begin()
        if output.text or output.logprobs:
            events += self._text(output)
        for piece in output.tool_calls:
            events += self._call(piece)
        self._finish = output.finish_reason or self._finish
        return events

    def end(self, usage: Usage) -> tuple[bytes, Json]:
        """The events that close the response, and the object that the last of them tells."""
        events = self._begin()
        if not self._answer.outputs:
            events += self._open_message()
        events += self._close()
        response = self._answer.json(usage, self._finish)
        return events + self._event(f"response.{response['status']}", response=response), response

    def _begin(self) -> bytes:
        if self._count:
            return b""
        response = self._answer.json()
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def _text(self, delta: TextDelta) -> bytes:
        events = b""
        if not isinstance(self._open, MessageOutput):
            events = self._close() + self._open_message()
        output = self._open
        assert isinstance(output, MessageOutput)
        output.text += delta.text
        output.logprobs += delta.logprobs
        return events + self._event(
            "response.output_text.delta",
            **self._place(content_index=0),
            delta=delta.text,
            logprobs=[_logprob_json(each) for each in delta.logprobs],
        )

    def _call(self, piece: ToolCallDelta) -> bytes:
        events = b""
        if not isinstance(self._open, CallOutput) or piece.index != self._call_index:
            events = self._close()
            self._call_index = piece.index
            self._open = self._answer.call(piece.id, piece.name)
            events += self._item("response.output_item.added", "in_progress", is_empty=True)
        if not piece.arguments:
            return events
        assert isinstance(self._open, CallOutput)
        self._open.arguments += piece.arguments
        return events + self._event(
            "response.function_call_arguments.delta", **self._place(), delta=piece.arguments
        )

    def _open_message(self) -> bytes:
        self._open = self._answer.say()
        added = self._item("response.output_item.added", "in_progress", is_empty=True)
        place = self._place(content_index=0)
        return added + self._event("response.content_part.added", **place, part=self._open.part())

    def _close(self) -> bytes:
        """End the item that is open, if one is."""
        output = self._open
        if output is None:
            return b""
        if isinstance(output, MessageOutput):
            place, part = self._place(content_index=0), output.part()
            text = {"text": output.text, "logprobs": part["logprobs"]}
            events = self._event("response.output_text.done", **place, **text)
            events += self._event("response.content_part.done", **place, part=part)
        else:
            whole = {"name": output.name, "arguments": output.arguments}
            events = self._event("response.function_call_arguments.done", **self._place(), **whole)
        status = self._answer.status_of(output, self._finish)
        events += self._item("response.output_item.done", status)
        self._open = None
        return events

    def _item(self, kind: str, status: str, *, is_empty: bool = False) -> bytes:
        assert self._open is not None
        index = len(self._answer.outputs) - 1
        item = self._open.json(status, is_empty=is_empty)
        return self._event(kind, output_index=index, item=item)

    def _place(self, **more: Any) -> Json:
        assert self._open is not None
        index = len(self._answer.outputs) - 1
        return {"item_id": self._open.id, "output_index": index, **more}

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._count, **fields}
        self._count += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(data))


# ------------------------------------------------------------------------------ parts


def _head_of(response_id: str, asked: Asked, call: Call) -> Json:
    """All that is known before the first token; told again as it was asked."""
    request, chat = asked.request, asked.chat
    reasoning = request.reasoning
    return {
        "id": response_id,
        "object": "response",
        "created_at": call.created,
        "model": call.deployment,
        "status": "in_progress",
        "background": bool(request.background),
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "output": [],
        "parallel_tool_calls": chat.parallel_tool_calls,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "safety_identifier": request.safety_identifier,
        "store": request.store is not False,
        "temperature": request.temperature,
        "text": _text_json(asked),
        "tool_choice": _choice_json(asked),
        "tools": [msgspec.to_builtins(tool) for tool in request.tools or []],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": request.truncation or "disabled",
        "usage": None,
        "user": request.user,
    }


def _text_json(asked: Asked) -> Json:
    text = asked.request.text
    shown: Json = {"format": {"type": "text"}}
    if text is not None and text.format is not None:
        shown["format"] = msgspec.to_builtins(text.format)
    if text is not None and text.verbosity is not None:
        shown["verbosity"] = text.verbosity
    return shown


def _choice_json(asked: Asked) -> Any:
    choice = asked.request.tool_choice
    if not isinstance(choice, WireChoice):
        return choice or "auto"
    if choice.type == "function":
        return {"type": "function", "name": choice.name}
    return {"type": choice.type, "mode": choice.mode or "auto", "tools": choice.tools}


def _usage_json(usage: Usage) -> Json:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _logprob_json(found: TokenLogprob) -> Json:
    return _token_json(found) | {"top_logprobs": [_token_json(each) for each in found.top]}


def _token_json(found: TokenLogprob | TopLogprob) -> Json:
    told = list(found.token.encode()) if found.bytes is None else found.bytes
    return {"token": found.token, "bytes": told, "logprob": max(found.logprob, LEAST_LOGPROB)}
