"""Task `text-generation`: a conversation or a prompt goes in, text or tool calls come out.

Runtimes answer with a stream of `TextDelta`; `TEXT_GENERATION.join` makes one `Generation` of
them for protocols that answer in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.tasks.task import (
    Signature,
    TaskConfig,
    TaskOutput,
    Tensors,
    TensorSpec,
    Usage,
)
from wherry.models.tasks.text import texts_to_tensor

GENERATION_TASKS = frozenset({"text-generation", "image-text-to-text"})
"""Tasks of these types; the second's models also see."""
MAX_MESSAGES = 2048
MAX_TEXTS = 128
"""Most texts of one tensor: each is a generation of its own."""
MAX_PARTS = 256
MAX_TOOLS = 128
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024
MAX_TOKEN_ID = 2**31 - 1
MAX_PROMPT_TOKENS = 1 << 20
MAX_JSON_DEPTH = 64
MAX_JSON_NODES = 20_000
PLAIN_MAX_TOKENS = 256
"""Tokens for an answer through `/predict` or tensors when the request names no number."""

FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]
ShortText = Annotated[str, Meta(max_length=256)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]

# ------------------------------------------------------------------------------ what goes in


class TextPart(msgspec.Struct, tag="text"):
    """A piece of text in a message."""

    text: str


class ImagePart(msgspec.Struct, tag="image_url"):
    """A picture in a message; only models that see can use it."""

    url: str
    detail: str | None = None


Part: TypeAlias = TextPart | ImagePart


class ToolCall(msgspec.Struct):
    """A call the model made."""

    id: ShortText
    name: FunctionName
    arguments: str
    """JSON text, as the model wrote it."""


class Message(msgspec.Struct):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Meta(max_length=MAX_PARTS)] = ""
    name: ShortText | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] = []
    tool_call_id: ShortText | None = None
    """For role `tool`: the call it answers."""


class Tool(msgspec.Struct):
    """A function the model may call."""

    name: FunctionName
    description: str = ""
    parameters: dict[str, Any] = {}
    """JSON schema of an object."""
    strict: bool = False


class ToolChoice(msgspec.Struct):
    """Whether a tool is called; `named` forces the tool in `name`."""

    mode: Literal["none", "auto", "required", "named"] = "auto"
    name: str = ""


class JsonFormat(msgspec.Struct):
    """The answer must be JSON that fits `schema`."""

    schema: dict[str, Any]
    strict: bool = False
    """A schema that cannot be held in every detail is refused, not approximated."""
    name: str = "answer"


class Sampling(msgspec.Struct):
    """How tokens are chosen and when to stop; None leaves it to the model."""

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKEN_ID)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)] | None = None
    """Only so many of the likeliest tokens may be chosen; 0 = all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Tokens less likely than this share of the likeliest are not chosen."""
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    """Divides the logit of every token that has been there; 1 = none. Not for every runtime."""
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Annotated[list[StopText], Meta(max_length=MAX_STOPS)] = []
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[
        dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_LOGIT_BIASES)
    ] = {}
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Alternatives told for each token; 0 tells only the chosen one, None nothing."""


class ChatInput(msgspec.Struct, tag="chat"):
    """A conversation whose next turn is wanted."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] = []
    tool_choice: ToolChoice = msgspec.field(default_factory=ToolChoice)
    parallel_tool_calls: bool = True
    json_format: JsonFormat | None = None
    charge_prompt: bool = True
    """False for the second and later answers to one prompt: the prompt is charged once."""
    continue_last: bool = False
    """The last message is the assistant's and unfinished: the answer is what follows it. Like
    `count_only` not for every runtime: see `expect_whole_answer`."""
    count_only: bool = False
    """No answer is wanted, only the prompt's length: one delta that has `input_tokens`, and no
    usage."""


class CompletionInput(msgspec.Struct, tag="completion"):
    """Text that is to be continued as it stands, without a chat template."""

    prompt: str | Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_PROMPT_TOKENS)]
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    echo: bool = False
    """The prompt's text is the first delta."""
    charge_prompt: bool = True


GenerationInput: TypeAlias = ChatInput | CompletionInput

# ------------------------------------------------------------------------------ what comes out

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter", "cancelled"]


class TopLogprob(msgspec.Struct):
    """A token that could have been chosen."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    id: int | None = None
    """In the model's vocabulary, where the runtime knows it."""


class TokenLogprob(msgspec.Struct):
    """A chosen token, how likely it was, and its rivals."""

    token: str
    logprob: float
    """Natural logarithm, finite, at most 0."""
    bytes: list[int] | None = None
    top: list[TopLogprob] = []
    id: int | None = None


class ToolCallDelta(msgspec.Struct):
    """A piece of a tool call: first one with id and name, then pieces of `arguments`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class TextDelta(TaskOutput):
    """What came since the delta before; the last one has a finish reason and the usage."""

    text: str = ""
    logprobs: list[TokenLogprob] = msgspec.field(default_factory=list[TokenLogprob])
    tool_calls: list[ToolCallDelta] = msgspec.field(default_factory=list[ToolCallDelta])
    finish_reason: FinishReason | None = None
    stop_text: str = ""
    """Which of `Sampling.stop` ended the answer, where the runtime knows; it is not in `text`."""
    input_tokens: int = 0
    """In the first delta: tokens of the prompt, where they are known before the answer. Nothing is
    charged by this, `usage` says what is."""


class Generation(TaskOutput):
    """A whole answer."""

    text: str = ""
    tool_calls: list[ToolCall] = msgspec.field(default_factory=list[ToolCall])
    finish_reason: FinishReason = "stop"
    logprobs: list[TokenLogprob] | None = None
    stop_text: str = ""
    input_tokens: int = 0
    """As the deltas said it; 0 if they did not."""


# ------------------------------------------------------------------------------ the task


class PlainInput(msgspec.Struct, forbid_unknown_fields=True):
    """The simplest body: exactly one of `text`, `prompt` and `messages`."""

    text: str | None = None
    """What a user says to the model."""
    prompt: str | None = None
    """Text to continue as it stands."""
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKEN_ID)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Annotated[list[StopText], Meta(max_length=MAX_STOPS)] = []


class TextGeneration:
    """The task; its one instance is `TEXT_GENERATION`."""

    name = "text-generation"
    input_type: Any = GenerationInput
    output_type = Generation
    delta_type = TextDelta

    def signature(self, config: TaskConfig) -> Signature:
        """Texts in; texts and finish reasons out."""
        if config.signature.inputs:
            return config.signature
        return Signature(
            inputs=(TensorSpec("text", "BYTES", (-1,)),),
            outputs=(
                TensorSpec("text", "BYTES", (-1,)),
                TensorSpec("finish_reason", "BYTES", (-1,)),
            ),
        )

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> Sequence[ChatInput]:
        """One conversation a text; `max_tokens`, `temperature` and `seed` may come as scalars."""
        unknown = sorted(set(tensors) - {"text", "max_tokens", "temperature", "seed"})
        if "text" not in tensors or unknown:
            raise InvalidInput(
                f"unexpected input {unknown[0]!r}" if unknown else "input 'text' is missing",
                hint="send a BYTES tensor 'text', optionally 'max_tokens', 'temperature', 'seed'",
            )
        texts = _texts_of(tensors["text"])
        max_tokens = _scalar_of(tensors, "max_tokens", int)
        sampling = _checked(
            {
                "max_tokens": _plain_cap(config) if max_tokens is None else max_tokens,
                "temperature": _scalar_of(tensors, "temperature", float),
                "seed": _scalar_of(tensors, "seed", int),
            },
            Sampling,
        )
        sampling.max_tokens = cap_tokens(sampling.max_tokens, config)
        return [ChatInput([Message("user", text)], sampling) for text in texts]

    def to_tensors(
        self, outputs: Sequence[Generation], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """Texts and finish reasons, a row an answer."""
        return {
            "text": texts_to_tensor([output.text for output in outputs]),
            "finish_reason": texts_to_tensor([output.finish_reason for output in outputs]),
        }

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> GenerationInput:
        """`{"text": …}` or `{"messages": …}` is a conversation, `{"prompt": …}` is continued."""
        plain = _checked(body, PlainInput)
        given = [
            name for name in ("text", "prompt", "messages") if getattr(plain, name) is not None
        ]
        if len(given) != 1:
            raise InvalidInput(
                "exactly one of 'text', 'prompt' and 'messages' is needed",
                hint='for example {"text": "Say hello"}',
                param=given[1] if given else "text",
            )
        sampling = Sampling(
            max_tokens=cap_tokens(plain.max_tokens or _plain_cap(config), config),
            temperature=plain.temperature,
            top_p=plain.top_p,
            seed=plain.seed,
            stop=plain.stop,
        )
        if plain.prompt is not None:
            return CompletionInput(plain.prompt, sampling)
        return ChatInput(plain.messages or [Message("user", plain.text or "")], sampling)

    def to_plain(self, output: Generation, config: TaskConfig) -> dict[str, Any]:
        """The text, why it ended, and tool calls if there are any."""
        plain: dict[str, Any] = {
            "prediction": output.text,
            "text": output.text,
            "finish_reason": output.finish_reason,
            "usage": {
                "input_tokens": output.usage.input_tokens,
                "output_tokens": output.usage.output_tokens,
            },
        }
        if output.tool_calls:
            plain["tool_calls"] = [msgspec.structs.asdict(call) for call in output.tool_calls]
        return plain

    def join(self, deltas: Sequence[TextDelta]) -> Generation:
        """One answer of all its deltas, in order."""
        calls: dict[int, ToolCall] = {}
        usage = Usage()
        logprobs: list[TokenLogprob] = []
        finish_reason: FinishReason = "cancelled"  # a stream that did not finish was cut
        stop_text, input_tokens = "", 0
        for delta in deltas:
            usage += delta.usage
            logprobs += delta.logprobs
            finish_reason = delta.finish_reason or finish_reason
            stop_text = delta.stop_text or stop_text
            input_tokens = delta.input_tokens or input_tokens
            for piece in delta.tool_calls:
                _extend_call(calls, piece)
        return Generation(
            text="".join(delta.text for delta in deltas),
            tool_calls=[calls[index] for index in sorted(calls)],
            finish_reason=finish_reason,
            logprobs=logprobs or None,
            stop_text=stop_text,
            input_tokens=input_tokens,
            usage=usage,
        )


TEXT_GENERATION = TextGeneration()


def cap_tokens(requested: int | None, config: TaskConfig, deployment_cap: int = 0) -> int | None:
    """The least of what the request, the bundle's `max_tokens` and the deployment allow."""
    bundle_cap = config.options.get("max_tokens")
    caps = [requested, bundle_cap if isinstance(bundle_cap, int) else None, deployment_cap]
    return min((cap for cap in caps if cap), default=None)


def expect_whole_answer(item: GenerationInput) -> None:
    """Refuse what a runtime cannot do that only answers conversations: count, or go on in one."""
    if not isinstance(item, ChatInput):
        return
    if item.count_only:
        raise InvalidInput(
            "this model cannot count the tokens of a prompt",
            hint="the usage of an answer tells them",
        )
    if item.continue_last:
        raise InvalidInput(
            "this model cannot go on in the middle of an answer",
            hint="end the conversation with a message of the user",
            param="messages",
        )


def check_json_size(value: Any, what: str) -> None:
    """Refuse free-form JSON (a schema, a tool's parameters) that is too deep or too large."""
    nodes = 0
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        nodes += len(level)
        if nodes > MAX_JSON_NODES:
            raise InvalidInput(f"{what} has more than {MAX_JSON_NODES} values", param=what)
        level = [child for each in level for child in _children_of(each)]
        if not level:
            return
    raise InvalidInput(f"{what} is nested more than {MAX_JSON_DEPTH} deep", param=what)


def _children_of(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _extend_call(calls: dict[int, ToolCall], piece: ToolCallDelta) -> None:
    call = calls.setdefault(piece.index, ToolCall("", "", ""))
    call.id = call.id or piece.id
    call.name = call.name or piece.name
    call.arguments += piece.arguments


def _plain_cap(config: TaskConfig) -> int:
    cap = config.options.get("max_tokens")
    return cap if isinstance(cap, int) and cap > 0 else PLAIN_MAX_TOKENS


Checked = TypeVar("Checked")


def _checked(value: Any, kind: type[Checked]) -> Checked:
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise InvalidInput(str(error)) from error


def _texts_of(tensor: np.ndarray) -> list[str]:
    if tensor.ndim > 2 or (tensor.ndim == 2 and tensor.shape[1] != 1) or tensor.size == 0:
        raise InvalidInput(f"input 'text' has shape {list(tensor.shape)}, not [rows] or [rows, 1]")
    if tensor.size > MAX_TEXTS:
        raise InvalidInput(
            f"input 'text' has {tensor.size} texts, the limit is {MAX_TEXTS}",
            hint="send several requests",
        )
    try:
        return [
            each.decode("utf-8") if isinstance(each, bytes) else str(each)
            for each in tensor.ravel().tolist()
        ]
    except UnicodeDecodeError as error:
        raise InvalidInput("input 'text' is not UTF-8") from error


Number = TypeVar("Number", int, float)


def _scalar_of(tensors: Tensors, name: str, kind: type[Number]) -> Number | None:
    if name not in tensors:
        return None
    tensor = tensors[name]
    if tensor.size != 1 or tensor.dtype.kind not in ("iu" if kind is int else "iuf"):
        raise InvalidInput(f"input {name!r} is not one {kind.__name__}")
    return kind(tensor.ravel()[0])
