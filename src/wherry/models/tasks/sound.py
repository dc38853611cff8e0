"""Sounds of any form → one channel of float32 samples at a model's rate, in pieces.

WAV files are read by `wav`, other formats by FFmpeg's decoders (`av`), which see a client's bytes:
so only inside a worker's sandbox, from memory, by the demuxer that the file's first bytes name, and
only codecs of sound that are listed here. Playlists and formats that point to other files are not
among them. How long a sound is, is asked before a sample is decoded, and bounded again while it is.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from wherry.errors import InvalidInput, MissingExtra
from wherry.models.tasks import wav
from wherry.models.tasks.audio import (
    MAX_CHANNELS,
    AudioInput,
    check_loudness,
    check_rate,
)
from wherry.models.tasks.mp4_index import check_index

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

CODECS = frozenset(
    {
        "aac", "aac_latm", "alac", "flac", "mp3", "mp3float", "opus", "libopus", "vorbis",
        "pcm_alaw", "pcm_mulaw", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s32le", "pcm_f32le",
        "pcm_u8",
    }
)  # fmt: skip
"""Decoders that may see a client's bytes."""
FORMATS = "wav, mp3, ogg (opus, vorbis), flac, webm, m4a/mp4, aac"
MAX_STREAMS = 32
MAX_BAD_FRAMES = 64
"""Frames that may be damaged; of more, the file is."""


class Sound:
    """A sound that is being read.

    Args:
        given: what came.
        rate: samples a second that are wanted.
        max_seconds: longest sound.

    Raises:
        InvalidInput: it is of no known format, broken, silent for want of a sound track, or too long.
        MissingExtra: `av` is not installed.
    """

    def __init__(self, given: AudioInput, rate: int, max_seconds: float) -> None:
        self._given = given
        self._rate = rate
        self._max_seconds = max_seconds
        self.samples_read = 0
        """At the wanted rate, so far."""

    @property
    def seconds_read(self) -> float:
        """How much of it was read so far."""
        return self.samples_read / self._rate

    def pieces(self) -> Iterator[np.ndarray]:
        """Samples as they come, float32 [n], n however many; at least one in all."""
        try:
            yield from self._bounded()
        except InvalidInput as error:
            error.param = self._given.param
            raise

    def _bounded(self) -> Iterator[np.ndarray]:
        for piece in self._resampled():
            self.samples_read += len(piece)
            if self.samples_read > self._max_seconds * self._rate:
                raise too_long(self.seconds_read, self._max_seconds)
            # a resampler may overshoot; models are trained on sound that cannot
            yield np.clip(check_loudness(piece), -1.0, 1.0)
        if not self.samples_read:
            raise InvalidInput("the sound has no samples", param="audio")

    def _resampled(self) -> Iterator[np.ndarray]:
        given = self._given
        if given.samples is not None:
            self._check_length(len(given.samples) / given.rate)
            return resample([given.samples], given.rate, self._rate)
        if given.file[:4] == wav.MAGIC:
            found = wav.read_format(given.file)
            if found.tag in (wav.PCM, wav.FLOAT):
                rate = check_rate(found.rate)
                self._check_length(found.seconds)
                mixed = (block.mean(axis=1) for block in wav.blocks(given.file, found))
                return resample(mixed, rate, self._rate)
        return self._decoded(find_demuxer(given.file))

    def _decoded(self, demuxer: str) -> Iterator[np.ndarray]:
        """What FFmpeg makes of the file; whatever it stumbles over is the file's fault."""
        av = import_av()
        if demuxer == "mov":
            check_index(self._given.file)
        self._check_length(_measure(av, self._given.file, demuxer, self._max_seconds))
        try:
            with _open(av, self._given.file, demuxer) as container:
                stream = _find_stream(container)
                rate = check_rate(stream.codec_context.sample_rate)
                yield from resample(self._mixed(av, container, stream), rate, self._rate)
        except av.FFmpegError as error:
            raise not_readable() from error

    def _mixed(
        self, av: Any, container: InputContainer, stream: AudioStream
    ) -> Iterator[np.ndarray]:
        rate = stream.codec_context.sample_rate
        read, bad = 0, 0
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                bad += 1
                if bad > MAX_BAD_FRAMES:
                    raise not_readable() from error
                continue
            for frame in frames:
                if frame.sample_rate != rate:
                    raise InvalidInput("the sound changes its sample rate", param="audio")
                read += frame.samples
                # before it is resampled: there, one sample of a low rate becomes many
                self._check_length(read / rate)
                yield mix(frame)

    def _check_length(self, seconds: float) -> None:
        if seconds > self._max_seconds:
            raise too_long(seconds, self._max_seconds)


def find_demuxer(data: bytes) -> str:
    """FFmpeg's name of the format that a file's first bytes say; `InvalidInput` for no known one."""
    if data[:4] == wav.MAGIC and data[8:12] == b"WAVE":
        return "wav"
    if data[:4] == b"OggS":
        return "ogg"
    if data[:4] == b"fLaC":
        return "flac"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if data[4:8] == b"ftyp":
        return "mov"
    if data[:3] == b"ID3":
        return "mp3"
    if len(data) > 2 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        # the layer's two bits are zero in AAC alone
        return "mp3" if data[1] & 0x06 else "aac"
    raise not_readable()


def resample(blocks: Iterable[np.ndarray], rate: int, wanted: int) -> Iterator[np.ndarray]:
    """Blocks of one channel at another rate; as they are if it is the same."""
    if rate == wanted:
        for block in blocks:
            yield np.ascontiguousarray(block, dtype=np.float32)
        return
    av = import_av()
    resampler = av.AudioResampler(format="flt", layout="mono", rate=wanted)
    for block in blocks:
        for start in range(0, len(block), wav.BLOCK_FRAMES):
            row = np.ascontiguousarray(block[start : start + wav.BLOCK_FRAMES], dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(row[np.newaxis], format="flt", layout="mono")
            frame.sample_rate = rate
            yield from (each.to_ndarray()[0] for each in resampler.resample(frame))
    yield from (each.to_ndarray()[0] for each in resampler.resample(None))


def mix(frame: Any) -> np.ndarray:
    """A decoded frame as one channel: the mean of all, full scale 1."""
    array = frame.to_ndarray()
    channels = frame.layout.nb_channels
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidInput(
            f"the sound has {channels} channels, at most {MAX_CHANNELS} are read", param="audio"
        )
    if not frame.format.is_planar:
        array = array.reshape(-1, channels).T
    if array.dtype.kind == "f":
        return array.astype(np.float32).mean(axis=0)
    if array.dtype == np.uint8:
        return (array.astype(np.float32).mean(axis=0) - 128.0) / 128.0
    return array.astype(np.float32).mean(axis=0) / -float(np.iinfo(array.dtype).min)


def import_av() -> Any:
    """FFmpeg's libraries; `MissingExtra` prints the pip command."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "sound other than WAV at the model's own rate needs the package 'av'",
            hint="pip install 'wherry[audio]'",
        ) from error
    return av


def too_long(seconds: float, limit: float) -> InvalidInput:
    """The refusal of a sound that is too long."""
    return InvalidInput(
        f"the sound is {seconds:.0f} seconds long or more, the limit is {limit:.0f}",
        hint="send it in parts",
        param="audio",
    )


def not_readable() -> InvalidInput:
    """The refusal of what is no sound."""
    return InvalidInput(
        "the file is not a sound that can be read, or it is cut off",
        hint=f"formats: {FORMATS}",
        param="audio",
    )


def _open(av: Any, file: bytes, demuxer: str) -> InputContainer:
    return av.open(io.BytesIO(file), mode="r", format=demuxer, metadata_errors="ignore")


def _find_stream(container: InputContainer) -> AudioStream:
    """The first sound track; of a film, its pictures are passed over."""
    if len(container.streams) > MAX_STREAMS:
        raise InvalidInput(f"the file has more than {MAX_STREAMS} tracks", param="audio")
    if not container.streams.audio:
        raise InvalidInput("the file has no sound track", param="audio")
    stream = container.streams.audio[0]
    # a decoder that FFmpeg was built without leaves a track without one
    codec = getattr(stream.codec_context, "name", None)
    if codec not in CODECS:
        raise InvalidInput(
            f"sound of the codec {codec!r} is not read", hint=f"formats: {FORMATS}", param="audio"
        )
    return stream


def _measure(av: Any, file: bytes, demuxer: str, enough: float) -> float:
    """Seconds of a file's sound, as its packets say, without decoding any; stops at enough."""
    try:
        with _open(av, file, demuxer) as container:
            stream = _find_stream(container)
            check_rate(stream.codec_context.sample_rate)
            seconds = 0.0
            for packet in container.demux(stream):
                if packet.duration and packet.time_base:
                    seconds += float(packet.duration * packet.time_base)
                if seconds > enough:
                    break
            return seconds
    except av.FFmpegError as error:
        raise not_readable() from error
