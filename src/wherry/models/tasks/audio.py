"""What tasks that listen take: samples and their rate, or a file.

A file stays as it came until a runtime reads it (`sound.read_sound`): a few bytes may hold hours, so
it is decoded in the runtime's own thread, piece by piece, and never on the worker's loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.tasks.base64_file import decode_file
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskConfig, Tensors

MAX_FILE_BYTES = 64 << 20
MAX_FILES = 64
"""Most sounds in one request."""
MAX_CHANNELS = 64
LEAST_RATE, MOST_RATE = 1_000, 384_000
"""Samples a second."""
DEFAULT_RATE = 16_000
LOUDEST = 8.0
"""Full scale is 1; a recording may pass it, but numbers like these are integers in disguise."""
AUDIO_KEYS = ("audio", "inputs", "input")
"""What the plain form may call its sound; the first is the documented one."""


class AudioInput(msgspec.Struct):
    """One sound: a file as it came, or samples."""

    file: bytes = b""
    samples: np.ndarray | None = None
    """float32 [n], one channel, full scale -1 to 1; None for a file."""
    rate: int = DEFAULT_RATE
    """Samples a second; of a file, its own counts."""
    param: str = "audio"
    """What the client's protocol calls it, for errors."""


class AudioOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that bounds what is listened to."""

    max_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 3600.0
    """Longest sound."""
    max_file_bytes: Annotated[int, Meta(gt=0, le=MAX_FILE_BYTES)] = MAX_FILE_BYTES


def audio_options(options: Mapping[str, Any]) -> AudioOptions:
    """What the bundle says about sounds; `InvalidInput` names a wrong option."""
    return read_options(options, AudioOptions)


def audio_from_plain(body: Mapping[str, Any], config: TaskConfig) -> AudioInput:
    """`{"audio": X, "sample_rate": 16000}`: X is base64, a `data:` URL, numbers, or a file's bytes."""
    for key in AUDIO_KEYS:
        if key in body:
            return read_audio(body[key], body.get("sample_rate", DEFAULT_RATE), config)
    raise InvalidInput(
        "the request has no 'audio'", hint="send a file, or its bytes as base64", param="audio"
    )


def audio_from_tensors(tensors: Tensors, config: TaskConfig) -> list[AudioInput]:
    """One item for each file of a BYTES tensor `audio`, or for each row of samples.

    Samples are FP32 or FP64 (full scale 1), INT16 or INT32 (full scale is the type's), [n] or
    [rows, n]; `sample_rate` holds one number.
    """
    tensor = tensors.get("audio")
    unknown = sorted(set(tensors) - {"audio", "sample_rate"})
    if tensor is None or unknown:
        raise InvalidInput(
            f"unexpected input {unknown[0]!r}" if unknown else "input 'audio' is missing",
            hint="send a tensor 'audio', and 'sample_rate' with samples",
            param="audio",
        )
    if not 1 <= tensor.ndim <= 2:
        raise InvalidInput(
            f"the tensor 'audio' must have shape [n] or [rows, n], not {list(tensor.shape)}",
            param="audio",
        )
    is_files = tensor.dtype == object
    rows = list(tensor.reshape(-1) if is_files else np.atleast_2d(tensor))
    if len(rows) > MAX_FILES:
        raise InvalidInput(
            f"the request has {len(rows)} sounds, the limit is {MAX_FILES}", param="audio"
        )
    rate = DEFAULT_RATE if is_files else _rate_of(tensors)
    return [read_audio(row, rate, config) for row in rows]


def read_audio(value: object, rate: object, config: TaskConfig) -> AudioInput:
    """A sound as base64 text, `data:` URL, bytes of a file, or numbers; not decoded yet."""
    if isinstance(value, str):
        value = decode_file(value, "audio", "sound")
    if isinstance(value, bytes | bytearray | memoryview):
        return AudioInput(check_file(bytes(value), config))
    if isinstance(value, list | tuple | np.ndarray):
        samples = _check_samples(value)
        return AudioInput(samples=samples, rate=check_rate(rate))
    raise InvalidInput(
        f"'audio' must be a base64 text or a list of numbers, not {type(value).__name__}",
        param="audio",
    )


def check_file(file: bytes, config: TaskConfig, param: str = "audio") -> bytes:
    """A file that is neither empty nor too large; what it holds is seen when it is read."""
    limit = audio_options(config.options).max_file_bytes
    if not file:
        raise InvalidInput("the sound file is empty", param=param)
    if len(file) > limit:
        raise InvalidInput(
            f"the sound file has {len(file)} bytes, the limit is {limit}",
            hint="send it compressed, or in parts",
            param=param,
        )
    return file


def check_rate(rate: object) -> int:
    """Samples a second, in the range that is listened to."""
    if not isinstance(rate, int) or isinstance(rate, bool) or not LEAST_RATE <= rate <= MOST_RATE:
        raise InvalidInput(
            f"the sample rate must be {LEAST_RATE} to {MOST_RATE} Hz, not {rate!r}",
            param="sample_rate",
        )
    return rate


def check_loudness(samples: np.ndarray) -> np.ndarray:
    """Samples of which none is infinite, no number, or far beyond full scale."""
    loudest = float(np.abs(samples).max(initial=0.0))
    if not loudest <= LOUDEST:  # also true of NaN
        raise InvalidInput(
            f"samples must lie within -1 and 1, not {loudest:g}",
            hint="divide 16-bit samples by 32768",
            param="audio",
        )
    return samples


def _check_samples(value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidInput("'audio' must be one list of numbers", param="audio") from error
    if array.ndim != 1 or array.dtype.kind not in "if":
        raise InvalidInput(
            "'audio' must be one list of numbers: the samples of one channel",
            hint="mix several channels to one, or send a file",
            param="audio",
        )
    if not array.size:
        raise InvalidInput("'audio' has no samples", param="audio")
    if array.dtype.itemsize in (2, 4) and array.dtype.kind == "i":
        return array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    with np.errstate(over="ignore"):
        return check_loudness(array.astype(np.float32))


def _rate_of(tensors: Tensors) -> int:
    tensor = tensors.get("sample_rate")
    if tensor is None:
        return DEFAULT_RATE
    if tensor.size != 1 or tensor.dtype.kind not in "iu":
        raise InvalidInput("'sample_rate' must be one whole number", param="sample_rate")
    return check_rate(int(tensor.ravel()[0]))
