# pyright: standard
"""Texts ↔ tokens of sequence-to-sequence models: with a `tokenizer.json`, or with sentencepiece.

Files that are looked for in the bundle's folder: `tokenizer.json`; else `source.spm` and
`target.spm` (Marian), or one model of sentencepiece for both. Their numbers are those of `vocab.json`
where there is one.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from wherry.errors import FormatNotAllowed, InvalidInput, MissingExtra
from wherry.models.tasks.languages import LanguagePair

TOKENIZER = "tokenizer.json"
PAIR_MODELS = ("source.spm", "target.spm")
SHARED_MODELS = (
    "sentencepiece.bpe.model",
    "spiece.model",
    "sentencepiece.model",
    "spm.model",
    "tokenizer.model",
)
END = "</s>"


class SequenceText(ABC):
    """One model's words. Threads may share it."""

    @abstractmethod
    def encode(self, text: str, pair: LanguagePair) -> list[str]:
        """Tokens of a text with the special ones around them."""

    @abstractmethod
    def decode(self, tokens: Sequence[str]) -> str:
        """The text of tokens; special ones are left out."""

    @abstractmethod
    def id_of(self, token: str) -> int:
        """A token's number; `InvalidInput` if it has none."""

    @abstractmethod
    def token_of(self, number: int) -> str:
        """The token of a number."""


def open_sequence_text(
    folder: Path, *, adds_end: bool, language_codes: Sequence[str]
) -> SequenceText:
    """The words of the model in a folder.

    Args:
        folder: of the model.
        adds_end: whether sentencepiece's tokens get an end; a `tokenizer.json` says so itself.
        language_codes: tokens that stand for languages; empty if none do.

    Raises:
        InvalidInput: there is no tokenizer.
    """
    if (folder / TOKENIZER).is_file():
        return TokenizerText(folder / TOKENIZER, language_codes)
    if all((folder / name).is_file() for name in PAIR_MODELS):
        source, target = (folder / name for name in PAIR_MODELS)
        return SentencePieceText(source, target, adds_end=adds_end, has_languages=False)
    for name in SHARED_MODELS:
        if (folder / name).is_file():
            return SentencePieceText(
                folder / name,
                folder / name,
                adds_end=adds_end,
                has_languages=bool(language_codes),
            )
    raise InvalidInput(
        f"the bundle has no {TOKENIZER!r} and no model of sentencepiece",
        hint="put the original model's " + ", ".join((TOKENIZER, *PAIR_MODELS)) + " beside it",
    )


class TokenizerText(SequenceText):
    """A `tokenizer.json`. The special tokens that it puts around texts are found by trying."""

    def __init__(self, path: Path, language_codes: Sequence[str]) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers package raises bare Exception
            raise FormatNotAllowed(
                f"{path.name!r} is not a tokenizer.json: {str(error)[:300]}"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._languages = frozenset(language_codes)
        missing = [code for code in language_codes if self._tokenizer.token_to_id(code) is None]
        if missing:
            raise InvalidInput(f"the tokenizer has no language {missing[0]!r}")
        encoding = self._tokenizer.encode("a")
        mask = encoding.special_tokens_mask
        last = len(mask) - mask[::-1].index(0) if 0 in mask else 0
        first = mask.index(0) if 0 in mask else 0
        self._before, self._after = encoding.tokens[:first], encoding.tokens[last:]

    def encode(self, text: str, pair: LanguagePair) -> list[str]:
        """See `SequenceText.encode`; where the file has a language, the request's takes its place."""
        tokens = self._tokenizer.encode(text, add_special_tokens=False).tokens
        return [
            *(self._with_language(token, pair) for token in self._before),
            *tokens,
            *(self._with_language(token, pair) for token in self._after),
        ]

    def decode(self, tokens: Sequence[str]) -> str:
        """See `SequenceText.decode`."""
        numbers = [self._tokenizer.token_to_id(token) for token in tokens]
        return self._tokenizer.decode([each for each in numbers if each is not None])

    def id_of(self, token: str) -> int:
        """See `SequenceText.id_of`."""
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise InvalidInput(f"the tokenizer has no token {token!r}")
        return number

    def token_of(self, number: int) -> str:
        """See `SequenceText.token_of`."""
        return self._tokenizer.id_to_token(number) or ""

    def _with_language(self, token: str, pair: LanguagePair) -> str:
        return pair.source_code if token in self._languages and pair.source_code else token


class SentencePieceText(SequenceText):
    """Models of sentencepiece, one for each side or one for both."""

    def __init__(self, source: Path, target: Path, *, adds_end: bool, has_languages: bool) -> None:
        self._source, self._target = _open_model(source), _open_model(target)
        self._end = [END] if adds_end else []
        self._has_languages = has_languages
        self._numbers = _read_vocabulary(source.parent / "vocab.json")
        self._tokens = {number: token for token, number in self._numbers.items()}
        self._special = {END, "<pad>", "<s>", "<unk>"}

    def encode(self, text: str, pair: LanguagePair) -> list[str]:
        """See `SequenceText.encode`."""
        language = [pair.source_code] if self._has_languages and pair.source_code else []
        first, rest = self._split_tag(text)
        return [*language, *first, *self._source.encode(rest, out_type=str), *self._end]

    def _split_tag(self, text: str) -> tuple[list[str], str]:
        """Marian's `>>fr<<` before a text is a token, which sentencepiece would take apart."""
        head, mark, rest = text.partition("<<")
        if mark and head.startswith(">>") and head + mark in self._numbers:
            return [head + mark], rest.lstrip()
        return [], text

    def decode(self, tokens: Sequence[str]) -> str:
        """See `SequenceText.decode`."""
        return self._target.decode([token for token in tokens if token not in self._special])

    def id_of(self, token: str) -> int:
        """See `SequenceText.id_of`; words outside the vocabulary are the unknown one."""
        if self._numbers:
            return self._numbers.get(token, self._numbers.get("<unk>", 0))
        return self._source.piece_to_id(token)

    def token_of(self, number: int) -> str:
        """See `SequenceText.token_of`."""
        if self._numbers:
            return self._tokens.get(number, "<unk>")
        return self._target.id_to_piece(number)


def _open_model(path: Path) -> Any:
    try:
        sentencepiece = import_module("sentencepiece")
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{path.name!r} needs the package 'sentencepiece'", hint="pip install sentencepiece"
        ) from error
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise FormatNotAllowed(f"{path.name!r} is no model of sentencepiece") from error


def _read_vocabulary(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict) or not all(type(each) is int for each in found.values()):
        raise FormatNotAllowed(f"{path.name!r} is not a list of tokens with their numbers")
    return found
