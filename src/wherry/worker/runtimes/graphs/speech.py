# pyright: standard
"""Pairs of graphs that write down what they hear: Whisper, as optimum exports it.

A sound is heard half a minute at a time, in the way of Whisper's authors: the model tells when each
segment begins and ends, and the next half minute begins where the last whole segment ended. What
came before is told to the decoder. Where an answer is poor (it repeats itself, or is unlikely), words
are drawn by chance instead of taking the likeliest, the more so the longer it stays poor. Several
sounds take turns, window by window; memory does not grow with a sound's length.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import FormatNotAllowed, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.audio import audio_options
from wherry.models.tasks.options import read_options
from wherry.models.tasks.sound import Sound
from wherry.models.tasks.speech_recognition import RecognitionInput, Segment, Transcription
from wherry.models.tasks.task import Usage
from wherry.worker.runtimes.graphs.graph import Array, Graph, trial
from wherry.worker.runtimes.graphs.pair import Pair, read_configs
from wherry.worker.runtimes.graphs.spectrum import (
    HOP_SAMPLES,
    RATE,
    WINDOW_SAMPLES,
)
from wherry.worker.runtimes.graphs.speech_tokens import SpeechTokens
from wherry.worker.runtimes.graphs.speech_window import Stopped, Window, find_segments
from wherry.worker.runtimes.threads import iterate_in

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Whisper's own: each is tried only if what came before it was bad."""
WILD_TEMPERATURE = 0.5
"""What was said at a higher one is not told to the next window."""


class SpeechOptions(msgspec.Struct, frozen=True):
    """Options of a bundle, beside those of `AudioOptions`."""

    max_concurrency: Annotated[int, Meta(ge=1, le=64)] = 4
    """Sounds that take turns."""


class SpeechRuntime(ABC):
    """The task `automatic-speech-recognition`, for a framework that opens graphs."""

    max_concurrency = SpeechOptions().max_concurrency

    def __init__(self) -> None:
        self._pair: Pair | None = None
        self._max_seconds = 0.0
        self._computing = threading.Lock()
        self._threads = ThreadPoolExecutor(1)

    @abstractmethod
    def open_graph(self, path: Path, device: str) -> Graph:
        """See `GraphRuntime.open_graph`."""

    def load(self, bundle: Bundle, device: str) -> None:
        """Open the graphs and hear a second of silence."""
        options = read_options(bundle.manifest.options, SpeechOptions)
        self._max_seconds = audio_options(bundle.manifest.options).max_seconds
        self._tokens = SpeechTokens(bundle.folder, read_configs(bundle.folder))
        self._pair = pair = Pair(partial(self.open_graph, device=device), bundle)
        with trial(pair.encoder):
            _try_out(pair, self._tokens)
        self.max_concurrency = options.max_concurrency
        self._threads = ThreadPoolExecutor(self.max_concurrency, "listen")

    def stream(
        self, item: RecognitionInput, cancelled: threading.Event, tenant: str
    ) -> AsyncIterator[Transcription]:
        """A transcription a segment; the last has language, duration and usage."""
        pair = self._pair
        if pair is None:
            raise ModelFailed("the model is not loaded")
        self._tokens.check(item.options)
        return iterate_in(self._threads, lambda: self._transcribe(pair, item, cancelled))

    def close(self) -> None:
        """Free the graphs."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pair = None

    def _transcribe(
        self, pair: Pair, item: RecognitionInput, cancelled: threading.Event
    ) -> Generator[Transcription, None, None]:
        tokens, options = self._tokens, item.options
        sound = Sound(item.audio, RATE, self._max_seconds)
        ahead = Ahead(sound.pieces())
        language = options.language or ""
        temperatures = (options.temperature,) if options.temperature else TEMPERATURES
        said = tokens.encode(options.prompt) if options.prompt else []
        number = 0
        try:
            while len(samples := ahead.window()):
                with self._computing:
                    window = Window(pair, tokens, samples, cancelled)
                    language = language or window.find_language()
                    start = tokens.begin(said, language, translate=options.translate)
                    heard = window.listen(start, temperatures)
                segments, used = find_segments(tokens, heard, len(samples))
                for segment in segments:
                    yield Transcription(segments=[_placed(segment, number, ahead.passed)])
                    number += 1
                is_wild = heard.temperature > WILD_TEMPERATURE
                said = [] if is_wild else tokens.remember([*said, *heard.ids])
                ahead.move(used)
        except Stopped:
            pass
        yield Transcription(
            language=language or "en",
            duration=sound.seconds_read,
            usage=Usage(rows=1, audio_ms=round(ahead.passed * 1000 / RATE)),
        )


class Ahead:
    """The part of a sound that is not yet understood."""

    def __init__(self, pieces: Iterable[Array]) -> None:
        self._pieces = iter(pieces)
        self._held = np.zeros(0, np.float32)
        self.passed = 0
        """Samples that are."""

    def window(self) -> Array:
        """The next half minute, less at the end; empty behind it."""
        pieces = [self._held]
        size = len(self._held)
        while size < WINDOW_SAMPLES and (piece := next(self._pieces, None)) is not None:
            pieces.append(piece)
            size += len(piece)
        if len(pieces) > 1:
            self._held = np.concatenate(pieces)
        return self._held[:WINDOW_SAMPLES]

    def move(self, samples: int) -> None:
        """So much of the window is understood."""
        self._held = self._held[samples:]
        self.passed += samples


def _try_out(pair: Pair, tokens: SpeechTokens) -> None:
    """Hear a second of silence and say two tokens: graphs that open may still not run."""
    window = Window(pair, tokens, np.zeros(RATE, np.float32))
    known = len(window.look())
    if known <= tokens.first_time:
        raise FormatNotAllowed(
            f"the decoder knows {known} tokens, 'tokenizer.json' has more: they are of two models"
        )
    start = tokens.begin([], window.find_language(), translate=False)
    window.listen(start, TEMPERATURES[:1], most=2)


def _placed(segment: Segment, number: int, passed: int) -> Segment:
    """A segment of a window in the time of the whole sound."""
    return msgspec.structs.replace(
        segment,
        id=number,
        start=round(segment.start + passed / RATE, 3),
        end=round(segment.end + passed / RATE, 3),
        seek=passed // HOP_SAMPLES,
    )
