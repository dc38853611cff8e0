"""OpenAI's forms of speech, in bytes: forms in; JSON, text, subtitles, events and files out."""

from __future__ import annotations

import base64
import io
import json
import wave
from typing import Any

import httpx
import numpy as np
import pytest
from tests.sounds import TONE, wav_file

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Usage
from wherry.models.codecs.languages import NAMES, code_of, name_of
from wherry.models.codecs.openai_speech import OPENAI_SPEECH
from wherry.models.codecs.openai_transcription import OPENAI_TRANSCRIPTIONS, OPENAI_TRANSLATIONS
from wherry.models.tasks.speech_recognition import (
    SPEECH_RECOGNITION,
    Segment,
    Transcription,
    Word,
)
from wherry.models.tasks.speech_synthesis import SPEECH_SYNTHESIS, Speech
from wherry.models.tasks.task import TaskConfig

SEGMENTS = [
    Segment(0, 0.0, 1.25, " Hello <you> & me.", [1, 2], words=[Word("Hello", 0.0, 0.5, 0.9)]),
    Segment(1, 3661.5, 3662.0, " A --> B."),
]
HEARD = Transcription(segments=SEGMENTS, language="en", duration=3662.0)
VOICES = TaskConfig(options={"voices": {"heart": "a.onnx", "emma": "b.onnx"}})


def decode_form(
    codec: Any = OPENAI_TRANSCRIPTIONS, file: bytes = wav_file(), **fields: Any
) -> Decoded:
    request = httpx.Request(
        "POST", "http://x", data={"model": "m", **fields}, files={"file": ("a.wav", file)}
    )
    headers = {"content-type": request.headers["content-type"]}
    call = Call("c", "id", "m", "1", headers=headers, stream=False)
    return codec.decode(memoryview(request.read()), call, SPEECH_RECOGNITION, TaskConfig())


def answer_of(
    codec: Any = OPENAI_TRANSCRIPTIONS, heard: Transcription = HEARD, **fields: Any
) -> str:
    call = Call("c", "id", "m", "1")
    decoded = decode_form(codec, **fields)
    reply = codec.encode(decoded, [heard], call, SPEECH_RECOGNITION, TaskConfig())
    return bytes(reply.body).decode()


def test_a_form_says_what_is_wanted():
    decoded = decode_form(
        language="en-GB",
        prompt="Katharyn",
        temperature="0.4",
        response_format="verbose_json",
        **{"timestamp_granularities[]": ["word", "segment"]},
    )
    (item,) = decoded.items
    assert item.audio.file == wav_file()
    options = item.options
    assert (options.language, options.prompt, options.temperature) == ("en", "Katharyn", 0.4)
    assert options.word_timestamps
    assert not options.translate
    assert decode_form(OPENAI_TRANSLATIONS).items[0].options.translate


def test_every_response_format_has_its_shape():
    text = "Hello <you> & me. A --> B."
    assert json.loads(answer_of()) == {
        "text": text,
        "usage": {"type": "duration", "seconds": 3662.0},
    }
    assert answer_of(response_format="text") == text + "\n"
    assert answer_of(response_format="srt") == (
        "1\n00:00:00,000 --> 00:00:01,250\nHello <you> & me.\n\n"
        "2\n01:01:01,500 --> 01:01:02,000\nA -> B.\n\n"
    )
    assert answer_of(response_format="vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nHello &lt;you&gt; &amp; me.\n\n"
        "01:01:01.500 --> 01:01:02.000\nA -&gt; B.\n\n"
    )


def test_verbose_json_has_segments_words_or_both():
    verbose = {"response_format": "verbose_json"}
    plain = json.loads(answer_of(**verbose))
    assert (plain["task"], plain["language"]) == ("transcribe", "english")
    assert plain["segments"][0]["tokens"] == [1, 2]
    assert "words" not in plain
    timed = Transcription(segments=SEGMENTS, language="en", duration=3662.0, has_words=True)
    words = json.loads(answer_of(heard=timed, **verbose, **{"timestamp_granularities[]": "word"}))
    assert words["words"] == [{"word": "Hello", "start": 0.0, "end": 0.5}]
    assert "segments" not in words
    assert json.loads(answer_of(OPENAI_TRANSLATIONS, **verbose))["task"] == "translate"


def test_deltas_of_a_stream_make_its_text():
    stream = OPENAI_TRANSCRIPTIONS.stream(decode_form(stream="true"), Call("c", "i", "m", "1"))
    parts = [Transcription(segments=[each]) for each in SEGMENTS]
    parts.append(Transcription(language="en", duration=3662.0))
    raw = b"".join(stream.event(0, part) for part in parts) + stream.end(Usage())
    events = [json.loads(line[6:]) for line in raw.decode().split("\n\n") if line]
    assert [event["type"] for event in events] == [
        "transcript.text.delta",
        "transcript.text.delta",
        "transcript.text.done",
    ]
    assert "".join(event["delta"] for event in events[:2]) == events[2]["text"] == HEARD.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "docx"}, "response_format"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "1.5"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"language": "e1"}, "language"),
        ({"prompt": "a" * 9000}, "prompt"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities"),
        (
            {"timestamp_granularities[]": "year", "response_format": "verbose_json"},
            "timestamp_granularities",
        ),
        ({"stream": "true", "response_format": "srt"}, "response_format"),
        ({"stream": "perhaps"}, "stream"),
        ({"include[]": "logprobs"}, "include"),
        ({"file": b""}, "file"),
    ],
    ids=str,
)
def test_a_wrong_field_of_a_form_is_named(fields: dict[str, Any], param: str):
    with pytest.raises(InvalidInput) as refusal:
        decode_form(**fields)
    assert refusal.value.param == param


def test_languages_have_codes_and_names():
    assert name_of("yue") == "cantonese"
    assert name_of("xx") == "xx"
    for code, name in NAMES.items():
        assert code_of(name) == code_of(code) == code
    assert code_of("zh_CN") == "zh"


# ------------------------------------------------------------------------------ speech


def decode_speech(**body: Any) -> Decoded:
    raw = json.dumps({"model": "m", "input": "Hello.", **body}).encode()
    return OPENAI_SPEECH.decode(memoryview(raw), Call("c", "i", "m", "1"), SPEECH_SYNTHESIS, VOICES)


def test_voices_of_openai_mean_the_first_voice_and_own_ones_themselves():
    voices = {name: decode_speech(voice=name).items[0].voice for name in ("alloy", "emma")}
    assert voices == {"alloy": "", "emma": "emma"}
    assert decode_speech(voice={"id": "emma"}).items[0].voice == "emma"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"voice": "darth"}, "voice"),
        ({"input": ""}, "input"),
        ({"input": " \n"}, "input"),
        ({"input": "a" * 5000}, "input"),
        ({"input": 5}, "input"),
        ({"speed": 9}, "speed"),
        ({"speed": 0}, "speed"),
        ({"seed": -1}, "seed"),
        ({"response_format": "midi"}, "response_format"),
        ({"stream_format": "smoke"}, "stream_format"),
        ({"instructions": "be sad"}, "instructions"),
    ],
    ids=str,
)
def test_a_wrong_field_of_a_request_for_speech_is_named(body: dict[str, Any], param: str):
    with pytest.raises(InvalidInput) as refusal:
        decode_speech(**body)
    assert refusal.value.param == param


def test_a_whole_wav_file_tells_its_length():
    decoded = decode_speech(response_format="wav")
    spoken = Speech(samples=TONE, rate=16_000)
    reply = OPENAI_SPEECH.encode(
        decoded, [spoken], Call("c", "i", "m", "1"), SPEECH_SYNTHESIS, VOICES
    )
    assert reply.content_type == "audio/wav"
    with wave.open(io.BytesIO(bytes(reply.body))) as file:
        assert file.getnframes() == len(TONE)


def test_events_carry_the_same_bytes_as_the_plain_stream():
    sentences = [Speech(samples=TONE, rate=16_000), Speech(samples=np.zeros(0, np.float32), rate=1)]

    def stream(**body: Any) -> bytes:
        encoder = OPENAI_SPEECH.stream(
            decode_speech(response_format="pcm", **body), Call("c", "i", "m", "1")
        )
        return b"".join(encoder.event(0, each) for each in sentences) + encoder.end(
            Usage(characters=6)
        )

    events = [json.loads(line[6:]) for line in stream(stream_format="sse").split(b"\n\n") if line]
    assert events[-1]["type"] == "speech.audio.done"
    assert events[-1]["usage"]["characters"] == 6
    carried = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert carried == stream() == (TONE * 32767).astype("<i2").tobytes()
