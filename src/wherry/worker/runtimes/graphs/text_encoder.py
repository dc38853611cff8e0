# pyright: standard
"""Texts to token ids with a `tokenizer.json`, and token ids to padded matrices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from wherry.errors import ContextLengthExceeded, FormatNotAllowed, InvalidInput
from wherry.models.tasks.text import TextInput
from wherry.worker.runtimes.graphs.graph import Array

DEFAULT_MAX_TOKENS = 512
MAX_TOKENS = 1 << 17
MIN_PAIR_ROOM = 2
CHARACTERS_PER_TOKEN = 64
"""How much of a long text is looked at first when the rest will be cut off anyway."""


class Tokens(NamedTuple):
    """A text, or two, as a model reads it; int64 [tokens] each."""

    ids: Array
    types: Array
    """0 for tokens of the first text, 1 for those of the second, where the model tells them apart."""


class TextEncoder:
    """A tokenizer and the model's limit. Threads may share one.

    Args:
        path: `tokenizer.json`.
        max_tokens: Most tokens of a text, special ones included; 0 takes the file's own limit.
    """

    def __init__(self, path: Path, max_tokens: int = 0) -> None:
        self._tokenizer = open_tokenizer(path)
        own_limit = (self._tokenizer.truncation or {}).get("max_length", DEFAULT_MAX_TOKENS)
        self.pad_id = _find_pad_id(self._tokenizer)
        # cut and pad here: one tokenizer serves all threads and must not change under them
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocabulary_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._prefix, self._suffix = self._find_special_ids()
        self.max_tokens = self._check_max_tokens(max_tokens or own_limit)

    def _check_max_tokens(self, max_tokens: int) -> int:
        least = len(self._prefix) + len(self._suffix) + 1
        if not least <= max_tokens <= MAX_TOKENS:
            raise InvalidInput(f"max_tokens must be {least} to {MAX_TOKENS}, not {max_tokens}")
        return max_tokens

    def _find_special_ids(self) -> tuple[list[int], list[int]]:
        """The special ids that the tokenizer puts before and after every text."""
        encoding = self._tokenizer.encode("a")
        mask = encoding.special_tokens_mask
        if 0 not in mask:
            return [], []
        last = len(mask) - mask[::-1].index(0)
        return encoding.ids[: mask.index(0)], encoding.ids[last:]

    def encode(self, item: TextInput, *, truncate: bool) -> Array:
        """Token ids of a text with its special tokens, int64 [tokens].

        Token ids that came from the client get the special tokens too, unless they have them.

        Raises:
            ContextLengthExceeded: longer than the model takes, and not to be cut.
            InvalidInput: a token id that the model does not know.
        """
        room = self.room
        ids = self._encode_text(item.text, room) if item.token_ids is None else self._bare(item)
        if len(ids) > room and not truncate:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {self.max_tokens} tokens, but the text "
                f"has at least {len(ids) + self.max_tokens - room}",
                hint="shorten it",
            )
        found = self.surround(ids[:room])
        if not len(found):
            raise InvalidInput("nothing of the text is left after tokenising", param="text")
        return found

    def _encode_text(self, text: str | None, room: int) -> list[int]:
        if text is None:
            raise InvalidInput("the input has neither text nor token ids")
        return self.encode_bare(text, room).ids

    def encode_pair(self, first: str, second: str, *, truncate: bool) -> Tokens:
        """Two texts as one sequence, the longer one cut first.

        Raises:
            ContextLengthExceeded: longer than the model takes, and not to be cut.
        """
        room = self.max_tokens - self._tokenizer.num_special_tokens_to_add(is_pair=True)
        if room < MIN_PAIR_ROOM:
            raise InvalidInput(f"max_tokens {self.max_tokens} leaves no room for two texts")
        pair = self.encode_bare(first, room), self.encode_bare(second, room)
        lengths = len(pair[0].ids), len(pair[1].ids)
        kept = cut_longest_first(*lengths, room)
        if kept != lengths and not truncate:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {self.max_tokens} tokens, but the texts "
                f"have at least {sum(lengths) + self.max_tokens - room}",
                hint="shorten one",
            )
        for encoding, length in zip(pair, kept, strict=True):
            encoding.truncate(length)
        joined = self._tokenizer.post_process(*pair)
        return Tokens(
            np.array(joined.ids, dtype=np.int64), np.array(joined.type_ids, dtype=np.int64)
        )

    def encode_bare(self, text: str, room: int = 0) -> Encoding:
        """Tokens without special ones, with their places in the text.

        `room` is how many can be of use: of a text that is far longer only the head is looked at.
        """
        head = text[: CHARACTERS_PER_TOKEN * (room + 2)] if room else text
        encoding = self._tokenizer.encode(head, add_special_tokens=False)
        # with twice the tokens needed, what was cut in mid-word is far behind the end
        if len(head) == len(text) or len(encoding.ids) >= 2 * room:
            return encoding
        return self._tokenizer.encode(text, add_special_tokens=False)

    def surround(self, ids: Sequence[int]) -> Array:
        """Token ids between the special ones that go around every text."""
        return np.array([*self._prefix, *ids, *self._suffix], dtype=np.int64)

    def check_known(self, token_ids: Sequence[int]) -> list[int]:
        """The client's token ids, if the model knows them all."""
        for token_id in token_ids:
            if not 0 <= token_id < self.vocabulary_size:
                raise InvalidInput(
                    f"token id {token_id} is not in the model's vocabulary of "
                    f"{self.vocabulary_size}",
                    hint="token ids must come from this model's own tokenizer: or send text",
                )
        return list(token_ids)

    @cached_property
    def unknown_id(self) -> int | None:
        """The token that stands for what the tokenizer does not know."""
        model = self._tokenizer.model
        if hasattr(model, "unk_token"):
            return self._tokenizer.token_to_id(model.unk_token) if model.unk_token else None
        return json.loads(self._tokenizer.to_str())["model"].get("unk_id")  # of unigrams

    @property
    def prefix_length(self) -> int:
        """Special tokens before every text."""
        return len(self._prefix)

    @property
    def room(self) -> int:
        """Most tokens of a text beside the special ones."""
        return self.max_tokens - len(self._prefix) - len(self._suffix)

    def _bare(self, item: TextInput) -> list[int]:
        """The client's token ids, without the special ones around them."""
        ids = self.check_known(item.token_ids or ())
        before, after = len(self._prefix), len(self._suffix)
        has_both = ids[:before] == self._prefix and ids[len(ids) - after :] == self._suffix
        return ids[before : len(ids) - after] if has_both else ids


def open_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizer.json`; `FormatNotAllowed` if it is none."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers package raises bare Exception
        reason = str(error)[:300]
        raise FormatNotAllowed(f"{path.name!r} is not a tokenizer.json: {reason}") from error


def _find_pad_id(tokenizer: Tokenizer) -> int:
    if tokenizer.padding:
        return tokenizer.padding["pad_id"]
    for token in ("[PAD]", "<pad>", "<|endoftext|>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return found
    return 0


def cut_longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts are kept, as tokenizers' `longest_first` decides it."""
    if first + second <= room:
        return first, second
    short = min(first, second)
    if 2 * short <= room:
        return (first, room - first) if first <= second else (room - second, second)
    half = room // 2
    rest = room - half
    return (half, rest) if first <= second else (rest, half)


def pad_ids(texts: Sequence[Array], pad_id: int, length: int = 0) -> tuple[Array, Array]:
    """Token ids and attention mask, int64 [texts, tokens]: as long as the longest, or `length`."""
    width = length or max(map(len, texts))
    ids = np.full((len(texts), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(texts), width), dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return ids, mask
