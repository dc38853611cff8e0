"""Sound files that are made up: good ones of every form, and bad ones of every kind."""

from __future__ import annotations

import io
import random
import struct

import numpy as np

from wherry.models.tasks.sound_file import SoundFile

RATE = 16_000
TONE = (np.sin(np.arange(RATE) * 0.1) * 0.3).astype(np.float32)
"""A second of 255 Hz."""
PCM = (TONE * 32767).astype("<i2").tobytes()


def wav_file(
    samples: bytes = PCM,
    *,
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    tag: int = 1,
    claimed_bytes: int | None = None,
) -> bytes:
    """A WAV file with any header."""
    size = len(samples) if claimed_bytes is None else claimed_bytes
    frame = max(1, channels * bits // 8)
    return (
        struct.pack("<4sI4s", b"RIFF", min(36 + size, 0xFFFFFFFF), b"WAVE")
        + struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, rate * frame, frame, bits)
        + struct.pack("<4sI", b"data", size)
        + samples
    )


def sound_file(name: str, samples: np.ndarray = TONE, rate: int = RATE) -> bytes:
    """A file of one of the formats that are written."""
    file = SoundFile(name, rate)
    return file.write(samples) + file.end()


def webm_file() -> bytes:
    """Opus in WebM, as browsers record it."""
    import av

    with io.BytesIO() as file:
        with (
            av.open(io.BytesIO(sound_file("opus")), format="ogg") as given,
            av.open(file, "w", format="webm") as made,
        ):
            copied = made.add_stream_from_template(given.streams.audio[0])
            for packet in given.demux(given.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = copied
                    made.mux(packet)
        return file.getvalue()


def silent_film() -> bytes:
    """MP4 with pictures and no sound."""
    import av

    with io.BytesIO() as file:
        with av.open(file, "w", format="mp4") as made:
            stream = made.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            picture = np.zeros((64, 64, 3), np.uint8)
            made.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            made.mux(stream.encode(None))
        return file.getvalue()


def long_silence(seconds: int = 36_000, rate: int = 1000) -> bytes:
    """Hours of nothing in FLAC, whose header does not say how long it is."""
    file = SoundFile("flac", rate)
    hour = np.zeros(rate * 3600, np.float32)
    return b"".join(file.write(hour) for _ in range(seconds // 3600)) + file.end()


def box(kind: bytes, *parts: bytes) -> bytes:
    """A part of an MP4 file."""
    data = b"".join(parts)
    return struct.pack(">I4s", len(data) + 8, kind) + data


def mp4_claiming(samples: int, ticks: int = 1024) -> bytes:
    """An M4A of ALAC whose few bytes of tables claim any number of samples, so many ticks each."""
    entry = box(b"alac", bytes(6), b"\0\1", bytes(8), struct.pack(">4HI", 1, 16, 0, 0, RATE << 16))
    tables = box(
        b"stbl",
        box(b"stsd", struct.pack(">II", 0, 1), entry),
        box(b"stts", struct.pack(">4I", 0, 1, samples, ticks)),
        box(b"stsc", struct.pack(">5I", 0, 1, 1, samples, 1)),
        box(b"stsz", struct.pack(">3I", 0, 1, samples)),
        box(b"stco", struct.pack(">3I", 0, 1, 8)),
    )
    media = box(
        b"mdia",
        box(b"mdhd", bytes(12), struct.pack(">3I", RATE, 1000, 0)),
        box(b"hdlr", bytes(8), b"soun", bytes(13)),
        box(b"minf", tables),
    )
    track = box(b"trak", box(b"tkhd", struct.pack(">4I", 1, 0, 0, 1), bytes(68)), media)
    head = box(b"mvhd", bytes(12), struct.pack(">II", 1000, 1000), bytes(80))
    return box(b"ftyp", b"mp42\0\0\0\0mp42") + box(b"moov", head, track) + box(b"mdat", bytes(5000))


def bad_sounds() -> dict[str, bytes]:
    """What must be refused, by what is wrong with it."""
    noise = random.Random(1).randbytes
    not_a_number = TONE.copy()
    not_a_number[100] = np.nan
    return {
        "empty": b"",
        "one byte": b"R",
        "wav cut in its samples": wav_file()[:8000],
        "wav cut in its header": wav_file()[:20],
        "text called mp3": b"hello, this is text " * 100,
        "text behind an ID3 tag": b"ID3\x04\0\0\0\0\0\0" + b"text " * 2000,
        "rate of 0 Hz": wav_file(rate=0),
        "rate of 1 Hz": wav_file(rate=1),
        "rate of 385 kHz": wav_file(rate=385_000),
        "no channel": wav_file(channels=0),
        "65 channels": wav_file(bytes(650), channels=65),
        "a sample that is no number": wav_file(not_a_number.tobytes(), bits=32, tag=3),
        "endless samples": wav_file(np.full(100, np.inf, "<f4").tobytes(), bits=32, tag=3),
        "a header that claims 2 GB": wav_file(claimed_bytes=0x7FFFFFFF),
        "no samples": wav_file(b""),
        "adpcm": wav_file(tag=2, bits=4),
        "thousands of chunks": b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 100_000,
        "samples before their format": b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd",
        "ten hours of silence": long_silence(),
        "ten hours of a byte a sample": wav_file(b"\x80" * 36_000_000, bits=8, rate=1000),
        "eighty million samples in a kilobyte": mp4_claiming(80_000_000),
        "a moment that lasts for days": mp4_claiming(1000, 2**31 - 1),
        "two million tags": b"ID3\4\0\0\0\0\0\0" * 2_000_000,
        "one tag of 256 MB": b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(100_000),
        "ten million beginnings of mp3": b"\xff\xfb" * 10_000_000,
        "ogg with a hole": sound_file("opus")[:100] + bytes(10_000_000),
        "a film without sound": silent_film(),
        "flac cut off": sound_file("flac")[:4000],
        "zip": b"PK\3\4" + noise(1000),
        "playlist": b"#EXTM3U\nhttp://127.0.0.1/secret\n",
        "list of files": b"ffconcat version 1.0\nfile /etc/passwd\n",
        **{
            f"noise called {name}": magic + noise(5000)
            for name, magic in {
                "ogg": b"OggS",
                "flac": b"fLaC",
                "webm": b"\x1a\x45\xdf\xa3",
                "mp4": b"\0\0\0\x18ftypmp42",
                "aac": b"\xff\xf1",
                "mp3": b"\xff\xfb",
                "wav": b"RIFF\0\0\0\0WAVE",
            }.items()
        },
    }
