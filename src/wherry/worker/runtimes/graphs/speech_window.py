# pyright: standard
"""Half a minute of sound: what a decoder says of it, and which of that is whole."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence

import msgspec
import numpy as np

from wherry.models.tasks.speech_recognition import Segment
from wherry.worker.runtimes.graphs.beams import Step, log_softmax
from wherry.worker.runtimes.graphs.graph import Array
from wherry.worker.runtimes.graphs.pair import Pair
from wherry.worker.runtimes.graphs.spectrum import RATE, log_mel_spectrum
from wherry.worker.runtimes.graphs.speech_tokens import SpeechTokens

POOR_LOGARITHM, POOR_COMPRESSION = -1.0, 2.4
"""An answer is poor whose tokens are less likely in the mean, or whose text shrinks more."""
SILENT = 0.6
"""Above this probability that nothing is said, an unlikely answer is none."""
LEAST_SAMPLES = RATE
"""A window is moved on by so many at least, however little of it is understood."""


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

    def listen(
        self, start: Sequence[int], temperatures: Sequence[float], most: int | None = None
    ) -> Heard:
        """The first answer that is not poor, or the last; of at most so many tokens."""
        positions = self._tokens.config.max_target_positions
        most = min(most or positions // 2, positions - len(start))
        logs = log_softmax(self.look()[np.newaxis])[0]
        silence = float(np.exp(logs[self._tokens.silence]))
        heard = self._say(start, temperatures[0], most, silence)
        for temperature in temperatures[1:]:
            if not heard.is_poor:
                break
            heard = self._say(start, temperature, most, silence)
        return heard

    def _say(self, start: Sequence[int], temperature: float, most: int, silence: float) -> Heard:
        tokens, ids, total = self._tokens, list[int](), 0.0
        decoder = self._pair.write(self._states, self._mask, start)
        random = np.random.default_rng(len(start))
        step: Step | None = None
        for _ in range(most):
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
    return found, min(max(used, LEAST_SAMPLES), samples)


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


def _choose(scores: Array, temperature: float, random: np.random.Generator) -> int:
    """The likeliest token, or one drawn by its likelihood."""
    if temperature:
        scores = scores / temperature + random.gumbel(size=len(scores))
    return int(scores.argmax())
