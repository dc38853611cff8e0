"""What MP4 files may claim of their samples."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from tests import sounds

from wherry.errors import InvalidInput
from wherry.models.tasks.audio import AudioInput
from wherry.models.tasks.mp4_index import check_index
from wherry.models.tasks.sound import Sound

av = pytest.importorskip("av", reason="pip install 'wherry[audio]'")


def made(container: str, codec: str, options: dict[str, str]) -> bytes:
    """Three seconds of a tone as FFmpeg writes them."""
    with io.BytesIO() as file:
        with av.open(file, "w", format=container, options=options) as written:
            stream = written.add_stream(codec, rate=sounds.RATE, layout="mono")
            tone = np.tile(sounds.TONE, 3)[np.newaxis]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate = sounds.RATE
            for encoded in (frame, None):
                written.mux(stream.encode(encoded))
        return file.getvalue()


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("mp4", "aac", {}),
        ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "100000"}),
        ("ipod", "alac", {}),
        ("mov", "pcm_s16le", {}),
    ],
    ids=["AAC", "fragments", "ALAC", "PCM"],
)
def test_good_files_are_read(container: str, codec: str, options: dict[str, str]) -> None:
    file = made(container, codec, options)
    check_index(file)
    sound = Sound(AudioInput(file), sounds.RATE, 60)
    assert sum(map(len, sound.pieces())) == pytest.approx(3 * sounds.RATE, abs=4096)


@pytest.mark.parametrize(
    "file",
    [
        sounds.mp4_claiming(80_000_000),
        sounds.mp4_claiming(2**32 - 1),
        sounds.mp4_claiming(1000)
        + sounds.box(b"moof", struct.pack(">I4sII", 16, b"trun", 0, 1 << 24)),
        sounds.mp4_claiming(1000) + sounds.box(b"moov", sounds.box(b"cmov", bytes(100))),
        sounds.mp4_claiming(1000) + b"stsz" * 70_000,
    ],
    ids=["many", "most", "fragment", "packed", "tables"],
)
def test_claims_without_end_are_refused(file: bytes) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_index(file)
    assert refused.value.param == "audio"


def test_plain_samples_of_a_tick_may_be_many() -> None:
    check_index(sounds.mp4_claiming(80_000_000, ticks=1))


def test_what_the_sound_itself_holds_is_no_claim() -> None:
    check_index(sounds.mp4_claiming(1000) + sounds.box(b"mdat", b"stsz" + b"\xff" * 100))


def test_wherever_a_file_is_cut_the_check_ends() -> None:
    whole = sounds.mp4_claiming(1000)[:800]
    for end in range(len(whole)):
        check_index(whole[:end])
