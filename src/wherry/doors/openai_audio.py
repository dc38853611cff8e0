"""OpenAI's API of sound: transcriptions, translations, speech."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from wherry import errors
from wherry.doors.errors import encode, openai_error, render_openai, status_of
from wherry.doors.invoke import invoke
from wherry.doors.route import Inquiry, Response, Row
from wherry.gateway.predict import Gateway
from wherry.models.codecs.multipart import Collector, Data, Form, Head, MultipartReader

FORM = ("multipart/form-data",)
JSON = ("application/json", "text/json")
TRUE = frozenset({"true", "1"})
SPEECH_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
"""Content type of a speech whose bytes come as they are made."""


class SpeechEnvelope(msgspec.Struct):
    """The few fields that the gateway reads of a request for speech; the worker reads the rest."""

    model: str
    response_format: Any = None
    stream_format: Literal["audio", "sse"] | None = None

    @property
    def content_type(self) -> str:
        """Of the answer, if it is a stream."""
        if self.stream_format == "sse":
            return "text/event-stream"
        name = self.response_format
        # what is none of these, the worker refuses before anything is sent
        return SPEECH_TYPES.get(name if isinstance(name, str) else "mp3", "audio/mpeg")

    @property
    def streams(self) -> bool:
        """All but WAV, whose header tells how long it is, unless a stream was asked for."""
        return self.response_format != "wav" or self.stream_format is not None


_decode_speech = msgspec.json.Decoder(SpeechEnvelope).decode


class OpenAIAudioDoor:
    """Rows of the API."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def rows(self) -> list[Row]:
        """The table."""
        return [
            self._row(
                "transcriptions", self.transcribe, "openai.transcriptions", "Speech to text", FORM
            ),
            self._row(
                "translations",
                self.translate,
                "openai.translations",
                "Speech of any language to English",
                FORM,
            ),
            self._row("speech", self.speak, "openai.speech", "Text to speech", JSON),
        ]

    def _row(
        self, name: str, handler: Any, codec: str, summary: str, content_types: tuple[str, ...]
    ) -> Row:
        return Row(
            method="POST",
            path=f"/v1/audio/{name}",
            permission="invoke",
            handler=handler,
            summary=summary,
            render=render_openai,
            request=dict,
            answer=dict,
            tag="openai",
            body_limit=self._gateway.settings.max_body_bytes,
            content_types=content_types,
            streams=True,
            codec=codec,
        )

    async def transcribe(self, inquiry: Inquiry) -> Response:
        """Speech to text."""
        return await self._listen(inquiry, "openai.transcriptions")

    async def translate(self, inquiry: Inquiry) -> Response:
        """Speech to English text."""
        return await self._listen(inquiry, "openai.translations")

    async def _listen(self, inquiry: Inquiry, codec: str) -> Response:
        body, form = await _receive(inquiry)
        return await invoke(
            self._gateway,
            inquiry,
            door="openai",
            deployment=form.text("model"),
            codec=codec,
            body=body,
            forward=("content-type",),
            stream=form.text("stream", default="").strip().lower() in TRUE,
            error_event=_error_event,
        )

    async def speak(self, inquiry: Inquiry) -> Response:
        """Text to speech."""
        body = await inquiry.body()
        envelope = _read_speech(body)
        is_sse = envelope.stream_format == "sse"
        return await invoke(
            self._gateway,
            inquiry,
            door="openai",
            deployment=envelope.model,
            codec="openai.speech",
            body=body,
            stream=envelope.streams,
            stream_type=envelope.content_type,
            # in the middle of a file there is no place for words: it just ends
            error_event=_error_event if is_sse else None,
        )


async def _receive(inquiry: Inquiry) -> tuple[bytes, Form]:
    """The body as it came, and the form's text fields; of files only the bounds are looked for."""
    reader = MultipartReader(inquiry.headers.get("content-type", ""))
    form, collector = Form(), Collector()
    pieces: list[bytes] = []
    is_file = False
    async for piece in inquiry.bounded_stream():
        pieces.append(piece)
        for event in reader.feed(piece):
            if isinstance(event, Head):
                is_file = event.filename is not None
            if is_file and isinstance(event, Data):
                continue
            if collector.take(event) and not is_file:
                collector.put_into(form)
    reader.end()
    return b"".join(pieces), form


def _read_speech(body: bytes) -> SpeechEnvelope:
    try:
        return _decode_speech(body)
    except msgspec.ValidationError as error:
        text = str(error)
        param = "model" if "`model`" in text else text.rpartition("`$.")[2].rstrip("`") or None
        raise errors.InvalidInput(text, param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidInput(f"the body is not valid JSON: {error}") from error


def _error_event(error: errors.WherryError) -> bytes:
    """After the first byte there is no status: the SDKs raise on an event with `error`."""
    return b"data: " + encode({"error": openai_error(error, status_of(error))}) + b"\n\n"
