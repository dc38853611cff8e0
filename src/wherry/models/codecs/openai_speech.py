"""OpenAI's `audio/speech` ↔ the task `text-to-speech`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.tasks.sound_file import FORMATS, SoundFile
from wherry.models.tasks.speech_synthesis import (
    Speech,
    SpeechInput,
    checked,
    speech_options,
)
from wherry.models.tasks.task import Task, TaskConfig, Usage
from wherry.models.tasks.wav import write_wav

OPENAI_VOICES = frozenset(
    {
        "alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer",
        "verse", "marin", "cedar",
    }
)  # fmt: skip
"""Clients send one of these because OpenAI asks for one: a model that has none of the name speaks
with its first voice."""
DEFAULT_FORMAT = "mp3"


class NamedVoice(msgspec.Struct):
    """A voice as an object."""

    id: str


class SpeechRequest(msgspec.Struct):
    """The body of `POST /v1/audio/speech`."""

    input: str
    model: str | None = None
    voice: str | NamedVoice | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4.0)] | None = None
    stream_format: Literal["audio", "sse"] | None = None
    instructions: str | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    """Not OpenAI's: equal seeds give equal samples."""

    @property
    def format(self) -> str:
        """A key of `FORMATS`."""
        return self.response_format or DEFAULT_FORMAT


_request_decoder = msgspec.json.Decoder(SpeechRequest)


class OpenAISpeech:
    """The codec; its one instance is `OPENAI_SPEECH`. Its context is the decoded request."""

    tasks = frozenset({"text-to-speech"})

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """The one text."""
        request: SpeechRequest = decode_json(body, _request_decoder)
        if request.instructions:
            raise InvalidInput(
                "'instructions' is not supported",
                hint="choose another voice or speed",
                param="instructions",
            )
        item = SpeechInput(
            request.input,
            _find_voice(request.voice, config),
            1.0 if request.speed is None else request.speed,
            request.seed,
        )
        return Decoded([checked(item, config, param="input")], request)

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Speech],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """The whole file; one whose header tells its length, where the format has such."""
        (output,) = outputs
        name = decoded.context.format
        if name == "wav":
            return Reply(write_wav(output.samples, output.rate), FORMATS[name].content_type)
        file = SoundFile(name, output.rate)
        return Reply(file.write(output.samples) + file.end(), FORMATS[name].content_type)

    def stream(self, decoded: Decoded, call: Call) -> SpeechStream:
        """An encoder of the file's bytes as they come, or of events that carry them."""
        request: SpeechRequest = decoded.context
        return SpeechStream(request.format, is_sse=request.stream_format == "sse")


OPENAI_SPEECH = OpenAISpeech()


class SpeechStream:
    """The bytes of one file, plain or in `speech.audio` events."""

    def __init__(self, name: str, *, is_sse: bool) -> None:
        self._name = name
        self._is_sse = is_sse
        self._file: SoundFile | None = None

    def event(self, index: int, output: Speech) -> bytes:
        """What a sentence adds to the file."""
        if self._file is None:
            self._file = SoundFile(self._name, output.rate)
        return self._carry(self._file.write(output.samples))

    def end(self, usage: Usage) -> bytes:
        """The rest of the file, and in events the usage."""
        rest = self._carry(self._file.end()) if self._file is not None else b""
        if not self._is_sse:
            return rest
        tokens = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        done = {"type": "speech.audio.done", "usage": tokens | {"characters": usage.characters}}
        return rest + _event(done)

    def _carry(self, data: bytes) -> bytes:
        if not self._is_sse or not data:
            return data
        return _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})


def _event(event: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _find_voice(asked: str | NamedVoice | None, config: TaskConfig) -> str:
    name = asked.id if isinstance(asked, NamedVoice) else asked or ""
    if name in OPENAI_VOICES and name not in speech_options(config.options).voices:
        return ""
    return name
