"""Sound files that no good client sends, by every door that takes sound, and many at once.

The oracle: a 4xx in the protocol's own shape or the right answer; the same worker afterwards, in the
same memory; and whoever asks beside a bad file is heard right.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests import real_models, sounds
from tests.conftest import LiveServer, run_server
from tests.wire.probe import check_refusal, resident_mib, worker_of
from tests.wire.senders import SOUND_SENDERS, post_file, post_json

from wherry import Client
from wherry.models.tasks.sound import resample

MEMORY_SLACK_MIB = 200
"""What a worker may keep of hundreds of files: caches of allocators and decoders."""
LAST_WORDS = "fail better"


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that listens."""
    pytest.importorskip("faster_whisper", reason="pip install 'wherry[whisper]'")
    real_models.beckett_sound()  # skips where there is no registry
    with run_server(tmp_path_factory.mktemp("hearing")) as server:
        with Client(server.url, server.key) as client:
            client.models.pull("whisper-tiny-en", name="ears")
            client.deployments.deploy("ears")
        yield server


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    """A recording: float32 [n], 16 kHz."""
    with wave.open(io.BytesIO(real_models.beckett_sound().read_bytes())) as file:
        rate, count = file.getframerate(), file.getnframes()
        samples = np.frombuffer(file.readframes(count), "<i2").astype(np.float32) / 32768
    return np.concatenate(list(resample([samples], rate, sounds.RATE)))


@pytest.fixture(scope="module")
def bad() -> dict[str, bytes]:
    return sounds.bad_sounds()


def hear(live: LiveServer, file: bytes) -> str:
    _, answer = post_file(live, "/predict/ears", file)
    assert answer.status_code == 200, answer.text
    return answer.json()["text"].lower()


@pytest.mark.parametrize("door", SOUND_SENDERS)
def test_bad_files_are_refused_by_every_door(
    hearing: LiveServer, bad: dict[str, bytes], door: str
) -> None:
    worker = worker_of(hearing, "ears")
    hear(hearing, real_models.beckett_sound().read_bytes())
    before = resident_mib(worker.pid)
    for why, file in bad.items():
        path, answer = SOUND_SENDERS[door](hearing, "ears", file)
        assert 400 <= answer.status_code < 500, (why, answer.text)
        check_refusal(path, answer)
    assert worker_of(hearing, "ears").pid == worker.pid
    assert resident_mib(worker.pid) - before < MEMORY_SLACK_MIB
    assert "Traceback" not in hearing.log()


@pytest.mark.parametrize("door", SOUND_SENDERS)
def test_every_door_hears_a_good_file(hearing: LiveServer, door: str) -> None:
    file = real_models.beckett_sound().read_bytes()
    _, answer = SOUND_SENDERS[door](hearing, "ears", file)
    assert answer.status_code == 200, answer.text
    assert LAST_WORDS in answer.text.lower()


@pytest.mark.parametrize("rate", [7_000, 11_025, 384_000])
def test_any_rate_is_heard(hearing: LiveServer, spoken: np.ndarray, rate: int) -> None:
    samples = np.concatenate(list(resample([spoken], sounds.RATE, rate)))
    assert LAST_WORDS in hear(hearing, sounds.wav_file(to_int16(samples), rate=rate))


@pytest.mark.parametrize("channels", [2, 32])
def test_any_channels_are_heard(hearing: LiveServer, spoken: np.ndarray, channels: int) -> None:
    samples = to_int16(np.repeat(spoken, channels))
    assert LAST_WORDS in hear(hearing, sounds.wav_file(samples, channels=channels))


def test_any_samples_are_heard(hearing: LiveServer, spoken: np.ndarray) -> None:
    eight = (np.clip(spoken, -1, 1) * 127 + 128).astype(np.uint8).tobytes()
    assert LAST_WORDS in hear(hearing, sounds.wav_file(eight, bits=8))
    double = spoken.astype("<f8").tobytes()
    assert LAST_WORDS in hear(hearing, sounds.wav_file(double, bits=64, tag=3))
    unknown = sounds.wav_file(to_int16(spoken), claimed_bytes=0xFFFFFFFF)
    assert LAST_WORDS in hear(hearing, unknown)


def to_int16(samples: np.ndarray) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


@pytest.mark.parametrize(
    "body",
    [
        {"audio": []},
        {"audio": [0.1, None]},
        {"audio": [[0.1]]},
        {"audio": [1e30]},
        {"audio": ["a"]},
        {"audio": {"a": 1}},
        {"audio": "====", "sample_rate": 16_000},
        {"audio": "http://127.0.0.1/a.wav"},
        {"audio": "data:audio/wav,abc"},
        {"audio": [0.0] * 100, "sample_rate": 1},
        {"audio": [0.0] * 100, "sample_rate": 2**70},
        {"audio": [0.0] * 100, "sample_rate": 16_000.5},
        {"audio": [0.0] * 100, "sample_rate": "16000"},
    ],
    ids=str,
)
def test_what_is_no_sound_is_refused(hearing: LiveServer, body: dict[str, object]) -> None:
    check_refusal(*post_json(hearing, "/predict/ears", body))


def test_a_good_file_among_sixty_four_bad_ones_is_heard(
    hearing: LiveServer, bad: dict[str, bytes]
) -> None:
    pid = worker_of(hearing, "ears").pid
    names = ("eighty million samples in a kilobyte", "flac cut off", "ten hours of silence")
    files = [bad[names[n % 3]] for n in range(64)]
    files.insert(40, real_models.beckett_sound().read_bytes())
    with ThreadPoolExecutor(65) as threads:
        answers = list(threads.map(lambda f: post_file(hearing, "/predict/ears", f)[1], files))
    assert LAST_WORDS in answers.pop(40).text.lower()
    for answer in answers:
        check_refusal("/predict", answer)
    assert worker_of(hearing, "ears").pid == pid
