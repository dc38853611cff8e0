"""Runtime `faster_whisper`: Whisper models in CTranslate2's format, through faster-whisper.

A bundle is a folder as `ct2-transformers-converter` writes it: `model.bin`, `config.json`,
`tokenizer.json` and a vocabulary, `preprocessor_config.json` for the larger ones. One computing
thread (option `threads`); several sounds take turns, window by window, so that a long one does not
keep the short ones waiting. A sound is read in chunks of two minutes, cut where it is quiet, and
each chunk is told the words before it: memory does not grow with its length. The voice activity
filter of faster-whisper is not used.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import msgspec
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.transcribe import Segment as WhisperSegment
from msgspec import Meta

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.audio import audio_options
from wherry.models.tasks.options import read_options
from wherry.models.tasks.sound import Sound
from wherry.models.tasks.speech_recognition import (
    RecognitionInput,
    RecognitionOptions,
    Segment,
    Transcription,
    Word,
)
from wherry.models.tasks.task import Usage
from wherry.worker.runtimes.threads import iterate_in

RATE = 16_000
CHUNK_SECONDS = 120.0
QUIET_SECONDS = 30.0
"""A chunk ends at the quietest place of its last so many seconds."""
PAUSE_SAMPLES = RATE // 50
FRAMES_PER_SECOND = 100
MAX_PROMPT_TOKENS = 223
"""Whisper looks no further back."""
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Whisper's own: each is tried only if what came before it was bad."""


class WhisperOptions(msgspec.Struct, frozen=True):
    """Options of a bundle, beside those of `AudioOptions`."""

    beam_size: Annotated[int, Meta(ge=1, le=16)] = 5
    compute_type: str = "int8"
    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    max_concurrency: Annotated[int, Meta(ge=1, le=64)] = 4
    """Sounds that take turns."""


class Stopped(Exception):  # noqa: N818 - nothing is wrong: nobody listens any more
    """The work was cancelled between two windows."""


class Listener(WhisperModel):
    """Whisper that looks, before each window, whether anybody still waits."""

    def __init__(self, folder: str, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self._here = threading.local()
        self._preparing = threading.Lock()

    def listen(
        self, samples: np.ndarray, cancelled: threading.Event, **wishes: Any
    ) -> tuple[Iterator[WhisperSegment], str]:
        """Segments as they are understood, and the language."""
        self._here.cancelled = cancelled
        with self._preparing:  # spectra of a whole chunk take memory: one at a time
            found, info = self.transcribe(samples, **wishes)
        return self._watched(iter(found), cancelled), info.language

    def _watched(
        self, found: Iterator[WhisperSegment], cancelled: threading.Event
    ) -> Iterator[WhisperSegment]:
        while True:
            self._here.cancelled = cancelled  # each step may be made in another thread
            segment = next(found, None)
            if segment is None:
                return
            yield segment

    def encode(self, features: np.ndarray) -> Any:
        """Whisper's, for one window."""
        if self._here.cancelled.is_set():
            raise Stopped
        return super().encode(features)


class FasterWhisperRuntime:
    """One model; each sound has a thread, the model computes for them in turn."""

    max_concurrency = WhisperOptions().max_concurrency

    def __init__(self) -> None:
        self._model: Listener | None = None
        self._max_seconds = 0.0
        self._beam_size = 0
        self._threads = ThreadPoolExecutor(1)

    def load(self, bundle: Bundle, device: str) -> None:
        """Open the folder that holds `model.bin`."""
        options = read_options(bundle.manifest.options, WhisperOptions)
        folder = bundle.main_file.parent
        if not (folder / "tokenizer.json").is_file():
            raise InvalidInput("the bundle has no 'tokenizer.json' beside its model.bin")
        kind, _, number = device.partition(":")
        self._model = Listener(
            str(folder),
            device=kind,
            device_index=int(number or 0),
            compute_type=options.compute_type,
            cpu_threads=options.threads,
            local_files_only=True,
        )
        self._beam_size = options.beam_size
        self._max_seconds = audio_options(bundle.manifest.options).max_seconds
        self.max_concurrency = options.max_concurrency
        self._threads = ThreadPoolExecutor(self.max_concurrency, "listen")

    def stream(
        self, item: RecognitionInput, cancelled: threading.Event, tenant: str
    ) -> AsyncIterator[Transcription]:
        """A transcription a segment; the last has language, duration and usage."""
        model = self._model
        if model is None:
            raise ModelFailed("the model is not loaded")
        _check_language(model, item.options)
        return iterate_in(self._threads, lambda: self._transcribe(model, item, cancelled))

    def close(self) -> None:
        """Free the model."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._model = None

    def _transcribe(
        self, model: Listener, item: RecognitionInput, cancelled: threading.Event
    ) -> Generator[Transcription, None, None]:
        sound = Sound(item.audio, RATE, self._max_seconds)
        wishes = self._wishes(item.options)
        number, offset, heard = 0, 0.0, 0.0
        said: list[int] = []
        try:
            for chunk in _chunks(sound):
                found, wishes["language"] = model.listen(chunk, cancelled, **wishes)
                for each in found:
                    said = [*said, *each.tokens][-MAX_PROMPT_TOKENS:]
                    segment = _segment(each, number, offset)
                    number, heard = number + 1, segment.end
                    yield Transcription(segments=[segment])
                offset += len(chunk) / RATE
                wishes["initial_prompt"] = said or None
            heard = sound.seconds_read
        except Stopped:
            pass
        yield Transcription(
            language=wishes["language"] or "",
            duration=sound.seconds_read,
            has_words=item.options.word_timestamps,
            usage=Usage(rows=1, audio_ms=round(heard * 1000)),
        )

    def _wishes(self, options: RecognitionOptions) -> dict[str, Any]:
        return {
            "beam_size": self._beam_size,
            "language": options.language,
            "initial_prompt": options.prompt or None,
            "temperature": [options.temperature] if options.temperature else list(TEMPERATURES),
            "task": "translate" if options.translate else "transcribe",
            "word_timestamps": options.word_timestamps,
        }


def _check_language(model: Listener, options: RecognitionOptions) -> None:
    known = model.supported_languages
    if options.language is not None and options.language not in known:
        raise InvalidInput(
            f"the model does not know the language {options.language!r}",
            hint="it knows " + ", ".join(known),
            param="language",
        )


def _chunks(sound: Sound) -> Iterator[np.ndarray]:
    """The sound in parts of at most `CHUNK_SECONDS`, each ending where it is quiet."""
    most = int(CHUNK_SECONDS * RATE)
    held: list[np.ndarray] = []
    size = 0
    for piece in sound.pieces():
        held.append(piece)
        size += len(piece)
        while size > most:
            joined = np.concatenate(held)
            cut = _find_pause(joined[:most])
            yield joined[:cut]
            held, size = [joined[cut:]], size - cut
    if size:
        yield np.concatenate(held)


def _find_pause(samples: np.ndarray) -> int:
    """Where the last part of a chunk is quietest."""
    tail = samples[-int(QUIET_SECONDS * RATE) :]
    steps = tail[: len(tail) - len(tail) % PAUSE_SAMPLES].reshape(-1, PAUSE_SAMPLES)
    quietest = int(np.square(steps).mean(axis=1).argmin())
    return len(samples) - len(tail) + quietest * PAUSE_SAMPLES + PAUSE_SAMPLES // 2


def _segment(found: WhisperSegment, number: int, offset: float) -> Segment:
    """A segment of a chunk, in the time of the whole sound."""
    return Segment(
        id=number,
        start=round(float(found.start) + offset, 3),
        end=round(float(found.end) + offset, 3),
        text=found.text,
        tokens=list(found.tokens),
        temperature=found.temperature or 0.0,
        avg_logprob=found.avg_logprob,
        compression_ratio=found.compression_ratio,
        no_speech_prob=found.no_speech_prob,
        seek=found.seek + round(offset * FRAMES_PER_SECOND),
        words=[
            Word(
                word=each.word.strip(),
                start=round(float(each.start) + offset, 3),
                end=round(float(each.end) + offset, 3),
                probability=float(each.probability),
            )
            for each in found.words or ()
        ],
    )
