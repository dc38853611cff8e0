"""Hugging Face's shapes of tasks that listen or speak."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from tests.models.codecs.hf_asking import answer, decode, encode

from wherry.errors import InvalidInput
from wherry.models.tasks.speech_recognition import Segment, Transcription, Word
from wherry.models.tasks.speech_synthesis import Speech, SpeechInput
from wherry.models.tasks.task import TaskConfig
from wherry.models.tasks.wav import write_wav

LISTEN, SPEAK = "automatic-speech-recognition", "text-to-speech"
WAV = write_wav(np.zeros(1600, np.float32), 16_000)
TEXT = base64.b64encode(WAV).decode()
HEARD = Transcription(
    segments=[
        Segment(0, 0.0, 1.5, " Good day", words=[Word(" Good", 0.0, 0.5, 0.9)]),
        Segment(1, 1.5, 2.0, " to you."),
    ]
)
SPEECH = Speech(samples=np.zeros(1600, np.float32), rate=16_000)


@pytest.mark.parametrize("headers", [{}, {"content-type": "audio/wav"}])
def test_a_sound_comes_as_it_is(headers: dict[str, str]):
    decoded = decode(LISTEN, WAV, headers=headers)
    assert decoded.items[0].audio.file == WAV
    assert answer(LISTEN, decoded, [HEARD]) == {"text": "Good day to you."}


@pytest.mark.parametrize(
    ("wish", "chunks"),
    [
        (True, [(" Good day", [0.0, 1.5]), (" to you.", [1.5, 2.0])]),
        ("word", [(" Good", [0.0, 0.5])]),
    ],
)
def test_times_are_told_if_asked(wish: Any, chunks: list[Any]):
    decoded = decode(LISTEN, {"inputs": TEXT, "parameters": {"return_timestamps": wish}})
    assert decoded.items[0].options.word_timestamps == (wish == "word")
    assert answer(LISTEN, decoded, [HEARD])["chunks"] == [
        {"text": text, "timestamp": times} for text, times in chunks
    ]


@pytest.mark.parametrize("key", ["generate_kwargs", "generation_parameters"])
def test_how_to_listen_is_handed_on(key: str):
    wish = {"language": "fr", "task": "translate", "temperature": 0.5, "max_new_tokens": 9}
    options = decode(LISTEN, {"inputs": TEXT, "parameters": {key: wish}}).items[0].options
    assert (options.language, options.translate, options.temperature) == ("fr", True, 0.5)


@pytest.mark.parametrize(
    ("accept", "kind", "start"),
    [
        ("", "audio/wav", b"RIFF"),
        ("*/*", "audio/wav", b"RIFF"),
        ("application/json, audio/*", "audio/wav", b"RIFF"),
        ("audio/flac", "audio/flac", b"fLaC"),
        ("audio/mpeg;q=0.9, audio/wav", "audio/mpeg", b""),
    ],
)
def test_a_text_is_spoken_into_the_file_that_the_client_accepts(
    accept: str, kind: str, start: bytes
):
    if kind != "audio/wav":
        pytest.importorskip("av", reason="pip install 'wherry[audio]'")
    decoded = decode(SPEAK, {"inputs": "Good day."}, headers={"accept": accept})
    assert decoded.items == [SpeechInput("Good day.")]
    reply = encode(SPEAK, decoded, [SPEECH])
    assert reply.content_type == kind
    assert bytes(reply.body).startswith(start)


def test_a_voice_can_be_chosen():
    config = TaskConfig(options={"voices": {"anna": "anna.bin"}})
    parameters = {"voice": "anna", "speed": 1.5, "seed": 3}
    (item,) = decode(SPEAK, {"inputs": "Hi", "parameters": parameters}, config).items
    assert item == SpeechInput("Hi", "anna", 1.5, 3)


@pytest.mark.parametrize(
    ("task", "body", "param"),
    [
        (LISTEN, b"", "audio"),
        (LISTEN, b"[1, 2]", "audio"),
        (LISTEN, b"not a sound", "audio"),
        (LISTEN, {"inputs": "not base64!"}, "audio"),
        (LISTEN, {"inputs": {}}, "audio"),
        (LISTEN, {"inputs": "https://example.com/a.wav"}, "audio"),
        (LISTEN, {"inputs": TEXT, "return_timestamps": "char"}, "parameters.return_timestamps"),
        (
            LISTEN,
            {"inputs": TEXT, "generate_kwargs": {"language": "?"}},
            "parameters.generate_kwargs.language",
        ),
        (SPEAK, {"inputs": ""}, "inputs"),
        (SPEAK, {"inputs": " "}, "inputs"),
        (SPEAK, {"inputs": ["a"]}, "inputs"),
        (SPEAK, {"inputs": "x" * 5000}, "inputs"),
        (SPEAK, {"inputs": "a", "speed": 99}, "parameters.speed"),
        (SPEAK, {"inputs": "a", "voice": "nobody"}, "voice"),
    ],
)
def test_what_is_wrong_is_named(task: str, body: Any, param: str):
    with pytest.raises(InvalidInput) as refused:
        decode(task, body)
    assert refused.value.param == param


def test_a_sound_of_an_unknown_kind_is_not_made():
    with pytest.raises(InvalidInput, match="audio/midi"):
        decode(SPEAK, {"inputs": "a"}, headers={"accept": "audio/midi"})
