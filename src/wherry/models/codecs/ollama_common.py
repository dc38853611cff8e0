"""What Ollama's codecs share: options, formats, moments and the end of an answer.

https://github.com/ollama/ollama/blob/main/docs/api.md. Its clients send every option they have, so
what is not known here is left alone. Durations are the door's: codecs have no clock. It adds them
behind what is the last field of a finished answer, `done`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.codecs.codec import Call
from wherry.models.tasks.generation import (
    MAX_STOPS,
    MAX_TOKEN_ID,
    MAX_TOP_LOGPROBS,
    FinishReason,
    JsonFormat,
    Penalty,
    Sampling,
    StopText,
    TokenLogprob,
    ToolCall,
    TopLogprob,
    cap_tokens,
    check_json_size,
)
from wherry.models.tasks.task import TaskConfig, Usage

LEAST_LOGPROB = -9999.0
"""JSON has no infinity."""

KeepAlive: TypeAlias = float | int | str | None


class Options(msgspec.Struct):
    """`options`: those that are honoured."""

    num_predict: int | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=MAX_STOPS)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None


class GenerationFields(msgspec.Struct, kw_only=True):
    """Fields with one meaning in both requests for text."""

    model: str
    stream: bool | None = None
    options: Options | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    keep_alive: KeepAlive = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


def sampling_of(request: GenerationFields, call: Call, config: TaskConfig) -> Sampling:
    """The task's sampling of a request's options, tokens capped by bundle and deployment."""
    options = request.options or Options()
    wanted = options.num_predict
    is_bounded = wanted is not None and wanted > 0  # -1: without end, -2: until the context is full
    stop = [options.stop] if isinstance(options.stop, str) else options.stop or []
    return Sampling(
        max_tokens=cap_tokens(wanted if is_bounded else None, config, call.max_tokens),
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=None if options.seed == -1 else options.seed,
        stop=stop,
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def json_format_of(wanted: str | dict[str, Any] | None) -> JsonFormat | None:
    """What the answer must be: any object for "json", else what fits the schema."""
    if not wanted:
        return None
    if isinstance(wanted, dict):
        check_json_size(wanted, "format")
        return JsonFormat(wanted)
    if wanted != "json":
        raise InvalidInput(
            f"the format {wanted[:80]!r} is not known",
            hint='send "json" or a JSON schema',
            param="format",
        )
    return JsonFormat({"type": "object"})


# ------------------------------------------------------------------------------ answers


def head_of(model: str, call: Call) -> dict[str, Any]:
    """How every answer and every line begins; the model is named as the request names it."""
    moment = datetime.fromtimestamp(call.created, UTC).isoformat(timespec="milliseconds")
    return {"model": model, "created_at": moment.replace("+00:00", "Z")}


def end_of(reason: FinishReason | None, usage: Usage) -> dict[str, Any]:
    """How a finished answer ends; the door puts durations behind."""
    return {
        "done_reason": "stop" if reason in ("stop", "tool_calls", "content_filter") else "length",
        "prompt_eval_count": usage.input_tokens,
        "eval_count": usage.output_tokens,
        "done": True,
    }


LOADED = {"done_reason": "load", "done": True}
"""The end of an answer to a request without a prompt, by which clients load a model."""


def calls_json(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Tool calls, their arguments as objects."""
    return [
        {
            "id": call.id,
            "function": {
                "index": index,
                "name": call.name,
                "arguments": _read_arguments(call),
            },
        }
        for index, call in enumerate(calls)
    ]


def _read_arguments(call: ToolCall) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ModelFailed(
            f"the model called {call.name!r} with arguments that are no JSON object"
        ) from error
    return found


def logprobs_json(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Chosen tokens with their rivals."""
    return [
        _logprob_json(each) | {"top_logprobs": [_logprob_json(rival) for rival in each.top]}
        for each in logprobs
    ]


def _logprob_json(each: TokenLogprob | TopLogprob) -> dict[str, Any]:
    logprob = max(each.logprob, LEAST_LOGPROB)
    return {"token": each.token, "logprob": logprob, "bytes": each.bytes}


def line(answer: dict[str, Any]) -> bytes:
    """One line of a stream."""
    return msgspec.json.encode(answer) + b"\n"
