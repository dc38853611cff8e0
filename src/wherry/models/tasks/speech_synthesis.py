"""Task `text-to-speech`: a text in, a voice that speaks it out.

Runtimes answer with a stream of `Speech`, a sentence each, the last with the usage;
`SPEECH_SYNTHESIS.join` makes one of them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import (
    Signature,
    TaskConfig,
    TaskOutput,
    Tensors,
    TensorSpec,
    Usage,
)
from wherry.models.tasks.text import texts_from_tensors
from wherry.models.tasks.wav import write_wav

MAX_CHARACTERS = 4096
"""Longest text, unless the bundle's option `max_characters` says otherwise."""
MOST_CHARACTERS = 1 << 16
MAX_TEXTS = 64
"""Most texts of one tensor: each is a speech of its own."""

Speed = Annotated[float, Meta(ge=0.25, le=4.0)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
VoiceName = Annotated[str, Meta(max_length=64)]


class SpeechInput(msgspec.Struct):
    """A text to speak."""

    text: str
    voice: VoiceName = ""
    """A voice of the model; empty = its first."""
    speed: Speed = 1.0
    seed: Seed | None = None
    """Equal seeds give equal samples."""


class Speech(TaskOutput):
    """Spoken text, or, in a stream, the next sentence of it."""

    samples: np.ndarray
    """float32 [n], one channel, full scale -1 to 1."""
    rate: int
    """Samples a second."""


class SpeechOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that callers feel."""

    voices: dict[str, str] = {}
    """Name of a voice → its file in the bundle; the first is the default."""
    max_characters: Annotated[int, Meta(ge=1, le=MOST_CHARACTERS)] = MAX_CHARACTERS


class PlainInput(msgspec.Struct, forbid_unknown_fields=True):
    """The simplest body."""

    text: str
    voice: VoiceName = ""
    speed: Speed = 1.0
    seed: Seed | None = None


class SpeechSynthesis:
    """The task; its one instance is `SPEECH_SYNTHESIS`."""

    name = "text-to-speech"
    input_type = SpeechInput
    output_type = Speech
    delta_type = Speech

    def signature(self, config: TaskConfig) -> Signature:
        """Texts in; samples, how many of a row are meant, and their rate out."""
        if config.signature.inputs:
            return config.signature
        return Signature(
            inputs=(TensorSpec("text", "BYTES", (-1,)),),
            outputs=(
                TensorSpec("audio", "FP32", (-1, -1)),
                TensorSpec("length", "INT64", (-1,)),
                TensorSpec("sample_rate", "INT32", (-1,)),
            ),
        )

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[SpeechInput]:
        """One item for each element of the tensor `text`."""
        found = texts_from_tensors(tensors, config)
        if len(found) > MAX_TEXTS:
            raise InvalidInput(
                f"the tensor 'text' has {len(found)} texts, the limit is {MAX_TEXTS}", param="text"
            )
        return [checked(SpeechInput(each.text or ""), config) for each in found]

    def to_tensors(self, outputs: Sequence[Speech], config: TaskConfig) -> dict[str, np.ndarray]:
        """Tensors `audio` (shorter rows end in silence), `length` and `sample_rate`."""
        longest = max((len(output.samples) for output in outputs), default=0)
        audio = np.zeros((len(outputs), longest), np.float32)
        for row, output in zip(audio, outputs, strict=True):
            row[: len(output.samples)] = output.samples
        return {
            "audio": audio,
            "length": np.array([len(output.samples) for output in outputs], np.int64),
            "sample_rate": np.array([output.rate for output in outputs], np.int32),
        }

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> SpeechInput:
        """`{"text": "…", "voice": "…", "speed": 1.0, "seed": 1}`; all but the text may be left out."""
        try:
            plain = msgspec.convert(dict(body), PlainInput)
        except msgspec.ValidationError as error:
            raise InvalidInput(str(error), hint='send {"text": "…"}', param="text") from error
        return checked(SpeechInput(plain.text, plain.voice, plain.speed, plain.seed), config)

    def to_plain(self, output: Speech, config: TaskConfig) -> dict[str, Any]:
        """A WAV file in base64, what it is, and its length."""
        return {
            "audio": base64.b64encode(write_wav(output.samples, output.rate)).decode("ascii"),
            "content_type": "audio/wav",
            "sample_rate": output.rate,
            "duration": round(len(output.samples) / output.rate, 3),
        }

    def join(self, deltas: Sequence[Speech]) -> Speech:
        """One speech of all its sentences, in order."""
        return Speech(
            samples=np.concatenate([delta.samples for delta in deltas]),
            rate=max(delta.rate for delta in deltas),
            usage=sum((delta.usage for delta in deltas), Usage()),
        )


SPEECH_SYNTHESIS = SpeechSynthesis()


def speech_options(options: Mapping[str, Any]) -> SpeechOptions:
    """What the bundle says about its voices; `InvalidInput` names a wrong option."""
    return read_options(options, SpeechOptions)


def checked(item: SpeechInput, config: TaskConfig, param: str = "text") -> SpeechInput:
    """The item, if its text is neither empty nor too long and the model has the voice.

    Args:
        item: what is to be spoken.
        config: of the model.
        param: what the protocol calls the text.
    """
    options = speech_options(config.options)
    if not item.text.strip():
        raise InvalidInput(f"{param!r} is empty", hint="send at least one word", param=param)
    if len(item.text) > options.max_characters:
        raise InvalidInput(
            f"{param!r} has {len(item.text)} characters, the limit is {options.max_characters}",
            hint="send it in parts",
            param=param,
        )
    if item.voice and item.voice not in options.voices:
        raise InvalidInput(
            f"the model has no voice {item.voice!r}",
            hint="it has " + (", ".join(options.voices) or "one voice only: leave 'voice' out"),
            param="voice",
        )
    return item
