"""WAV files, read strictly and written, without a library.

Read are whole numbers of 8, 16, 24 and 32 bits and floats of 32 and 64; little endian, plain or
"extensible". A header that claims more samples than the file has is refused, unless it says that
it does not know (programs that write to a pipe put the largest number there).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec
import numpy as np

from wherry.errors import InvalidInput
from wherry.models.tasks.audio import MAX_CHANNELS

MAGIC = b"RIFF"
UNKNOWN_BYTES = 0xFFFF_FF00
"""Sizes from here on mean "until the end of the file"."""
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
MAX_CHUNKS = 256
BLOCK_FRAMES = 1 << 16

_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")


class WavFormat(msgspec.Struct, frozen=True):
    """What the header says, and where the samples are."""

    tag: int
    """`PCM`, `FLOAT`, or of another codec."""
    channels: int
    rate: int
    bits: int
    start: int
    size: int
    """Bytes of samples: whole frames."""

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * self.bits // 8

    @property
    def seconds(self) -> float:
        """How long the sound is."""
        return self.size / self.frame_bytes / self.rate if self.rate else 0.0


def read_format(data: bytes) -> WavFormat:
    """The format of a WAV file; `InvalidInput` says what is wrong with it."""
    if data[:4] != MAGIC or data[8:12] != b"WAVE":
        raise _broken("it does not begin like one")
    described: tuple[int, int, int, int] | None = None
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        name, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if name == b"data":
            if described is None:
                raise _broken("its samples come before their format")
            return _check_size(WavFormat(*described, position, size), len(data) - position)
        if position + size > len(data):
            raise _broken("it is cut off")
        if name == b"fmt ":
            described = _read_description(data[position : position + size])
        position += size + size % 2
    raise _broken("it has no samples")


def blocks(data: bytes, found: WavFormat) -> Iterator[np.ndarray]:
    """The samples in pieces, float32 [frames, channels], full scale -1 to 1."""
    step = BLOCK_FRAMES * found.frame_bytes
    for position in range(found.start, found.start + found.size, step):
        end = min(position + step, found.start + found.size)
        yield _to_float(data[position:end], found).reshape(-1, found.channels)


def write_header(rate: int, size: int = UNKNOWN_BYTES) -> bytes:
    """The header of 16-bit samples of one channel; `size` is their bytes, if they are known."""
    whole = min(size + _HEADER.size - 8, 0xFFFF_FFFF)
    return _HEADER.pack(
        MAGIC, whole, b"WAVE", b"fmt ", 16, PCM, 1, rate, 2 * rate, 2, 16, b"data", size
    )


def to_pcm(samples: np.ndarray) -> bytes:
    """Samples of full scale 1 as 16-bit whole numbers, little endian."""
    return (np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


def write_wav(samples: np.ndarray, rate: int) -> bytes:
    """A WAV file of one channel, 16 bits."""
    pcm = to_pcm(samples)
    return write_header(rate, len(pcm)) + pcm


def _read_description(chunk: bytes) -> tuple[int, int, int, int]:
    if len(chunk) < 16:
        raise _broken("its format is cut off")
    tag, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == EXTENSIBLE:
        if len(chunk) < 40:
            raise _broken("its format is cut off")
        (tag,) = struct.unpack_from("<H", chunk, 24)
    if not 1 <= channels <= MAX_CHANNELS:
        raise _broken(f"it has {channels} channels, at most {MAX_CHANNELS} are read")
    if tag in (PCM, FLOAT):
        if bits not in ((8, 16, 24, 32) if tag == PCM else (32, 64)):
            raise _broken(f"samples of {bits} bits are not read")
        if frame_bytes != channels * bits // 8:
            raise _broken("its format contradicts itself")
    return tag, channels, rate, bits


def _check_size(found: WavFormat, there: int) -> WavFormat:
    size = found.size
    if size >= UNKNOWN_BYTES:
        size = there
    elif size > there:
        raise _broken(f"it is cut off: it has {there} of {size} bytes of samples")
    whole = size - size % max(1, found.frame_bytes)
    return msgspec.structs.replace(found, size=whole)


def _to_float(raw: bytes, found: WavFormat) -> np.ndarray:
    if found.tag == FLOAT:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.frombuffer(raw, f"<f{found.bits // 8}").astype(np.float32)
    if found.bits == 8:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128.0) / 128.0
    if found.bits == 24:
        padded = np.zeros((len(raw) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return padded.view("<i4")[:, 0].astype(np.float32) / 2.0**31
    return np.frombuffer(raw, f"<i{found.bits // 8}").astype(np.float32) / 2.0 ** (found.bits - 1)


def _broken(why: str) -> InvalidInput:
    return InvalidInput(f"the WAV file cannot be read: {why}", param="audio")
