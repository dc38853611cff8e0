# pyright: standard
"""Searches for the likeliest answer of a decoder, a token at a time, as transformers does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.models.tasks.text_to_text import Decoding
from wherry.worker.runtimes.graphs.graph import Array

IMPOSSIBLE = -np.inf


class GenerationConfig(msgspec.Struct, frozen=True):
    """What `generation_config.json` says of a model's tokens, `config.json` where that is silent."""

    decoder_start_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int = 0
    forced_bos_token_id: int | None = None
    """The first answered token, whatever the model likes."""
    forced_eos_token_id: int | None = None
    """The last one, of an answer that is as long as it may be."""
    banned_token_ids: tuple[int, ...] = ()
    early_stopping: bool = False


class Found(msgspec.Struct):
    """An answer: ids without the start, the end included."""

    ids: list[int]
    has_ended: bool


class Step(msgspec.Struct):
    """What the search wants to know next: the last ids of rows, and which rows go on."""

    ids: Array
    """int64 [rows]."""
    rows: Array
    """int64 [rows]: of the step before, which each goes on from."""


Decode = Callable[[Step | None], Array]
"""Scores of the next token, float32 [rows, vocabulary]; None asks for the first."""


class Constraints:
    """What may not come next, whatever the model likes."""

    def __init__(self, config: GenerationConfig, decoding: Decoding, most_tokens: int) -> None:
        self._config = config
        self._least = decoding.min_tokens or 0
        self._most = most_tokens
        self._run = decoding.no_repeat_ngram_size or 0

    def apply(self, scores: Array, answers: Sequence[Sequence[int]]) -> None:
        """Make tokens impossible, in place; `answers` holds the ids of each row so far."""
        config, length = self._config, len(answers[0])
        scores[:, list(config.banned_token_ids)] = IMPOSSIBLE
        if length < self._least:
            scores[:, list(config.eos_token_ids)] = IMPOSSIBLE
        if self._run:
            for row, answer in enumerate(answers):
                scores[row, _repeating(answer, self._run, config)] = IMPOSSIBLE
        if length == 0 and config.forced_bos_token_id is not None:
            _force(scores, config.forced_bos_token_id)
        if length == self._most - 1 and config.forced_eos_token_id is not None:
            _force(scores, config.forced_eos_token_id)


def _force(scores: Array, token: int) -> None:
    scores[:, :] = IMPOSSIBLE
    scores[:, token] = 0.0


def _repeating(answer: Sequence[int], size: int, config: GenerationConfig) -> list[int]:
    """Tokens that would make the last `size` ones occur twice."""
    whole = [config.decoder_start_token_id, *answer]
    if len(whole) + 1 < size:
        return []
    begin = tuple(whole[len(whole) - size + 1 :])
    return [
        whole[at + size - 1]
        for at in range(len(whole) - size + 1)
        if tuple(whole[at : at + size - 1]) == begin
    ]


def search_greedily(
    decode: Decode, count: int, constraints: Constraints, config: GenerationConfig, most: int
) -> list[Found]:
    """The likeliest token each time, for `count` rows at once."""
    answers: list[list[int]] = [[] for _ in range(count)]
    ended = np.zeros(count, bool)
    step: Step | None = None
    for _ in range(most):
        scores = decode(step)
        constraints.apply(scores, answers)
        ids = np.where(ended, config.pad_token_id, scores.argmax(axis=1))
        for row in np.flatnonzero(~ended):
            answers[row].append(int(ids[row]))
        # rows that have ended go on being computed: their length keeps the others' lengths right
        for row in np.flatnonzero(ended):
            answers[row].append(config.pad_token_id)
        ended |= np.isin(ids, config.eos_token_ids)
        if ended.all():
            break
        step = Step(ids.astype(np.int64), np.arange(count))
    return [_cut(answer, config) for answer in answers]


def _cut(answer: list[int], config: GenerationConfig) -> Found:
    for at, token in enumerate(answer):
        if token in config.eos_token_ids:
            return Found(answer[: at + 1], has_ended=True)
    return Found(answer, has_ended=False)


class _Beams:
    """Candidates for one source."""

    def __init__(self, width: int, penalty: float, *, early: bool) -> None:
        self.width, self._penalty, self._early = width, penalty, early
        self.ended: list[tuple[float, list[int], bool]] = []
        self.is_done = False

    def add(self, total: float, ids: list[int], *, has_ended: bool) -> None:
        """An answer that has ended, or that is as long as it may be."""
        score = total / (len(ids) ** self._penalty) if ids else total
        self.ended.append((score, ids, has_ended))
        self.ended.sort(key=lambda each: -each[0])
        del self.ended[self.width :]

    def check_done(self, best_total: float, length: int) -> None:
        """Whether no candidate can become better than the worst that has ended."""
        if len(self.ended) < self.width:
            return
        best = best_total / (length**self._penalty)
        self.is_done = self._early or self.ended[-1][0] >= best

    @property
    def best(self) -> Found:
        """The likeliest answer."""
        _, ids, has_ended = self.ended[0]
        return Found(ids, has_ended)


def search_by_beams(
    decode: Decode,
    count: int,
    constraints: Constraints,
    config: GenerationConfig,
    most: int,
    decoding: Decoding,
) -> list[Found]:
    """The likeliest whole answer of `num_beams` candidates that are followed at once."""
    width = decoding.num_beams or 1
    penalty = 1.0 if decoding.length_penalty is None else decoding.length_penalty
    beams = [_Beams(width, penalty, early=config.early_stopping) for _ in range(count)]
    totals = np.full((count, width), IMPOSSIBLE, np.float64)
    totals[:, 0] = 0.0  # all begin alike: the first step chooses among one's successors
    answers: list[list[int]] = [[] for _ in range(count * width)]
    step: Step | None = None
    for length in range(1, most + 1):
        scores = log_softmax(decode(step))
        constraints.apply(scores, answers)
        together = scores.reshape(count, width, -1) + totals[:, :, np.newaxis]
        ids, rows, answers = _choose(together, totals, answers, beams, config)
        if length == most:
            break
        for number, each in enumerate(beams):
            each.check_done(float(totals[number].max()), length)
        if all(each.is_done for each in beams):
            break
        step = Step(ids, rows)
    _end_all(beams, totals, answers, width)
    return [each.best for each in beams]


def _choose(
    together: Array,
    totals: Array,
    answers: list[list[int]],
    beams: Sequence[_Beams],
    config: GenerationConfig,
) -> tuple[Array, Array, list[list[int]]]:
    """The next token of every candidate; those that end now are kept apart."""
    count, width, vocabulary = together.shape
    ids = np.full(count * width, config.pad_token_id, np.int64)
    rows = np.arange(count * width)
    chosen: list[list[int]] = [[] for _ in range(count * width)]
    wanted = min(max(2, 1 + len(config.eos_token_ids)) * width, width * vocabulary)
    for number in range(count):
        flat = together[number].reshape(-1)
        best = np.argpartition(-flat, wanted - 1)[:wanted]
        best = best[np.argsort(-flat[best], kind="stable")]
        at = 0
        for rank, each in enumerate(best.tolist()):
            row, token = number * width + each // vocabulary, each % vocabulary
            answer = [*answers[row], token]
            if token in config.eos_token_ids:
                if rank < width and not beams[number].is_done and flat[each] > IMPOSSIBLE:
                    beams[number].add(float(flat[each]), answer, has_ended=True)
                continue
            if at < width:
                here = number * width + at
                totals[number, at] = flat[each]
                ids[here], rows[here], chosen[here] = token, row, answer
                at += 1
        for rest in range(at, width):  # too few tokens are possible: this one leads nowhere
            here = number * width + rest
            totals[number, rest] = IMPOSSIBLE
            rows[here], chosen[here] = here, [*answers[here], config.pad_token_id]
    return ids, rows, chosen


def _end_all(beams: Sequence[_Beams], totals: Array, answers: list[list[int]], width: int) -> None:
    for number, each in enumerate(beams):
        if each.is_done:
            continue
        for at in range(width):
            if totals[number, at] > IMPOSSIBLE or not each.ended:
                each.add(float(totals[number, at]), answers[number * width + at], has_ended=False)


def log_softmax(scores: Array) -> Array:
    """Logarithms of probabilities, float32 [rows, tokens]."""
    shifted: Any = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
