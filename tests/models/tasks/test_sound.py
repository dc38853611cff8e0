"""Sounds of any form become the samples that a reference makes of them, or are refused in words."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest
from tests import real_models, sounds
from tests.sounds import PCM, RATE, TONE, sound_file, wav_file

from wherry.errors import InvalidInput
from wherry.models.tasks.audio import AudioInput
from wherry.models.tasks.sound import Sound
from wherry.models.tasks.sound_file import FORMATS, SoundFile
from wherry.models.tasks.wav import write_wav

ROUNDING = 2 / 32768
"""A reference that works in 16 bits rounds twice."""


def read(given: bytes | AudioInput, rate: int = RATE, max_seconds: float = 3600) -> np.ndarray:
    sound = given if isinstance(given, AudioInput) else AudioInput(given)
    return np.concatenate(list(Sound(sound, rate, max_seconds).pieces()))


# ------------------------------------------------------------------------------ wav


def as_24_bits(samples: np.ndarray) -> bytes:
    return b"".join(struct.pack("<i", int(each * 2**31))[1:] for each in samples)


@pytest.mark.parametrize(
    ("file", "step"),
    [
        (wav_file(), 2**-15),
        (wav_file((TONE * 127 + 128).astype(np.uint8).tobytes(), bits=8), 2**-7),
        (wav_file(as_24_bits(TONE), bits=24), 2**-23),
        (wav_file((TONE * (2**31 - 1)).astype("<i4").tobytes(), bits=32), 2**-23),
        (wav_file(TONE.tobytes(), bits=32, tag=3), 0.0),
        (wav_file(TONE.astype("<f8").tobytes(), bits=64, tag=3), 0.0),
        (wav_file(np.repeat(np.frombuffer(PCM, "<i2"), 64).tobytes(), channels=64), 2**-15),
        (wav_file(claimed_bytes=0xFFFFFFFF), 2**-15),
    ],
    ids=["16", "8", "24", "32", "float32", "float64", "64 channels", "unknown length"],
)
def test_wav_files_of_every_depth_hold_the_same_tone(file: bytes, step: float):
    assert np.abs(read(file) - TONE).max() <= 2 * step


def test_a_written_wav_file_is_read_by_the_standard_library():
    with wave.open(io.BytesIO(write_wav(TONE, RATE))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (RATE, 1, RATE)
        assert file.readframes(RATE) == PCM


def test_channels_are_mixed_to_their_mean():
    both = np.stack([TONE, -TONE / 2], axis=1)
    mixed = read(wav_file(both.astype("<f4").tobytes(), channels=2, bits=32, tag=3))
    assert np.allclose(mixed, TONE / 4, atol=1e-7)


# ------------------------------------------------------------------------------ other formats


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "pcm"])
def test_what_is_written_in_a_format_is_read_from_it(name: str):
    pytest.importorskip("av", reason="pip install 'wherry[audio]'")
    speech = chirp(24_000)
    file = SoundFile(name, 24_000)
    pieces = [file.write(speech[:30_001]), file.write(speech[30_001:]), file.end()]
    assert all(pieces[:2]), "something to play comes with every piece"
    heard = read(b"".join(pieces), 24_000)
    assert likeness(speech, heard) > (0.999 if name in ("wav", "flac") else 0.98)


def test_sound_of_a_browser_is_read():
    pytest.importorskip("av", reason="pip install 'wherry[audio]'")
    assert likeness(TONE, read(sounds.webm_file())) > 0.98


def test_telephone_wav_is_read():
    pytest.importorskip("av", reason="pip install 'wherry[audio]'")
    silence = wav_file(b"\xff" * 8000, rate=8000, bits=8, tag=7)
    assert np.abs(read(silence)).max() < 1e-3


def test_samples_are_those_that_whisper_itself_would_decode():
    decode = pytest.importorskip("faster_whisper.audio").decode_audio
    file = real_models.cities_sound().read_bytes()
    files = {"wav 48 kHz": file} | {
        name: sound_file(name, read(file, 48_000), 48_000) for name in ("mp3", "opus", "flac")
    }
    for name, each in files.items():
        expected, heard = decode(io.BytesIO(each)), read(each)
        assert len(expected) == len(heard), name
        assert np.abs(expected - heard).max() <= ROUNDING, name


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 96_000, 384_000])
def test_resampling_is_that_of_a_polyphase_filter(rate: int):
    """Two good filters differ where they cut: 0.5 % of the loudness, away from the ends."""
    pytest.importorskip("av", reason="pip install 'wherry[audio]'")
    signal = pytest.importorskip("scipy.signal", reason="pip install scipy")
    tone = chirp(rate, highest=3000.0)
    heard = read(AudioInput(samples=tone, rate=rate))
    common = np.gcd(rate, RATE)
    expected = signal.resample_poly(tone, RATE // common, rate // common)
    assert abs(len(heard) - len(expected)) <= 32
    inner = slice(800, min(len(heard), len(expected)) - 800)
    error = heard[inner] - expected[inner]
    assert np.sqrt(np.mean(error**2)) < 0.005 * np.sqrt(np.mean(expected[inner] ** 2))


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(("why", "file"), sounds.bad_sounds().items(), ids=str)
def test_a_bad_file_is_refused_in_words(why: str, file: bytes):
    pytest.importorskip("av", reason="pip install 'wherry[audio]'")
    with pytest.raises(InvalidInput) as refusal:
        read(file)
    assert refusal.value.param == "audio"
    assert "Traceback" not in refusal.value.text


def test_random_bytes_behind_a_good_beginning_are_read_or_refused():
    pytest.importorskip("av", reason="pip install 'wherry[audio]'")
    dice = np.random.default_rng(7)
    for name in ("mp3", "opus", "flac", "aac", "wav"):
        good = bytearray(sound_file(name))
        for _ in range(20):
            broken = bytearray(good)
            for position in dice.integers(0, len(broken), 20):
                broken[position] = dice.integers(0, 256)
            try:
                assert np.isfinite(read(bytes(broken))).all()
            except InvalidInput:
                continue


def test_a_sound_that_is_too_long_is_refused_before_it_is_decoded():
    for given in (sound_file("wav"), sound_file("mp3"), AudioInput(samples=TONE, rate=RATE)):
        sound = Sound(given if isinstance(given, AudioInput) else AudioInput(given), RATE, 0.5)
        with pytest.raises(InvalidInput, match="limit is"):
            next(sound.pieces())
        assert sound.samples_read == 0


def test_the_field_that_a_protocol_names_is_the_one_that_is_blamed():
    with pytest.raises(InvalidInput) as refusal:
        read(AudioInput(b"nothing", param="file"))
    assert refusal.value.param == "file"


# ------------------------------------------------------------------------------ helpers


def chirp(rate: int, highest: float = 2000.0) -> np.ndarray:
    """Two seconds of a rising tone, soft at both ends."""
    moments = np.arange(2 * rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * (100 * moments + (highest - 100) / 4 * moments**2))
    return (tone * np.hanning(len(tone))).astype(np.float32)


def likeness(one: np.ndarray, other: np.ndarray, latest: int = 4000) -> float:
    """Correlation of two sounds, where the other may begin later."""
    length = min(len(one), len(other) - latest) if len(other) > len(one) + latest else len(one)
    padded = np.pad(other, (0, max(0, latest + length - len(other))))
    return max(
        float(np.corrcoef(one[:length], padded[start : start + length])[0, 1])
        for start in range(latest)
    )
