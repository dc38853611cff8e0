"""What models share that make a text of a text, whatever computes them.

A model of sentences gets a text line by line, as it was trained; a summary is made of the whole.
Only requests that are searched for alike share a batch.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from wherry.errors import ContextLengthExceeded, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.languages import (
    LanguageOptions,
    LanguagePair,
    choose_languages,
    require_language,
)
from wherry.models.tasks.options import read_options
from wherry.models.tasks.text_to_text import (
    Decoding,
    TextToTextInput,
    TextToTextOutput,
    text_usage,
    with_defaults,
)
from wherry.worker.runtimes.runtime import Prepared

LINES = re.compile(r"((?<!\s)\s*\n\s*|\A\s+|(?<!\s)\s+\Z)")
"""Looked for only where blanks begin: within a million of them, it would be a million times."""
MAX_LINES = 1000
TRIAL = "A trial."
TASKS = ("translation", "summarization")

Tokens = list[Any]
"""Ids, or tokens as texts: as the framework wants them."""


class TextToTextOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here, beside `LanguageOptions`.

    The settings of `Decoding` may be given, too: they hold where a request has none, and
    `max_tokens` for all.
    """

    prefix: str = ""
    """Before every text; `{source}` and `{target}` become the model's codes of the languages."""
    language_tokens: bool = False
    """The languages are tokens: of the source in the text, of the target as the first answered."""
    max_input_tokens: Annotated[int, Meta(ge=4, le=1 << 17)] = 512
    """Longest line, special tokens included."""
    truncate: bool = False
    """Cut longer ones; false answers them with `context_length_exceeded`."""
    split_lines: bool | None = None
    """Every line for itself; by default so for translations only."""
    max_tokens: int = 256
    num_beams: int = 1


class Generated(msgspec.Struct):
    """What a model answered to one line."""

    tokens: Tokens
    is_cut: bool = False


class Job(msgspec.Struct):
    """A text on its way through a model."""

    text: str
    pieces: list[Tokens | str]
    """Lines as tokens; blanks between them as they are."""
    pair: LanguagePair
    decoding: Decoding

    @property
    def lines(self) -> list[Tokens]:
        """Those that the model sees."""
        return [piece for piece in self.pieces if not isinstance(piece, str)]


class TextToTextModel(ABC):
    """A loaded model; see `BatchRuntime` for the contract of `prepare` and `answer`."""

    max_batch_rows = 8
    max_batch_cost = 4096

    def __init__(self, bundle: Bundle) -> None:
        if bundle.manifest.task not in TASKS:
            raise InvalidInput(
                f"a sequence-to-sequence model does {' or '.join(TASKS)}, not "
                f"{bundle.manifest.task!r}"
            )
        self._is_translation = bundle.manifest.task == "translation"
        self.options = read_options(bundle.manifest.options, TextToTextOptions)
        self.languages = read_options(bundle.manifest.options, LanguageOptions)
        defaults = read_options(bundle.manifest.options, Decoding)
        self._defaults = with_defaults(
            defaults,
            Decoding(max_tokens=self.options.max_tokens, num_beams=self.options.num_beams),
        )

    @abstractmethod
    def encode(self, text: str, pair: LanguagePair) -> Tokens:
        """Tokens of a line with the model's special ones; safe in many threads."""

    @abstractmethod
    def decode(self, tokens: Tokens, pair: LanguagePair) -> str:
        """The text of an answer."""

    @abstractmethod
    def generate(
        self, sources: Sequence[Tokens], pair: LanguagePair, decoding: Decoding
    ) -> Sequence[Generated]:
        """An answer to each line, in order: at most `max_batch_rows` at once."""

    def try_out(self) -> None:
        """Answer a line at load: files that open may still not run."""
        known = list(self.languages.language_codes)
        item = TextToTextInput(TRIAL, decoding=Decoding(max_tokens=2, num_beams=1))
        if self._is_translation and known:
            item.source_language = self.languages.source_language or known[0]
            item.target_language = self.languages.target_language or known[-1]
        self.answer([self.prepare(item)])

    def prepare(self, item: TextToTextInput) -> Prepared:
        """Tokenise a text, line by line."""
        pair = LanguagePair()
        if self._is_translation:
            pair = self._choose_languages(item)
        job = Job(
            item.text,
            [self._prepare_piece(piece, pair) for piece in self._split(item.text)],
            pair,
            with_defaults(item.decoding, self._defaults),
        )
        longest = max(map(len, job.lines), default=0)
        group = (pair.source_code, pair.target_code, job.decoding)
        return Prepared(job, rows=max(1, len(job.lines)), length=longest, group=group)

    def answer(self, batch: Sequence[Prepared]) -> list[TextToTextOutput]:
        """All lines of all texts, then each text put together again."""
        jobs: list[Job] = [prepared.payload for prepared in batch]
        lines = [line for job in jobs for line in job.lines]
        found: list[Generated] = []
        for begin in range(0, len(lines), self.max_batch_rows):
            some = lines[begin : begin + self.max_batch_rows]
            found += self.generate(some, jobs[0].pair, jobs[0].decoding)
        answers = iter(found)
        return [self._put_together(job, answers) for job in jobs]

    def _choose_languages(self, item: TextToTextInput) -> LanguagePair:
        """The languages of one text; those that the model must be told are there."""
        pair = choose_languages(item.source_language, item.target_language, self.languages)
        by_token, prefix = self.options.language_tokens, self.options.prefix
        if by_token or "{source}" in prefix:
            require_language(pair.source_code, "source_language", self.languages)
        if by_token or "{target}" in prefix:
            require_language(pair.target_code, "target_language", self.languages)
        return pair

    def _split(self, text: str) -> list[str]:
        splits = self.options.split_lines
        if not (self._is_translation if splits is None else splits):
            return [text]
        pieces = [piece for piece in LINES.split(text) if piece]
        if len(pieces) > 2 * MAX_LINES:
            raise InvalidInput(
                f"'text' has over {MAX_LINES} lines", hint="send it in parts", param="text"
            )
        return pieces

    def _prepare_piece(self, piece: str, pair: LanguagePair) -> Tokens | str:
        if piece.isspace():
            return piece
        prefix = self.options.prefix.replace("{source}", pair.source_code)
        most = self.options.max_input_tokens
        tokens = self.encode(prefix.replace("{target}", pair.target_code) + piece, pair)
        if len(tokens) <= most:
            return tokens
        if not self.options.truncate:
            what = "a line" if self._is_translation else "the text"
            raise ContextLengthExceeded(
                f"this model reads {most} tokens at once, but {what} has {len(tokens)}",
                hint="put it on several lines" if self._is_translation else "shorten it",
                param="text",
            )
        return [*tokens[: most - 1], tokens[-1]]  # the last one ends a sentence

    def _put_together(self, job: Job, answers: Iterator[Generated]) -> TextToTextOutput:
        words: list[str] = []
        output_tokens, is_cut = 0, False
        for piece in job.pieces:
            if isinstance(piece, str):
                words.append(piece)
                continue
            answer = next(answers)
            words.append(self.decode(answer.tokens, job.pair))
            output_tokens += len(answer.tokens)
            is_cut = is_cut or answer.is_cut
        usage = text_usage(
            job.text, input_tokens=sum(map(len, job.lines)), output_tokens=output_tokens
        )
        return TextToTextOutput(
            text="".join(words),
            source_language=job.pair.source,
            target_language=job.pair.target,
            is_cut=is_cut,
            usage=usage,
        )
