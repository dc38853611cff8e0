"""Calling models: `/predict`, chat, embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from wherry import errors
from wherry.client.answers import ChatAnswer, ChatUsage
from wherry.client.failures import read_error_event
from wherry.client.wire import (
    Call,
    Emit,
    EventReader,
    LinkError,
    Request,
    Stream,
    ask,
    decode,
    listen,
    post,
    quote_segment,
)

Messages = str | Sequence[Mapping[str, Any]]
"""One question, or a conversation as `[{"role": "user", "content": "…"}]`."""


def predict(
    deployment: str, inputs: Mapping[str, Any] | None = None, /, **fields: Any
) -> Call[dict[str, Any]]:
    """Ask any model in its simplest form: `predict("sentiment", text="lovely")`.

    Args:
        deployment: the deployment.
        inputs: the input; pictures as `bytes`, a `Path` or base64 text.
        fields: more of the input, or all of it.
    """
    body = {**(inputs or {}), **fields}
    return (yield from ask(_post(f"/predict/{quote_segment(deployment)}", body), dict[str, Any]))


def embed(deployment: str, texts: str | Iterable[str]) -> Call[list[list[float]]]:
    """A vector for each text, in order."""
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed:
        return []
    body = {"model": deployment, "input": listed, "encoding_format": "float"}
    answer = yield from ask(_post("/v1/embeddings", body), _Embeddings)
    return [each.embedding for each in sorted(answer.data, key=lambda each: each.index)]


def chat(deployment: str, messages: Messages, **params: Any) -> Call[ChatAnswer]:
    """Ask a text generation model; `params` are those of OpenAI's chat completions."""
    body = {"model": deployment, "messages": _as_messages(messages), **params, "stream": False}
    answer = yield from ask(_post("/v1/chat/completions", body), _Completion)
    if not answer.choices:
        raise errors.Internal("the server's answer has no choices")
    choice = answer.choices[0]
    return ChatAnswer(
        text=str(choice.message.get("content") or ""),
        finish_reason=choice.finish_reason or "",
        model=answer.model,
        usage=ChatUsage(answer.usage.prompt_tokens, answer.usage.completion_tokens),
        message=choice.message,
        id=answer.id,
    )


def stream_chat(deployment: str, messages: Messages, **params: Any) -> Stream[str]:
    """The answer's text, piece by piece; closing the stream stops the model."""
    body = {"model": deployment, "messages": _as_messages(messages), **params, "stream": True}
    yield from listen(_post("/v1/chat/completions", body))
    reader = EventReader()
    finished = False
    try:
        while (event := (yield from reader.next())) is not None and event.data != b"[DONE]":
            if (failure := read_error_event(event.data)) is not None:
                raise failure
            for choice in decode(event.data, _Chunk).choices:
                finished = finished or choice.finish_reason is not None
                if choice.delta.content:
                    yield Emit(choice.delta.content)
    except LinkError as error:
        raise error.explain(repeatable=False) from error
    if not finished:
        raise errors.WorkerLost("the stream ended before the answer did", hint="ask again")


def encode_body(body: Mapping[str, Any]) -> bytes:
    """JSON of a body that may hold arrays, bytes (base64) and paths of files (base64)."""
    try:
        return msgspec.json.encode(body, enc_hook=_as_json)
    except (TypeError, ValueError) as error:
        raise errors.InvalidInput(f"the input cannot be sent: {error}") from error


def _as_json(value: object) -> Any:
    if isinstance(value, Path):
        return value.read_bytes()
    for method in ("tolist", "to_dict"):  # numpy and kin; tables
        convert = getattr(value, method, None)
        if callable(convert):
            return convert()
    raise TypeError(f"values of type {type(value).__name__!r} have no JSON form")


def _as_messages(messages: Messages) -> list[Mapping[str, Any]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return list(messages)


def _post(path: str, body: Mapping[str, Any]) -> Request:
    return post(path, encode_body(body))


# ---------------------------------------------------------- what is read of OpenAI's answers


class _Embedding(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Choice(msgspec.Struct):
    message: dict[str, Any]
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    id: str = ""
    model: str = ""
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Delta(msgspec.Struct):
    content: str | None = None


class _ChunkChoice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_ChunkChoice] = []
