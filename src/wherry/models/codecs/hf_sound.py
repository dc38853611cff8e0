"""Hugging Face's shapes of tasks that listen or speak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Reply
from wherry.models.codecs.hf_request import HfRequest, reply_json
from wherry.models.tasks.audio import DEFAULT_RATE, read_audio
from wherry.models.tasks.sound import find_demuxer
from wherry.models.tasks.sound_file import FORMATS, SoundFile
from wherry.models.tasks.speech_recognition import (
    Language,
    RecognitionInput,
    RecognitionOptions,
    Temperature,
    Transcription,
)
from wherry.models.tasks.speech_synthesis import (
    Seed,
    Speech,
    SpeechInput,
    Speed,
    VoiceName,
    checked,
)
from wherry.models.tasks.wav import write_wav

DEFAULT_FORMAT = "wav"


# ------------------------------------------------------------------------------ listening


class ListeningParameters(msgspec.Struct):
    """Of `generate_kwargs` or `generation_parameters`: how a model of Whisper's kind listens."""

    language: Language | None = None
    task: Literal["transcribe", "translate"] | None = None
    temperature: Temperature | None = None


class RecognitionParameters(msgspec.Struct):
    """Of `automatic-speech-recognition`."""

    return_timestamps: bool | Literal["word"] = False
    generate_kwargs: ListeningParameters | None = None
    generation_parameters: ListeningParameters | None = None


class Chunk(msgspec.Struct):
    """A part of what was said, and when: seconds."""

    text: str
    timestamp: tuple[float, float]


class Heard(msgspec.Struct, omit_defaults=True):
    """The answer; `chunks` only if their times were asked for."""

    text: str
    chunks: list[Chunk] | msgspec.UnsetType = msgspec.UNSET


class SpokenWords:
    """`automatic-speech-recognition`."""

    def __init__(self, request: HfRequest) -> None:
        parameters = request.read_parameters(RecognitionParameters)
        self._timestamps = parameters.return_timestamps
        wish = (
            parameters.generation_parameters or parameters.generate_kwargs or ListeningParameters()
        )
        options = RecognitionOptions(
            language=wish.language,
            temperature=wish.temperature,
            translate=wish.task == "translate",
            word_timestamps=self._timestamps == "word",
        )
        audio = read_audio(request.inputs, DEFAULT_RATE, request.config)
        audio.param = "inputs"
        if audio.samples is None:
            find_demuxer(audio.file)  # any body may be a file: most that are none end here
        self.items = [RecognitionInput(audio, options)]

    def answer(self, outputs: Sequence[Transcription]) -> Reply:
        """`{"text", "chunks"?: [{"text", "timestamp": [start, end]}]}`."""
        (output,) = outputs
        if not self._timestamps:
            return reply_json(Heard(output.text))
        if self._timestamps == "word":
            chunks = [Chunk(each.word, (each.start, each.end)) for each in output.words]
        else:
            chunks = [Chunk(each.text, (each.start, each.end)) for each in output.segments]
        return reply_json(Heard(output.text, chunks))


# ------------------------------------------------------------------------------ speaking


class SpeechParameters(msgspec.Struct):
    """Of `text-to-speech`; none is Hugging Face's."""

    voice: VoiceName = ""
    speed: Speed = 1.0
    seed: Seed | None = None


class SpokenText:
    """`text-to-speech`: the answer is a file, of the first kind in `Accept` that can be made."""

    def __init__(self, request: HfRequest) -> None:
        given = request.read_parameters(SpeechParameters)
        self._format = format_of(request.call.headers.get("accept", ""))
        item = SpeechInput(request.text(), given.voice, given.speed, given.seed)
        self.items = [checked(item, request.config, param="inputs")]

    def answer(self, outputs: Sequence[Speech]) -> Reply:
        """The whole file."""
        (output,) = outputs
        kind = FORMATS[self._format].content_type
        if self._format == "wav":
            return Reply(write_wav(output.samples, output.rate), kind)
        file = SoundFile(self._format, output.rate)
        return Reply(file.write(output.samples) + file.end(), kind)


_FORMAT_OF_TYPE = {sound.content_type: name for name, sound in FORMATS.items()} | {
    "audio/*": DEFAULT_FORMAT,
    "audio/mp3": "mp3",
    "audio/opus": "opus",
    "audio/x-flac": "flac",
    "audio/x-wav": "wav",
}


def format_of(accept: str) -> str:
    """A key of `FORMATS`; WAV where the client does not care."""
    for part in accept.split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in _FORMAT_OF_TYPE:
            return _FORMAT_OF_TYPE[kind]
        if kind.startswith("audio/"):
            raise InvalidInput(
                f"no sound of type {kind[:40]!r} can be made",
                hint="accept "
                + ", ".join(sorted({each.content_type for each in FORMATS.values()})),
                param="accept",
            )
    return DEFAULT_FORMAT
