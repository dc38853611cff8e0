"""Tasks whose input and output are a text: to say it in another language, or in fewer words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.frames import Usage
from wherry.models.tasks.languages import check_tag
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, Tensors, TensorSpec
from wherry.models.tasks.text import text_from_plain, texts_from_tensors

MAX_BEAMS = 16
MAX_ANSWER_TOKENS = 1 << 16
SETTINGS = ("max_tokens", "min_tokens", "num_beams", "length_penalty", "no_repeat_ngram_size")
LANGUAGES = ("source_language", "target_language")

TokenCount = Annotated[int, Meta(ge=1, le=MAX_ANSWER_TOKENS)]


class Decoding(msgspec.Struct, frozen=True):
    """How an answer is searched for; None leaves it to the model."""

    max_tokens: TokenCount | None = None
    """Most tokens of the answer."""
    min_tokens: TokenCount | None = None
    num_beams: Annotated[int, Meta(ge=1, le=MAX_BEAMS)] | None = None
    """Candidates that are followed at once; 1 takes the likeliest token each time."""
    length_penalty: Annotated[float, Meta(ge=-10, le=10)] | None = None
    """Of beams: above 0 prefers long answers, below 0 short ones."""
    no_repeat_ngram_size: Annotated[int, Meta(ge=0, le=64)] | None = None
    """No so many tokens in a row occur twice; 0 = they may."""


class TextToTextInput(msgspec.Struct):
    """One text and what shall become of it."""

    text: str
    source_language: str = ""
    """BCP-47 tag; "" leaves it to the bundle. Only translations have languages."""
    target_language: str = ""
    decoding: Decoding = Decoding()


class TextToTextOutput(TaskOutput, kw_only=True):
    """The new text; `usage` counts the characters of the old one."""

    text: str
    source_language: str = ""
    target_language: str = ""
    is_cut: bool = False
    """The answer ended because it had as many tokens as it may have."""


class TextToText:
    """What both tasks share.

    Args:
        name: Hugging Face's name.
        keys: What the plain form may hold beside the text and the settings of `Decoding`.
        output_key: What Hugging Face calls the new text.
    """

    input_type = TextToTextInput
    output_type = TextToTextOutput
    delta_type = TextToTextOutput
    """Of models whose answers come in pieces; `join` puts them together."""

    def __init__(self, name: str, keys: Sequence[str], output_key: str) -> None:
        self.name = name
        self.output_key = output_key
        self._keys = tuple(keys)

    def signature(self, config: TaskConfig) -> Signature:
        """Texts in, texts out."""
        text = TensorSpec("text", "BYTES", (-1,))
        return Signature((text,), (text,))

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[TextToTextInput]:
        """One item for each element of `text`; settings may come as tensors of one element."""
        settings = {
            name: _only_element(tensors[name], name)
            for name in (*self._keys, *SETTINGS)
            if name in tensors
        }
        rest = {name: tensor for name, tensor in tensors.items() if name not in settings}
        return [
            self._make_item(each.text or "", settings) for each in texts_from_tensors(rest, config)
        ]

    def to_tensors(
        self, outputs: Sequence[TextToTextOutput], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """The new texts."""
        found = np.empty(len(outputs), dtype=object)
        found[:] = [output.text.encode() for output in outputs]
        return {"text": found}

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> TextToTextInput:
        """`{"text": "…"}` and settings."""
        return self._make_item(text_from_plain(body, config).text or "", body)

    def to_plain(self, output: TextToTextOutput, config: TaskConfig) -> dict[str, Any]:
        """`{"prediction": …, "text": …}`, the languages that are known, and what it cost."""
        plain: dict[str, Any] = {"prediction": output.text, "text": output.text}
        for name in self._keys:
            if language := getattr(output, name):
                plain[name] = language
        if output.is_cut:
            plain["is_cut"] = True
        plain["usage"] = {"characters": output.usage.characters}
        return plain

    def join(self, outputs: Sequence[TextToTextOutput]) -> TextToTextOutput:
        """One answer of its pieces, in order."""
        usage = Usage()
        for output in outputs:
            usage += output.usage
        last = outputs[-1] if outputs else TextToTextOutput(text="")
        return TextToTextOutput(
            text="".join(output.text for output in outputs),
            source_language=last.source_language,
            target_language=last.target_language,
            is_cut=last.is_cut,
            usage=usage,
        )

    def _make_item(self, text: str, settings: Mapping[str, Any]) -> TextToTextInput:
        if not text.strip():
            raise InvalidInput("'text' holds nothing but blanks", param="text")
        languages = {name: check_tag(settings.get(name), name) for name in self._keys}
        decoding = read_decoding({name: settings[name] for name in SETTINGS if name in settings})
        return TextToTextInput(text, **languages, decoding=decoding)


TRANSLATION = TextToText("translation", LANGUAGES, "translation_text")
SUMMARIZATION = TextToText("summarization", (), "summary_text")


def read_decoding(settings: Mapping[str, Any]) -> Decoding:
    """Settings of a request, checked; `InvalidInput` names the wrong one."""
    for name, value in settings.items():
        try:
            msgspec.convert({name: value}, Decoding)
        except msgspec.ValidationError as error:
            reason = str(error).partition(" - at")[0]
            raise InvalidInput(f"{name!r} is wrong: {reason}", param=name) from error
    decoding = msgspec.convert(dict(settings), Decoding)
    if (decoding.min_tokens or 0) > (decoding.max_tokens or MAX_ANSWER_TOKENS):
        raise InvalidInput("'min_tokens' is more than 'max_tokens'", param="min_tokens")
    return decoding


def with_defaults(wanted: Decoding, defaults: Decoding) -> Decoding:
    """A request's settings, and the bundle's where it has none; never more tokens than those."""
    chosen = {
        name: getattr(defaults, name) if getattr(wanted, name) is None else getattr(wanted, name)
        for name in SETTINGS
    }
    if wanted.max_tokens and defaults.max_tokens:
        chosen["max_tokens"] = min(wanted.max_tokens, defaults.max_tokens)
    return Decoding(**chosen)


def refuse_settings(decoding: Decoding, taken: Sequence[str] = ()) -> None:
    """`InvalidInput` if a request sets what a model has no use for."""
    for name in SETTINGS:
        if name not in taken and getattr(decoding, name) is not None:
            raise InvalidInput(f"this model has no setting {name!r}", param=name)


def text_usage(text: str, *, input_tokens: int = 0, output_tokens: int = 0) -> Usage:
    """What one text cost."""
    return Usage(
        input_tokens=input_tokens, output_tokens=output_tokens, rows=1, characters=len(text)
    )


def _only_element(tensor: np.ndarray, name: str) -> Any:
    if tensor.size != 1:
        raise InvalidInput(f"the tensor {name!r} must have one element", param=name)
    value = tensor.reshape(-1)[0]
    if not isinstance(value, bytes):
        return value.item() if isinstance(value, np.generic) else value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the tensor {name!r} is not UTF-8", param=name) from error
