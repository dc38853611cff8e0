"""Task `automatic-speech-recognition`: speech in, its words out, with their times.

Runtimes answer with a stream of `Transcription`, a few segments each, the last with language,
duration and usage; `SPEECH_RECOGNITION.join` makes one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.tasks.audio import (
    AUDIO_KEYS,
    AudioInput,
    audio_from_plain,
    audio_from_tensors,
)
from wherry.models.tasks.task import (
    Signature,
    TaskConfig,
    TaskOutput,
    Tensors,
    TensorSpec,
    Usage,
)
from wherry.models.tasks.text import texts_to_tensor

MAX_PROMPT_CHARACTERS = 8192

Language = Annotated[str, Meta(pattern=r"^[a-z]{2,3}$")]
Prompt = Annotated[str, Meta(max_length=MAX_PROMPT_CHARACTERS)]
Temperature = Annotated[float, Meta(ge=0, le=1)]


class RecognitionOptions(msgspec.Struct, kw_only=True):
    """How to listen; None leaves it to the model."""

    language: Language | None = None
    """Code of ISO 639, such as `en`; None finds it out."""
    prompt: Prompt | None = None
    """Text that came before: spelling and style follow it."""
    temperature: Temperature | None = None
    """None or 0 takes the likeliest words, and dares more only where these are bad."""
    translate: bool = False
    """Write English, whatever is spoken."""
    word_timestamps: bool = False


class RecognitionInput(msgspec.Struct):
    """One sound whose words are wanted."""

    audio: AudioInput
    options: RecognitionOptions = msgspec.field(default_factory=RecognitionOptions)


class Word(msgspec.Struct):
    """A word and when it was said, seconds."""

    word: str
    start: float
    end: float
    probability: float


class Segment(msgspec.Struct):
    """Some words that were said together, and how sure the model is of them."""

    id: int
    start: float
    """Seconds."""
    end: float
    text: str
    """As it joins with its neighbours: mostly with a space before it."""
    tokens: list[int] = []
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0
    seek: int = 0
    """Where the model's window began, in frames of a hundredth second."""
    words: list[Word] = []


class Transcription(TaskOutput):
    """What was said, or, in a stream, the next part of it."""

    segments: list[Segment] = msgspec.field(default_factory=list[Segment])
    language: str = ""
    """Code of ISO 639."""
    duration: float = 0.0
    """Seconds of sound."""
    has_words: bool = False
    """Whether the times of words were asked for."""

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(segment.text for segment in self.segments).strip()

    @property
    def words(self) -> list[Word]:
        """Every word, in order."""
        return [word for segment in self.segments for word in segment.words]


class PlainOptions(msgspec.Struct, forbid_unknown_fields=True):
    """The simplest body, beside its sound."""

    sample_rate: Any = None
    language: Language | None = None
    prompt: Prompt | None = None
    temperature: Temperature | None = None
    translate: bool = False
    timestamps: Literal["segment", "word"] = "segment"


class SpeechRecognition:
    """The task; its one instance is `SPEECH_RECOGNITION`."""

    name = "automatic-speech-recognition"
    media = "audio"
    input_type = RecognitionInput
    output_type = Transcription
    delta_type = Transcription

    def signature(self, config: TaskConfig) -> Signature:
        """Samples in (or BYTES: files); text, language and seconds out."""
        if config.signature.inputs:
            return config.signature
        return Signature(
            inputs=(TensorSpec("audio", "FP32", (-1, -1)),),
            outputs=(
                TensorSpec("text", "BYTES", (-1,)),
                TensorSpec("language", "BYTES", (-1,)),
                TensorSpec("duration", "FP32", (-1,)),
            ),
        )

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[RecognitionInput]:
        """One item for each file or row of `audio`; `sample_rate` may be beside it."""
        return [RecognitionInput(each) for each in audio_from_tensors(tensors, config)]

    def to_tensors(
        self, outputs: Sequence[Transcription], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """Tensors `text`, `language` and `duration`, a row a sound."""
        return {
            "text": texts_to_tensor([output.text for output in outputs]),
            "language": texts_to_tensor([output.language for output in outputs]),
            "duration": np.array([output.duration for output in outputs], np.float32),
        }

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> RecognitionInput:
        """`{"audio": …, "language": "en", "timestamps": "word"}`; all but the sound may be left out."""
        audio = audio_from_plain(body, config)
        others = {name: value for name, value in body.items() if name not in AUDIO_KEYS}
        try:
            plain = msgspec.convert(others, PlainOptions)
        except msgspec.ValidationError as error:
            raise InvalidInput(str(error)) from error
        return RecognitionInput(
            audio,
            RecognitionOptions(
                language=plain.language,
                prompt=plain.prompt,
                temperature=plain.temperature,
                translate=plain.translate,
                word_timestamps=plain.timestamps == "word",
            ),
        )

    def to_plain(self, output: Transcription, config: TaskConfig) -> dict[str, Any]:
        """The text, its language and length, and its segments with their times."""
        plain: dict[str, Any] = {
            "prediction": output.text,
            "text": output.text,
            "language": output.language,
            "duration": round(output.duration, 3),
            "segments": [
                {"start": each.start, "end": each.end, "text": each.text.strip()}
                for each in output.segments
            ],
        }
        if output.has_words:
            plain["words"] = [msgspec.structs.asdict(word) for word in output.words]
        return plain

    def join(self, deltas: Sequence[Transcription]) -> Transcription:
        """One transcription of all its parts, in order."""
        return Transcription(
            segments=[segment for delta in deltas for segment in delta.segments],
            language=next((delta.language for delta in deltas if delta.language), ""),
            duration=max((delta.duration for delta in deltas), default=0.0),
            has_words=any(delta.has_words for delta in deltas),
            usage=sum((delta.usage for delta in deltas), Usage()),
        )


SPEECH_RECOGNITION = SpeechRecognition()
