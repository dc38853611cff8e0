# pyright: standard
"""Whisper's tokens: words, and those that stand for times, languages and what is to be done."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.tasks.options import read_options
from wherry.models.tasks.speech_recognition import RecognitionOptions
from wherry.worker.runtimes.graphs.beams import IMPOSSIBLE, log_softmax
from wherry.worker.runtimes.graphs.graph import Array
from wherry.worker.runtimes.graphs.text_encoder import open_tokenizer

LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
SECONDS_PER_TIME = 0.02
ENGLISH_VOCABULARY = 51_864
"""Size of the models that know English alone."""


class SpeechConfig(msgspec.Struct, frozen=True):
    """What `generation_config.json`, or else `config.json`, says of a model."""

    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    max_initial_timestamp_index: int = 50
    is_multilingual: bool | None = None
    max_target_positions: int = 448
    num_mel_bins: int = 80
    vocab_size: int = 0


class SpeechTokens:
    """The numbers of a model's tokens. Threads may share it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.config = read_options(settings, SpeechConfig)
        self._tokenizer: Tokenizer = open_tokenizer(folder / "tokenizer.json")
        self.start = self._number("<|startoftranscript|>")
        self.end = self._number("<|endoftext|>")
        self.before = self._number("<|startofprev|>")
        self.silence = self._number("<|nospeech|>", "<|nocaptions|>")
        self.untimed = self._number("<|notimestamps|>")
        self.first_time = self.untimed + 1
        self._transcribe = self._number("<|transcribe|>")
        self._translate = self._number("<|translate|>")
        self._never = [self.untimed, *self._known(self.config.suppress_tokens)]
        self._never_first = self._known(self.config.begin_suppress_tokens)
        self.languages = self._find_languages()
        """Code of ISO 639 → its token; none of a model that knows English alone."""

    def _number(self, *names: str) -> int:
        for name in names:
            if (number := self._tokenizer.token_to_id(name)) is not None:
                return number
        raise FormatNotAllowed(f"'tokenizer.json' is not of Whisper: it has no {names[0]!r}")

    def _known(self, numbers: Sequence[int]) -> list[int]:
        return [each for each in numbers if 0 <= each < self.config.vocab_size]

    def _find_languages(self) -> dict[str, int]:
        stated = self.config.is_multilingual
        if stated is False or (stated is None and self.config.vocab_size <= ENGLISH_VOCABULARY):
            return {}
        added = self._tokenizer.get_added_tokens_decoder()
        return {
            match[1]: number
            for number, token in added.items()
            if (match := LANGUAGE.fullmatch(token.content))
        }

    def check(self, options: RecognitionOptions) -> None:
        """`InvalidInput` for wishes that the model cannot fulfil."""
        if options.word_timestamps:
            raise InvalidInput(
                "the graphs do not tell when each word was said, only each segment",
                hint="leave it out, or serve the model by faster_whisper",
                param="timestamps",
            )
        if options.translate and not self.languages:
            raise InvalidInput("the model knows English alone", param="translate")
        if options.language not in (None, *(self.languages or ("en",))):
            raise InvalidInput(
                f"the model does not know the language {options.language!r}",
                hint="it knows " + ", ".join(self.languages or ("en",)),
                param="language",
            )

    def begin(self, said: Sequence[int], language: str, *, translate: bool) -> list[int]:
        """What a decoder is given: words that came before, the language and the task."""
        before = [self.before, *self.remember(said)] if said else []
        if not self.languages:
            return [*before, self.start]
        task = self._translate if translate else self._transcribe
        return [*before, self.start, self.languages[language], task]

    def remember(self, said: Sequence[int]) -> list[int]:
        """The last words of what was said, as many as a decoder is told."""
        room = self.config.max_target_positions // 2 - 1
        return [each for each in said if not self.is_time(each)][-room:]

    def encode(self, text: str) -> list[int]:
        """Words that came before, as tokens."""
        return self._tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The words among tokens."""
        return self._tokenizer.decode([each for each in ids if each < self.end])

    def is_time(self, number: int) -> bool:
        """Whether a token stands for a time."""
        return number >= self.first_time

    def seconds_of(self, number: int) -> float:
        """The time that a token stands for, from the start of its window."""
        return (number - self.first_time) * SECONDS_PER_TIME

    def constrain(self, scores: Array, said: Sequence[int]) -> None:
        """Make impossible, in place, what cannot follow: times come in pairs and only go on.

        Args:
            scores: float32 [vocabulary].
            said: the window's tokens so far.
        """
        first, end = self.first_time, self.end
        scores[self._never] = IMPOSSIBLE
        if not said:
            scores[self._never_first] = IMPOSSIBLE
            scores[:first] = IMPOSSIBLE
            scores[first + self.config.max_initial_timestamp_index + 1 :] = IMPOSSIBLE
        times = [each for each in said if self.is_time(each)]
        is_after_time = bool(said) and self.is_time(said[-1])
        closes = is_after_time and len(said) > 1 and not self.is_time(said[-2])
        if closes:  # another time, which opens the next segment, or the end
            scores[:end] = IMPOSSIBLE
        elif is_after_time:
            scores[first:] = IMPOSSIBLE
        if times:
            scores[first : times[-1] + (not closes)] = IMPOSSIBLE
        logs = log_softmax(scores[np.newaxis])[0]
        if np.logaddexp.reduce(logs[first:]) > logs[:first].max():
            scores[:first] = IMPOSSIBLE
