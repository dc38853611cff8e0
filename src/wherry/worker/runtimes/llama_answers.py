"""What llama.cpp's server answers: chunks become deltas, its errors become ours."""

from __future__ import annotations

import msgspec

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.tasks.generation import (
    FinishReason,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)
from wherry.models.tasks.task import Usage
from wherry.worker.runtimes.json_conformance import conforms
from wherry.worker.runtimes.json_prefix import JsonPrefix
from wherry.worker.runtimes.llama_requests import LlamaRequest, context_exceeded

LEAST_LOGPROB = -9999.0


class ChunkTopLogprob(msgspec.Struct):
    """One of `top_logprobs`."""

    token: str
    logprob: float | None = None
    bytes: list[int] | None = None
    id: int | None = None


class ChunkLogprob(ChunkTopLogprob):
    """A token's log-probability."""

    top_logprobs: list[ChunkTopLogprob] = []


class ChunkLogprobs(msgspec.Struct):
    """`logprobs` of a choice."""

    content: list[ChunkLogprob] | None = None


class ChunkFunction(msgspec.Struct):
    """`function` of a tool call delta."""

    name: str | None = None
    arguments: str | None = None


class ChunkToolCall(msgspec.Struct):
    """A tool call delta of a template that knows tools."""

    index: int = 0
    id: str | None = None
    function: ChunkFunction = msgspec.field(default_factory=ChunkFunction)


class ChunkDelta(msgspec.Struct):
    """`delta` of a chat chunk."""

    content: str | None = None
    tool_calls: list[ChunkToolCall] | None = None


class ChunkChoice(msgspec.Struct):
    """The one choice of a chunk: `delta` in chat, `text` in completions."""

    delta: ChunkDelta = msgspec.field(default_factory=ChunkDelta)
    text: str = ""
    logprobs: ChunkLogprobs | None = None
    finish_reason: str | None = None


class ChunkError(msgspec.Struct):
    """`error` of a chunk."""

    code: int = 500
    message: str = ""
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class Timings(msgspec.Struct):
    """What has been computed so far."""

    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0
    prompt_per_second: float = 0.0


class PromptProgress(msgspec.Struct):
    """How much of the prompt has been read."""

    total: int = 0
    processed: int = 0


class ChunkUsage(msgspec.Struct):
    """`usage` of the last chunk."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChunkDetails(msgspec.Struct):
    """`__verbose` of the chunk that ends an answer, of which the rest repeats the request."""

    stopping_word: str = ""


class Chunk(msgspec.Struct):
    """What llama.cpp hands to the callback."""

    choices: list[ChunkChoice] = []
    error: ChunkError | None = None
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None
    usage: ChunkUsage | None = None
    details: ChunkDetails | None = msgspec.field(default=None, name="__verbose")


chunk_decoder = msgspec.json.Decoder(Chunk)


class LlamaAnswer:
    """Chunks of one request → deltas; counts tokens, also when the answer is cut short."""

    def __init__(self, request: LlamaRequest) -> None:
        self._request = request
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._length_of_prompt = 0
        self._finish_reason: str | None = None
        self._stop_text = ""
        self._called_natively = False
        self._prefix = JsonPrefix()
        self._written: list[str] = []

    def read(self, chunk: Chunk) -> TextDelta | None:
        """The delta of a chunk, if it has one; raises what the chunk says went wrong."""
        if chunk.error is not None:
            self._take_error(chunk.error)
        self._count(chunk)
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        self._finish_reason = choice.finish_reason or self._finish_reason
        if chunk.details is not None:
            self._take_stop_text(chunk.details.stopping_word)
        text = choice.delta.content or choice.text
        if text and self._request.schema is not None:
            self._check_piece(text)
        delta = self._request.reader.feed(text) if text else TextDelta()
        if choice.delta.tool_calls:
            self._called_natively = True
            delta.tool_calls += [_tool_call_delta(each) for each in choice.delta.tool_calls]
        if self._request.top_logprobs is not None and choice.logprobs is not None:
            delta.logprobs = _logprobs_of(choice.logprobs, self._request.top_logprobs)
        if not (delta.text or delta.tool_calls or delta.logprobs):
            return None
        self._tell_length(delta)
        return delta

    def finish(self, *, cancelled: bool) -> TextDelta:
        """The last delta: what was held back, why it ended, what it cost."""
        delta = self._request.reader.finish()
        self._tell_length(delta)
        if self._request.count_only:
            return self._finish_count(delta, cancelled=cancelled)
        delta.usage = Usage(
            input_tokens=self._prompt_tokens if self._request.charge_prompt else 0,
            output_tokens=self._output_tokens,
            rows=0 if self._finish_reason is None else 1,
        )
        if self._finish_reason is None:
            if not cancelled:
                raise ModelFailed("llama.cpp stopped before the answer was finished")
            delta.finish_reason = "cancelled"
            return delta
        delta.finish_reason = self._reason()
        delta.stop_text = self._stop_text
        if delta.finish_reason != "length" and not self._request.stops:
            self._check_whole()
        return delta

    def _finish_count(self, delta: TextDelta, *, cancelled: bool) -> TextDelta:
        if not delta.input_tokens and not cancelled:
            raise ModelFailed("llama.cpp did not tell the length of the prompt")
        delta.finish_reason = "cancelled" if cancelled else "stop"
        return delta

    def _take_error(self, error: ChunkError) -> None:
        """A prompt that is too long can be counted all the same."""
        if not (self._request.count_only and error.n_prompt_tokens):
            raise error_of(error)
        self._length_of_prompt = error.n_prompt_tokens

    def _take_stop_text(self, word: str) -> None:
        """Only if the request asked for it: chat templates bring stop texts of their own."""
        if word in self._request.stops:
            self._stop_text = word

    def _tell_length(self, delta: TextDelta) -> None:
        """The first delta says how long the prompt is: `_length_of_prompt` is 0 from then on."""
        delta.input_tokens, self._length_of_prompt = self._length_of_prompt, 0

    def _count(self, chunk: Chunk) -> None:
        if chunk.prompt_progress is not None:
            self._length_of_prompt = chunk.prompt_progress.total
        if chunk.usage is not None:
            self._prompt_tokens = chunk.usage.prompt_tokens
            self._output_tokens = chunk.usage.completion_tokens
        elif chunk.timings is not None and chunk.timings.predicted_n:
            self._output_tokens = chunk.timings.predicted_n
            self._prompt_tokens = max(
                self._prompt_tokens, chunk.timings.cache_n + chunk.timings.prompt_n
            )
        elif chunk.prompt_progress is not None:
            self._prompt_tokens = max(self._prompt_tokens, chunk.prompt_progress.processed)

    def _reason(self) -> FinishReason:
        if self._finish_reason == "length":
            return "length"
        called = self._request.reader.called or self._called_natively
        return "tool_calls" if called else "stop"

    def _check_piece(self, text: str) -> None:
        """Stop at the first letter after the grammar engine gave up: it does so silently."""
        if not self._prefix.take(text):
            raise _not_held()
        self._written.append(text)

    def _check_whole(self) -> None:
        if self._request.schema is None:
            return
        try:
            value = msgspec.json.decode("".join(self._written))
            held = conforms(value, self._request.schema)
        except (msgspec.DecodeError, RecursionError) as error:
            raise _not_held() from error
        if not held:
            raise _not_held()


def _not_held() -> InvalidInput:
    return InvalidInput(
        "the schema is too complex to be held while generating",
        hint="simplify it: fewer alternatives, shorter patterns",
        param="response_format",
    )


def error_of(error: ChunkError) -> Exception:
    """The error of ours for one of llama.cpp's."""
    if error.type == "exceed_context_size_error":
        return context_exceeded(error.n_prompt_tokens, error.n_ctx)
    if 400 <= error.code < 500:
        return InvalidInput(f"the model refused the request: {error.message[:300]}")
    return ModelFailed(f"llama.cpp failed: {error.message[:300]}")


def _tool_call_delta(call: ChunkToolCall) -> ToolCallDelta:
    return ToolCallDelta(
        call.index,
        f"call_{call.id}" if call.id else "",
        call.function.name or "",
        call.function.arguments or "",
    )


def _logprobs_of(found: ChunkLogprobs, top: int) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            each.token,
            _finite(each.logprob),
            each.bytes,
            [
                TopLogprob(rival.token, _finite(rival.logprob), rival.bytes, rival.id)
                for rival in each.top_logprobs[:top]
            ],
            each.id,
        )
        for each in found.content or []
    ]


def _finite(logprob: float | None) -> float:
    """llama.cpp writes null, or the least float there is, for "impossible"."""
    return LEAST_LOGPROB if logprob is None else min(0.0, max(logprob, LEAST_LOGPROB))
