"""Hugging Face's shape of text generation, as its Text Generation Inference has it (TGI).

A prompt is continued as it stands; conversations go to `/v1/chat/completions` below the same URL.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Reply
from wherry.models.codecs.hf_request import HfRequest, reply_json
from wherry.models.tasks.generation import (
    MAX_STOPS,
    MAX_TOKEN_ID,
    MAX_TOP_LOGPROBS,
    CompletionInput,
    FinishReason,
    Generation,
    Penalty,
    Sampling,
    StopText,
    TextDelta,
    TokenLogprob,
    TopLogprob,
    cap_tokens,
)
from wherry.models.tasks.task import Usage

DEFAULT_NEW_TOKENS = 100
"""TGI's own."""
UNSUPPORTED = {
    "adapter_id": "call the deployment of the adapter",
    "decoder_input_details": "log-probabilities are known for generated tokens only",
    "grammar": "ask /v1/chat/completions with a response_format",
    "typical_p": "use top_p",
    "watermark": "the model puts no watermark into texts",
}
"""Parameters whose silent loss would change the answer → what to do instead."""

TgiFinish: TypeAlias = Literal["length", "eos_token", "stop_sequence"]


class GenerationParameters(msgspec.Struct):
    """What is read of `parameters`; None is the same as leaving out."""

    max_new_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKEN_ID)] = DEFAULT_NEW_TOKENS
    best_of: Annotated[int, Meta(ge=1, le=1)] = 1
    details: bool = False
    do_sample: bool = False
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    return_full_text: bool = False
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: Annotated[list[StopText], Meta(max_length=MAX_STOPS)] = []
    stop_sequences: Annotated[list[StopText], Meta(max_length=MAX_STOPS)] = []
    """How clients before 0.26 call `stop`."""
    temperature: Annotated[float, Meta(gt=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=1, le=MAX_TOKEN_ID)] | None = None
    top_n_tokens: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    truncate: Annotated[int, Meta(ge=1, le=MAX_TOKEN_ID)] | None = None

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn: else the likeliest is taken each time."""
        given = (self.temperature, self.top_k, self.top_p)
        return self.do_sample or any(each is not None for each in given)


class Token(msgspec.Struct):
    """A token of an answer."""

    id: int | None
    """In the model's vocabulary; None where the runtime does not tell it."""
    text: str
    logprob: float | None
    special: bool = False


class Details(msgspec.Struct, omit_defaults=True, kw_only=True):
    """How an answer came about."""

    finish_reason: TgiFinish
    generated_tokens: int
    seed: int | None
    prefill: list[Token] | msgspec.UnsetType = UNSET
    tokens: list[Token] | msgspec.UnsetType = UNSET
    top_tokens: list[list[Token]] | msgspec.UnsetType = UNSET
    input_length: int | msgspec.UnsetType = UNSET


class GeneratedText(msgspec.Struct, omit_defaults=True):
    """The whole answer."""

    generated_text: str
    details: Details | msgspec.UnsetType = UNSET


class TokenEvent(msgspec.Struct):
    """One line of a stream; the last one has the whole text."""

    index: int
    token: Token
    generated_text: str | None = None
    details: Details | None = None


class Continuation:
    """`text-generation`: how a text goes on. Pictures go into conversations."""

    def __init__(self, request: HfRequest) -> None:
        self.prompt = request.text()
        self.parameters = read_generation_parameters(request)
        sampling = sampling_of(self.parameters)
        sampling.max_tokens = cap_tokens(
            sampling.max_tokens, request.config, request.call.max_tokens
        )
        if self.parameters.details or request.call.stream:
            sampling.top_logprobs = self.parameters.top_n_tokens
        self.items = [CompletionInput(self.prompt, sampling)]

    def answer(self, outputs: Sequence[Generation]) -> Reply:
        """`[{"generated_text", "details"?}]`."""
        (output,) = outputs
        text = self.full_text(output.text)
        details = self._details(output) if self.parameters.details else UNSET
        return reply_json([GeneratedText(text, details)])

    def stream(self) -> ContinuationStream:
        """A line a token."""
        return ContinuationStream(self)

    def full_text(self, text: str) -> str:
        """With the prompt in front of it, if the client wants that."""
        return self.prompt + text if self.parameters.return_full_text else text

    def _details(self, output: Generation) -> Details:
        logprobs = output.logprobs or []
        reader = TokenTexts()
        tokens = [token_of(each, reader.take(each)) for each in logprobs]
        top = [[token_of(rival, rival.token) for rival in each.top] for each in logprobs]
        return Details(
            finish_reason=finish_of(output.finish_reason, output.stop_text),
            generated_tokens=output.usage.output_tokens or len(tokens),
            seed=self.parameters.seed,
            prefill=[],
            tokens=tokens,
            top_tokens=top if self.parameters.top_n_tokens else UNSET,
        )


class ContinuationStream:
    """Lines of one answer. What their tokens' texts make together is the text of the last."""

    def __init__(self, asked: Continuation) -> None:
        self._asked = asked
        self._texts: list[str] = []
        self._reader = TokenTexts()
        self._lines = 0
        self._waiting: Token | None = None
        """The last token so far: only the end tells that it is the last of all."""
        self._finish: TgiFinish = "eos_token"

    def event(self, index: int, output: TextDelta) -> bytes:
        """Lines of all tokens but the last, which waits for what comes after it."""
        if output.finish_reason is not None:
            self._finish = finish_of(output.finish_reason, output.stop_text)
        lines: list[bytes] = []
        for token in self._tokens_of(output):
            if self._waiting is not None:
                lines.append(self._line(self._waiting))
            self._waiting = token
        return b"".join(lines)

    def end(self, usage: Usage) -> bytes:
        """The last line."""
        text = "".join(self._texts)
        details = Details(
            finish_reason=self._finish,
            generated_tokens=usage.output_tokens or self._lines + 1,
            seed=self._asked.parameters.seed,
            input_length=usage.input_tokens,
        )
        last = self._waiting or Token(None, "", None, special=True)
        return self._line(last, self._asked.full_text(text), details)

    def _tokens_of(self, output: TextDelta) -> Iterator[Token]:
        """A piece's text spread over its tokens; a text that was held back goes to the last."""
        self._texts.append(output.text)
        texts = [self._reader.take(each) for each in output.logprobs]
        if not texts:
            if output.text:
                yield Token(None, output.text, None)
            return
        if "".join(texts) != output.text:
            texts = [""] * (len(texts) - 1) + [output.text]
        for each, text in zip(output.logprobs, texts, strict=True):
            yield token_of(each, text)

    def _line(self, token: Token, text: str | None = None, details: Details | None = None) -> bytes:
        self._lines += 1
        event = TokenEvent(self._lines, token, text, details)
        return b"data:" + msgspec.json.encode(event) + b"\n\n"


class TokenTexts:
    """Texts of tokens one after another: a character that two share belongs to the second."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, token: TokenLogprob) -> str:
        """What the next token adds."""
        return token.token if token.bytes is None else self._decoder.decode(bytes(token.bytes))


def read_generation_parameters(request: HfRequest) -> GenerationParameters:
    """Checked; `InvalidInput` for one that cannot be honoured."""
    for name, hint in UNSUPPORTED.items():
        if request.parameters.get(name):
            raise InvalidInput(f"{name!r} is not supported", hint=hint, param=f"parameters.{name}")
    parameters = request.read_parameters(GenerationParameters)
    size = len(request.text().encode())
    # no token is shorter than a byte: a shorter prompt loses nothing, and no other is cut here
    if parameters.truncate is not None and size > parameters.truncate:
        raise InvalidInput(
            f"the prompt has {size} bytes, which may be more than {parameters.truncate} tokens, and "
            "is not cut",
            hint="cut it yourself, or leave 'truncate' out",
            param="parameters.truncate",
        )
    return parameters


def sampling_of(parameters: GenerationParameters) -> Sampling:
    """As TGI chooses tokens: the likeliest, unless something asks for chance."""
    temperature = parameters.temperature or 1.0
    return Sampling(
        max_tokens=parameters.max_new_tokens,
        temperature=temperature if parameters.samples else 0.0,
        top_p=parameters.top_p,
        top_k=parameters.top_k,
        seed=parameters.seed,
        stop=[*parameters.stop, *parameters.stop_sequences],
        frequency_penalty=parameters.frequency_penalty,
        repetition_penalty=parameters.repetition_penalty,
    )


def token_of(found: TokenLogprob | TopLogprob, text: str) -> Token:
    """A token as TGI tells it; one that ends an answer has no text at all."""
    return Token(found.id, text, found.logprob, special=not (found.token or found.bytes))


def finish_of(reason: FinishReason | None, stop_text: str) -> TgiFinish:
    """Why an answer ended, in TGI's words; one that was cut off ended by its length."""
    if reason not in ("stop", "tool_calls"):
        return "length"
    return "stop_sequence" if stop_text else "eos_token"
