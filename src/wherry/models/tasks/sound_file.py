"""Samples → bytes of a sound file, as they come: what a client can play while the rest is made.

WAV and PCM are ours, the others are FFmpeg's encoders (`av`).
"""

from __future__ import annotations

import io
from typing import Any

import msgspec
import numpy as np

from wherry.models.tasks.sound import import_av
from wherry.models.tasks.wav import to_pcm, write_header

FRAME_SAMPLES = 1152
"""Given at once to an encoder that takes any number."""


class SoundFormat(msgspec.Struct, frozen=True):
    """A kind of file."""

    content_type: str
    container: str = ""
    """FFmpeg's name; empty for what is written here."""
    codec: str = ""
    rate: int = 0
    """The one that the codec takes; 0 = any."""
    bit_rate: int = 0
    options: dict[str, str] = {}
    """Of the container."""


FORMATS: dict[str, SoundFormat] = {
    "wav": SoundFormat("audio/wav"),
    "pcm": SoundFormat("audio/pcm"),
    "mp3": SoundFormat("audio/mpeg", "mp3", "libmp3lame", bit_rate=64_000),
    # short pages, or a second of sound waits for the next
    "opus": SoundFormat(
        "audio/ogg", "ogg", "libopus", 48_000, 32_000, options={"page_duration": "100000"}
    ),
    "aac": SoundFormat("audio/aac", "adts", "aac", bit_rate=64_000),
    "flac": SoundFormat("audio/flac", "flac", "flac"),
}
"""Name that clients use → what is written. PCM is 16 bits, little endian, one channel."""


class SoundFile:
    """A file that is being written; give it samples, and take the bytes that they make.

    Args:
        name: a key of `FORMATS`.
        rate: samples a second of what it will be given.

    Raises:
        MissingExtra: the format needs `av`, which is not installed.
    """

    def __init__(self, name: str, rate: int) -> None:
        self._name = name
        self._rate = rate
        self._has_begun = False
        self._encoder = _Encoder(FORMATS[name], rate) if FORMATS[name].container else None

    def write(self, samples: np.ndarray) -> bytes:
        """Bytes that these samples bring; may be none, until there are enough of them."""
        if self._encoder is not None:
            return self._encoder.write(samples)
        # whoever reads as it comes is told that the length is not known yet
        head = write_header(self._rate) if self._name == "wav" and not self._has_begun else b""
        self._has_begun = True
        return head + to_pcm(samples)

    def end(self) -> bytes:
        """The bytes that are left."""
        return self._encoder.end() if self._encoder is not None else b""


class _Encoder:
    """One of FFmpeg's, with its container."""

    def __init__(self, wanted: SoundFormat, rate: int) -> None:
        av = import_av()
        self._av = av
        self._out = _Pieces()
        self._rate = rate
        self._container: Any = av.open(
            self._out, mode="w", format=wanted.container, container_options=wanted.options
        )
        codec_rate = wanted.rate or rate
        self._stream: Any = self._container.add_stream(wanted.codec, rate=codec_rate, layout="mono")
        if wanted.bit_rate:
            self._stream.bit_rate = wanted.bit_rate
        self._to_format: Any = av.AudioResampler(
            format=self._stream.format.name, layout="mono", rate=codec_rate
        )
        self._waiting: Any = av.AudioFifo()
        self._written = 0

    def write(self, samples: np.ndarray) -> bytes:
        if len(samples):
            row = np.clip(samples, -1.0, 1.0).astype(np.float32)[np.newaxis]
            frame = self._av.AudioFrame.from_ndarray(row, format="flt", layout="mono")
            frame.sample_rate = self._rate
            self._take(self._to_format.resample(frame))
            self._encode(is_last=False)
        return self._out.take()

    def end(self) -> bytes:
        self._take(self._to_format.resample(None))
        self._encode(is_last=True)
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._out.take()

    def _take(self, frames: list[Any]) -> None:
        for frame in frames:
            frame.pts = None  # counted below, where frames have the encoder's size
            self._waiting.write(frame)

    def _encode(self, *, is_last: bool) -> None:
        size = self._stream.codec_context.frame_size or FRAME_SAMPLES
        while (frame := self._waiting.read(size, partial=is_last)) is not None:
            frame.pts = self._written
            self._written += frame.samples
            self._container.mux(self._stream.encode(frame))


class _Pieces(io.RawIOBase):
    """A file that can only be written on: what was, is taken and forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data
