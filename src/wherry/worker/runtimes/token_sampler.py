# pyright: standard
"""Chooses the next token of an answer from a model's scores, as OpenAI's parameters say."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from wherry.models.tasks.generation import Sampling

Array = np.ndarray[Any, np.dtype[Any]]
LEAST_LOGPROB = -9999.0
LEAST_TEMPERATURE = 1e-5
"""Below it the likeliest token is taken."""


class Chosen(msgspec.Struct):
    """A token, and how likely it was before temperature and the like."""

    token: int
    logprob: float = 0.0
    rivals: list[tuple[int, float]] = []
    """The likeliest tokens with their logarithms, where these are wanted."""


class Sampler:
    """One answer's choices; equal seeds choose equally."""

    def __init__(self, sampling: Sampling, temperature: float, top_p: float, top_k: int) -> None:
        self._temperature = temperature if sampling.temperature is None else sampling.temperature
        self._top_p = top_p if sampling.top_p is None else sampling.top_p
        self._top_k = top_k if sampling.top_k is None else sampling.top_k
        self._frequency = sampling.frequency_penalty or 0.0
        self._presence = sampling.presence_penalty or 0.0
        self._bias = sampling.logit_bias
        self._top_logprobs = sampling.top_logprobs
        seed = None if sampling.seed is None else sampling.seed % (1 << 63)
        self._random = np.random.default_rng(seed)
        self._counts: dict[int, int] = {}

    def choose(self, scores: Array) -> Chosen:
        """The next token; `scores` is float32 [vocabulary] and is changed."""
        chosen = Chosen(0)
        likelihoods = _log_softmax(scores) if self._top_logprobs is not None else None
        self._adjust(scores)
        if self._temperature < LEAST_TEMPERATURE:
            chosen.token = int(scores.argmax())
        else:
            chosen.token = self._draw(scores / np.float32(self._temperature))
        self._counts[chosen.token] = self._counts.get(chosen.token, 0) + 1
        if likelihoods is not None:
            chosen.logprob = _finite(float(likelihoods[chosen.token]))
            chosen.rivals = _likeliest(likelihoods, self._top_logprobs or 0)
        return chosen

    def _adjust(self, scores: Array) -> None:
        if self._frequency or self._presence:
            for token, count in self._counts.items():
                scores[token] -= self._frequency * count + self._presence
        for token, bias in self._bias.items():
            scores[token] += bias

    def _draw(self, scores: Array) -> int:
        """One of the likeliest `top_k` that together have a probability of `top_p`."""
        order = np.argsort(-scores, kind="stable")
        if self._top_k:
            order = order[: self._top_k]
        likelihoods = np.exp(_log_softmax(scores[order].astype(np.float64)))
        if self._top_p < 1:
            before = np.cumsum(likelihoods) - likelihoods
            likelihoods = likelihoods[before < max(self._top_p, 1e-9)]
        totals = np.cumsum(likelihoods)
        at = int(np.searchsorted(totals, self._random.random() * totals[-1], side="right"))
        return int(order[min(at, len(totals) - 1)])


def _likeliest(likelihoods: Array, count: int) -> list[tuple[int, float]]:
    if not count:
        return []
    best = np.argpartition(-likelihoods, min(count, len(likelihoods)) - 1)[:count]
    best = best[np.argsort(-likelihoods[best], kind="stable")]
    return [(int(token), _finite(float(likelihoods[token]))) for token in best]


def _log_softmax(scores: Array) -> Array:
    shifted: Any = scores - scores.max()
    return shifted - np.log(np.exp(shifted).sum())


def _finite(logprob: float) -> float:
    return min(0.0, max(logprob, LEAST_LOGPROB))
