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
import zlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Generator, Iterable, Sequence
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
from wherry.worker.runtimes.graphs.beams import Step, log_softmax
from wherry.worker.runtimes.graphs.graph import Array, Graph, trial
from wherry.worker.runtimes.graphs.pair import Pair, read_configs
from wherry.worker.runtimes.graphs.spectrum import (
    HOP_SAMPLES,
    RATE,
    WINDOW_SAMPLES,
    log_mel_spectrum,
)
from wherry.worker.runtimes.graphs.speech_tokens import SpeechTokens
from wherry.worker.runtimes.threads import iterate_in

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Whisper's own: each is tried only if what came before it was bad."""
POOR_LOGARITHM, POOR_COMPRESSION = -1.0, 2.4
"""An answer is poor whose tokens are less likely in the mean, or whose text shrinks more."""
SILENT = 0.6
"""Above this probability that nothing is said, an unlikely answer is none."""
WILD_TEMPERATURE = 0.5
"""What was said at a higher one is not told to the next window."""


class SpeechOptions(msgspec.Struct, frozen=True):
    """Options of a bundle, beside those of `AudioOptions`."""

    max_concurrency: Annotated[int, Meta(ge=1, le=64)] = 4
    """Sounds that take turns."""


class Heard(msgspec.Struct):
    """What a decoder made of a window."""

    ids: list[int]
    """Without the end."""
    text: str
    temperature: float
    mean_logarithm: float
    silence: float
    """Probability that nothing was said."""

    @property
    def compression(self) -> float:
        """How many times smaller the text becomes: much, if it repeats itself."""
        data = self.text.encode()
        return len(data) / len(zlib.compress(data))

    @property
    def is_nothing(self) -> bool:
        """Whether the model would rather say nothing."""
        return self.silence > SILENT and self.mean_logarithm < POOR_LOGARITHM

    @property
    def is_poor(self) -> bool:
        """Whether another try may be better."""
        is_unlikely = self.mean_logarithm < POOR_LOGARITHM and self.silence <= SILENT
        return is_unlikely or self.compression > POOR_COMPRESSION


class Stopped(Exception):  # noqa: N818 - nothing is wrong: nobody listens any more
    """The work was cancelled between two words."""


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
            scores = Window(pair, self._tokens, np.zeros(RATE)).look()
        if len(scores) <= self._tokens.first_time:
            raise FormatNotAllowed(
                f"the decoder knows {len(scores)} tokens, 'tokenizer.json' has more: they are of two "
                "models"
            )
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
                said = [] if heard.temperature > WILD_TEMPERATURE else [*said, *heard.ids]
                said = [each for each in said if not tokens.is_time(each)]
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
        self._held = np.concatenate(pieces)
        return self._held[:WINDOW_SAMPLES]

    def move(self, samples: int) -> None:
        """So much of the window is understood."""
        self._held = self._held[samples:]
        self.passed += samples


class Window:
    """Half a minute that the encoder has heard."""

    def __init__(
        self,
        pair: Pair,
        tokens: SpeechTokens,
        samples: Array,
        cancelled: threading.Event | None = None,
    ) -> None:
        features = log_mel_spectrum(samples, tokens.config.num_mel_bins)[np.newaxis]
        self._states = pair.read({"input_features": features})
        self._mask = np.ones(self._states.shape[:2], np.int64)
        self._pair, self._tokens = pair, tokens
        self._cancelled = cancelled or threading.Event()
        self._first: Array | None = None

    def look(self) -> Array:
        """Scores of the very first token: of languages, and of silence; float32 [vocabulary]."""
        if (first := self._first) is None:
            decoder = self._pair.write(self._states, self._mask, (self._tokens.start,))
            first = self._first = decoder.scores(None)[0]
        return first

    def find_language(self) -> str:
        """The code of the likeliest language; "" of a model that knows one alone."""
        scores = self.look()
        known = self._tokens.languages
        return max(known, key=lambda code: scores[known[code]], default="")

    def listen(self, start: Sequence[int], temperatures: Sequence[float]) -> Heard:
        """The first answer that is not poor, or the last."""
        logs = log_softmax(self.look()[np.newaxis])[0]
        silence = float(np.exp(logs[self._tokens.silence]))
        heard = self._say(start, temperatures[0], silence)
        for temperature in temperatures[1:]:
            if not heard.is_poor:
                break
            heard = self._say(start, temperature, silence)
        return heard

    def _say(self, start: Sequence[int], temperature: float, silence: float) -> Heard:
        tokens, ids, total = self._tokens, list[int](), 0.0
        decoder = self._pair.write(self._states, self._mask, start)
        random = np.random.default_rng(len(start))
        positions = tokens.config.max_target_positions
        step: Step | None = None
        for _ in range(min(positions // 2, positions - len(start))):
            if self._cancelled.is_set():
                raise Stopped
            scores = decoder.scores(step)[0]
            tokens.constrain(scores, ids)
            token = _choose(scores, temperature, random)
            total += float(log_softmax(scores[np.newaxis])[0, token])
            if token == tokens.end:
                break
            ids.append(token)
            step = Step(np.array([token], np.int64), np.arange(1))
        mean = total / (len(ids) + 1)
        return Heard(ids, tokens.decode(ids).strip(), temperature, mean, silence)


def find_segments(tokens: SpeechTokens, heard: Heard, samples: int) -> tuple[list[Segment], int]:
    """What was said when, in seconds of the window, and how many samples are understood by it."""
    if heard.is_nothing:
        return [], samples
    ids = heard.ids
    is_time = [tokens.is_time(each) for each in ids]
    ends = [at for at in range(1, len(ids)) if is_time[at - 1] and is_time[at]]
    ends_once = is_time[-2:] == [False, True]
    seconds = samples / RATE
    if not ends:
        last = next((tokens.seconds_of(each) for each in reversed(ids) if tokens.is_time(each)), 0)
        return _spoken(tokens, heard, ids, 0.0, min(last or seconds, seconds)), samples
    if ends_once:
        ends.append(len(ids))
    found: list[Segment] = []
    for begin, end in zip([0, *ends], ends, strict=False):
        times = [tokens.seconds_of(ids[at]) for at in (begin, end - 1)]
        found += _spoken(tokens, heard, ids[begin:end], *times)
    used = samples if ends_once else round(tokens.seconds_of(ids[ends[-1] - 1]) * RATE)
    return found, used if 0 < used < samples else samples


def _spoken(
    tokens: SpeechTokens, heard: Heard, ids: Sequence[int], start: float, end: float
) -> list[Segment]:
    """A segment; none if it has no words."""
    text = tokens.decode(ids)
    if not text.strip():
        return []
    return [
        Segment(
            id=0,
            start=start,
            end=max(start, end),
            text=text,
            tokens=list(ids),
            temperature=heard.temperature,
            avg_logprob=heard.mean_logarithm,
            compression_ratio=heard.compression,
            no_speech_prob=heard.silence,
        )
    ]


def _placed(segment: Segment, number: int, passed: int) -> Segment:
    """A segment of a window in the time of the whole sound."""
    return msgspec.structs.replace(
        segment,
        id=number,
        start=round(segment.start + passed / RATE, 3),
        end=round(segment.end + passed / RATE, 3),
        seek=passed // HOP_SAMPLES,
    )


def _choose(scores: Array, temperature: float, random: np.random.Generator) -> int:
    """The likeliest token, or one drawn by its likelihood."""
    if temperature:
        scores = scores / temperature + random.gumbel(size=len(scores))
    return int(scores.argmax())
