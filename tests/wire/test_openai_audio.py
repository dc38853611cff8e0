"""The OpenAI SDK listens and speaks through a live server, with real models."""

from __future__ import annotations

import io
import subprocess
import sys
import time
import warnings
import wave
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from tests import real_models, sounds
from tests.conftest import LiveServer, clean_environment, run_server

from wherry import Client
from wherry.client.schema import UsageRow

SENTENCE = "The old boat crossed the river before sunrise."
MEMORY_SLACK_MIB = 120
"""What a worker may keep of hundreds of files: caches of allocators and decoders."""


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that serves `whisper-tiny-en` and `hibari`, from the catalogue."""
    pytest.importorskip("faster_whisper", reason="pip install 'wherry[whisper]'")
    pytest.importorskip("hibari", reason="pip install 'wherry[tts]'")
    real_models.beckett_sound()  # skips where there is no registry
    with run_server(tmp_path_factory.mktemp("speech")) as server:
        with Client(server.url, server.key) as client:
            for name in ("whisper-tiny-en", "hibari"):
                client.models.pull(name)
                client.deployments.deploy(name)
        yield server


@pytest.fixture
def sdk(speech: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{speech.url}/v1", api_key=speech.key, max_retries=0, timeout=120
    ) as client:
        yield client


def say(sdk: openai.OpenAI, text: str = SENTENCE, **options: str) -> tuple[bytes, str]:
    with sdk.audio.speech.with_streaming_response.create(
        model="hibari", voice="alloy", input=text, **options
    ) as answer:
        return answer.read(), answer.headers["content-type"]


def hear(sdk: openai.OpenAI, file: bytes) -> str:
    return sdk.audio.transcriptions.create(model="whisper-tiny-en", file=("a", file)).text


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mp3", "audio/mpeg"),
        ("opus", "audio/ogg"),
        ("aac", "audio/aac"),
        ("flac", "audio/flac"),
        ("wav", "audio/wav"),
    ],
)
def test_speech_of_every_format_is_understood_word_for_word(sdk, name: str, kind: str):
    file, content_type = say(sdk, response_format=name)
    assert content_type == kind
    assert hear(sdk, file) == SENTENCE


def test_pcm_is_the_samples_of_the_wav_file(sdk, speech):
    def ask(name: str) -> bytes:
        body = {"model": "hibari", "input": SENTENCE, "response_format": name, "seed": 3}
        headers = {"authorization": f"Bearer {speech.key}"}
        return httpx.post(f"{speech.url}/v1/audio/speech", json=body, headers=headers).content

    with wave.open(io.BytesIO(ask("wav"))) as file:
        assert file.readframes(file.getnframes()) == ask("pcm")


def test_a_stream_of_deltas_is_the_text(sdk):
    file = real_models.cities_sound().read_bytes()
    events = list(
        sdk.audio.transcriptions.create(model="whisper-tiny-en", file=("a.wav", file), stream=True)
    )
    assert [event.type for event in events[-2:]] == [
        "transcript.text.delta",
        "transcript.text.done",
    ]
    deltas = "".join(event.delta for event in events[:-1])
    assert deltas == events[-1].text
    assert deltas.startswith("It was the best of times")


def test_times_of_words_come_if_they_are_asked_for(sdk):
    file = ("a.wav", real_models.beckett_sound().read_bytes())
    answer = sdk.audio.transcriptions.create(
        model="whisper-tiny-en",
        file=file,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert answer.language == "english"
    assert answer.duration == pytest.approx(9.963, abs=0.01)
    assert " ".join(word.word for word in answer.words) == answer.text
    assert answer.segments[0].tokens


def test_translations_have_their_own_endpoint(sdk):
    file = ("a.wav", real_models.beckett_sound().read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the newest SDKs advise against it
        answer = sdk.audio.translations.create(model="whisper-tiny-en", file=file)
    assert "Fail better" in answer.text


def test_the_ledger_counts_milliseconds_heard_and_characters_spoken(speech):
    with Client(speech.url, speech.key) as client:
        key = client.keys.create("counted")
        with openai.OpenAI(base_url=f"{speech.url}/v1", api_key=key.secret, timeout=120) as sdk:
            file, _ = say(sdk, response_format="wav")
            hear(sdk, file)
        until = time.monotonic() + 30
        found: list[UsageRow] = []
        while sum(row.requests for row in found) < 2 and time.monotonic() < until:
            time.sleep(0.2)
            found = [row for row in client.usage(["key"]) if row.key == key.id]
    (row,) = found
    with wave.open(io.BytesIO(file)) as sound:
        milliseconds = sound.getnframes() * 1000 / sound.getframerate()
    assert row.characters == len(SENTENCE)
    assert row.audio_ms == pytest.approx(milliseconds, abs=2)


def test_bad_sounds_are_refused_and_the_worker_lives_in_the_same_memory(sdk, speech):
    (worker,) = [
        each
        for each in psutil.Process(speech.process.pid).children(recursive=True)
        if "whisper" in " ".join(each.cmdline())
    ]
    bad = sounds.bad_sounds()

    def refuse_all() -> None:
        for why, file in bad.items():
            with pytest.raises(openai.BadRequestError) as refusal:
                hear(sdk, file)
            assert refusal.value.body["param"] == "file", why

    refuse_all()
    before = worker.memory_info().rss
    for _ in range(3):
        refuse_all()
    assert (worker.memory_info().rss - before) >> 20 < MEMORY_SLACK_MIB
    assert hear(sdk, real_models.beckett_sound().read_bytes()).endswith("Fail better.")
    assert worker.is_running()


def test_a_form_without_a_model_or_a_file_is_refused_by_name(speech):
    headers = {"authorization": f"Bearer {speech.key}"}
    url = f"{speech.url}/v1/audio/transcriptions"
    for data, files, param in (
        ({}, {"file": b"x"}, "model"),
        ({"model": "whisper-tiny-en"}, {"other": b"x"}, "file"),
    ):
        answer = httpx.post(url, data=data, files=files, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
    answer = httpx.post(url, json={"model": "whisper-tiny-en"}, headers=headers)
    assert answer.status_code == 400
    assert "multipart/form-data" in answer.json()["error"]["message"]


def test_a_voice_does_not_listen(sdk):
    with pytest.raises(openai.BadRequestError, match="text-to-speech"):
        sdk.audio.transcriptions.create(model="hibari", file=("a.wav", sounds.wav_file()))


def test_a_file_is_the_body_of_a_prediction(speech):
    answer = httpx.post(
        f"{speech.url}/predict/whisper-tiny-en",
        content=real_models.beckett_sound().read_bytes(),
        headers={"authorization": f"Bearer {speech.key}", "content-type": "audio/wav"},
        timeout=120,
    ).json()
    assert answer["text"].endswith("Fail better.")
    assert answer["segments"][0]["end"] <= answer["duration"]


def test_the_command_line_saves_what_is_spoken_and_sends_it_back(speech, tmp_path: Path):
    def wherry(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "wherry", *arguments, "--url", speech.url],
            env={**clean_environment(), "HOME": str(tmp_path), "WHERRY_API_KEY": speech.key},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "hibari-1.wav" in wherry("run", "hibari", SENTENCE)
    assert SENTENCE in wherry("predict", "whisper-tiny-en", "hibari-1.wav")
