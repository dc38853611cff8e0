"""OpenAI's `audio/transcriptions` and `audio/translations` ↔ the task `automatic-speech-recognition`.

The body is a form with the file in it, as it came; the content type, with its boundary, comes as a
header of the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply
from wherry.models.codecs.languages import code_of, name_of
from wherry.models.codecs.multipart import Form, read_form
from wherry.models.codecs.subtitles import write_srt, write_vtt
from wherry.models.tasks.audio import AudioInput, check_file
from wherry.models.tasks.speech_recognition import (
    RecognitionInput,
    RecognitionOptions,
    Segment,
    Transcription,
)
from wherry.models.tasks.task import Task, TaskConfig, Usage

PLAIN_TEXT = "text/plain; charset=utf-8"

Format = Literal["json", "text", "srt", "vtt", "verbose_json"]
Granularity = Literal["segment", "word"]


class Wishes(msgspec.Struct):
    """The form's text fields, checked; empty ones count as left out."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    response_format: Format = "json"
    temperature: float = 0.0
    stream: bool = False
    granularities: tuple[Granularity, ...] = ()


class OpenAITranscription:
    """The codec; its context is the request's `Wishes`.

    Args:
        translates: whether English is wanted, whatever is spoken.
    """

    tasks = frozenset({"automatic-speech-recognition"})

    def __init__(self, *, translates: bool) -> None:
        self._translates = translates

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """The one sound of a form."""
        form = read_form(bytes(body), call.headers.get("content-type", ""))
        wishes = _read_wishes(form)
        _refuse_unsupported(wishes, form)
        options = {
            "language": code_of(wishes.language) if wishes.language else None,
            "prompt": wishes.prompt,
            "temperature": wishes.temperature,
            "translate": self._translates,
            "word_timestamps": "word" in wishes.granularities,
        }
        audio = AudioInput(check_file(form.file("file").content, config, "file"), param="file")
        return Decoded([RecognitionInput(audio, _convert(options, RecognitionOptions))], wishes)

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Transcription],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """The transcription in the form that was asked for."""
        (output,) = outputs
        wishes: Wishes = decoded.context
        match wishes.response_format:
            case "json":
                return Reply(msgspec.json.encode({"text": output.text, "usage": _usage(output)}))
            case "verbose_json":
                return Reply(msgspec.json.encode(self._verbose(output, wishes)))
            case "text":
                return Reply(output.text.encode() + b"\n", PLAIN_TEXT)
            case "srt":
                return Reply(write_srt(output.segments).encode(), PLAIN_TEXT)
            case "vtt":
                return Reply(write_vtt(output.segments).encode(), PLAIN_TEXT)

    def stream(self, decoded: Decoded, call: Call) -> TranscriptStream:
        """An encoder of `transcript.text` events."""
        return TranscriptStream()

    def _verbose(self, output: Transcription, wishes: Wishes) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "task": "translate" if self._translates else "transcribe",
            "language": name_of(output.language),
            "duration": round(output.duration, 3),
            "text": output.text,
            "usage": _usage(output),
        }
        if output.has_words:
            answer["words"] = [
                {"word": each.word, "start": each.start, "end": each.end} for each in output.words
            ]
        if "segment" in wishes.granularities or not output.has_words:
            answer["segments"] = [_segment_json(each) for each in output.segments]
        return answer


OPENAI_TRANSCRIPTIONS = OpenAITranscription(translates=False)
OPENAI_TRANSLATIONS = OpenAITranscription(translates=True)


class TranscriptStream:
    """Events of one request: a delta a segment, then the whole text."""

    def __init__(self) -> None:
        self._text = ""
        self._seconds = 0.0

    def event(self, index: int, output: Transcription) -> bytes:
        """A delta for what was understood; none for the output that only sums up."""
        self._seconds = max(self._seconds, output.duration)
        text = "".join(segment.text for segment in output.segments)
        delta = text if self._text else text.lstrip()
        if not delta:
            return b""
        self._text += delta
        return _event({"type": "transcript.text.delta", "delta": delta})

    def end(self, usage: Usage) -> bytes:
        """The last event; its text is that of all deltas."""
        return _event(
            {
                "type": "transcript.text.done",
                "text": self._text,
                "usage": {"type": "duration", "seconds": round(self._seconds, 3)},
            }
        )


def _event(event: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _usage(output: Transcription) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(output.duration, 3)}


def _segment_json(segment: Segment) -> dict[str, Any]:
    fields = msgspec.structs.asdict(segment)
    del fields["words"]
    return fields


def _read_wishes(form: Form) -> Wishes:
    names = ("model", "language", "prompt", "response_format", "temperature", "stream")
    fields: dict[str, Any] = {
        name: text for name in names if (text := form.text(name, default="").strip())
    }
    # SDKs write the name of a list with brackets, some clients without
    fields["granularities"] = [
        *form.texts.get("timestamp_granularities[]", []),
        *form.texts.get("timestamp_granularities", []),
    ]
    return _convert(fields, Wishes)


def _convert(fields: dict[str, Any], kind: Any) -> Any:
    """Fields as a struct; of a form, numbers and truths are texts."""
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        field = str(error).rpartition("`$.")[2].rstrip("`").partition("[")[0]
        param = "timestamp_granularities" if field == "granularities" else field or None
        raise InvalidInput(str(error), param=param) from error


def _refuse_unsupported(wishes: Wishes, form: Form) -> None:
    if wishes.granularities and wishes.response_format != "verbose_json":
        raise InvalidInput(
            "'timestamp_granularities' needs response_format=verbose_json",
            param="timestamp_granularities",
        )
    if wishes.stream and wishes.response_format not in ("json", "text"):
        raise InvalidInput(
            f"a stream has no response_format {wishes.response_format!r}",
            hint="leave it out, or do not stream",
            param="response_format",
        )
    for name in ("include[]", "include", "known_speaker_names[]"):
        if form.texts.get(name):
            raise InvalidInput(f"{name!r} is not supported", param=name.removesuffix("[]"))
