"""OpenAI `responses` ↔ the tasks that chat.

One codec for a request that stands alone, whose body comes as the client sent it, and one for a
turn of a conversation that is kept (`responses_turn`). Both answer with the same object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply
from wherry.models.codecs.responses_answer import Answer, AnswerEvents
from wherry.models.codecs.responses_request import Asked, read_request
from wherry.models.codecs.responses_turn import TurnPiece, TurnRequest
from wherry.models.tasks.generation import GENERATION_TASKS, Generation, Message, TextDelta
from wherry.models.tasks.packing import frame, pack, unpack
from wherry.models.tasks.task import Task, TaskConfig, Usage


class Context(msgspec.Struct):
    """What `encode` needs again."""

    response_id: str
    asked: Asked


class OpenAIResponses:
    """A request that stands alone; the one instance is `OPENAI_RESPONSES`."""

    tasks = GENERATION_TASKS

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """One item: the conversation that the request holds."""
        response_id = f"resp_{call.request_id.removeprefix('req-')}"
        asked = read_request(body, response_id, (), call, config)
        if asked.request.previous_response_id is not None:
            raise InvalidInput(
                "an earlier response is not known here", param="previous_response_id"
            )
        return Decoded([asked.chat], Context(response_id, asked))

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Generation],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """A `response` object."""
        _, response = _answer(decoded.context, outputs, call)
        return Reply(msgspec.json.encode(response))

    def stream(self, decoded: Decoded, call: Call) -> ResponseStream:
        """An encoder of the response's events."""
        return ResponseStream(_begin(decoded.context, call))


class OpenAIResponsesTurn:
    """A turn that is kept, or follows one; the one instance is `OPENAI_RESPONSES_TURN`."""

    tasks = GENERATION_TASKS

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """One item: the conversation so far and the request's; none if it is only announced."""
        turn: TurnRequest = unpack(body, TurnRequest)
        history = [each for packed in turn.history for each in unpack(packed, list[Message])]
        asked = read_request(turn.body, turn.id, history, call, config)
        return Decoded([] if turn.is_announced else [asked.chat], Context(turn.id, asked))

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Generation],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """The packed turn."""
        answer, response = _answer(decoded.context, outputs, call)
        return Reply(pack(answer.turn(response)), "application/msgpack")

    def stream(self, decoded: Decoded, call: Call) -> TurnStream:
        """An encoder of framed pieces; the last has the turn."""
        return TurnStream(_begin(decoded.context, call))


class OpenAIResponsesCount:
    """The length of a prompt that stands alone; the one instance is `OPENAI_RESPONSES_COUNT`."""

    tasks = GENERATION_TASKS

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """The conversation that a response would answer, to be counted."""
        decoded = OPENAI_RESPONSES.decode(body, call, task, config)
        decoded.items[0].count_only = True
        return decoded

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
        count = {"object": "response.input_tokens", "input_tokens": output.input_tokens}
        return Reply(msgspec.json.encode(count))


OPENAI_RESPONSES = OpenAIResponses()
OPENAI_RESPONSES_COUNT = OpenAIResponsesCount()
OPENAI_RESPONSES_TURN = OpenAIResponsesTurn()


class ResponseStream:
    """Events of one response."""

    def __init__(self, answer: Answer) -> None:
        self._events = AnswerEvents(answer)

    def event(self, index: int, output: TextDelta) -> bytes:
        """Events for the next delta."""
        return self._events.event(output)

    def end(self, usage: Usage) -> bytes:
        """The events that close the response."""
        return self._events.end(usage)[0]


class TurnStream:
    """The same events in framed pieces, and what must be kept before the last of them leaves."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._events = AnswerEvents(answer)

    def event(self, index: int, output: TextDelta) -> bytes:
        """A piece with the events for the next delta."""
        return _piece(self._events.event(output))

    def end(self, usage: Usage) -> bytes:
        """A piece with the closing events, and the turn."""
        events, response = self._events.end(usage)
        return _piece(events, self._answer.turn(response))


def _piece(events: bytes, turn: Any = None) -> bytes:
    return frame(pack(TurnPiece(events, turn)))


def _begin(context: Context, call: Call) -> Answer:
    return Answer(context.response_id, context.asked, call)


def _answer(
    context: Context, outputs: Sequence[Generation], call: Call
) -> tuple[Answer, dict[str, Any]]:
    """The response to what was generated; in progress if nothing was, as it was only announced."""
    answer = _begin(context, call)
    if not outputs:
        return answer, answer.json()
    answer.take(outputs[0])
    return answer, answer.json(outputs[0].usage, outputs[0].finish_reason)
