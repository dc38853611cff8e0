# pyright: standard
"""Texts to token ids with a `tokenizer.json`, and token ids to padded matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from wherry.errors import ContextLengthExceeded, FormatNotAllowed, InvalidInput
from wherry.models.tasks.text import TextInput
from wherry.worker.runtimes.graphs.graph import Array

DEFAULT_MAX_TOKENS = 512
MAX_TOKENS = 1 << 17
CHARACTERS_PER_TOKEN = 64
"""How much of a long text is looked at first when the rest will be cut off anyway."""


class TextEncoder:
    """A tokenizer and the model's limit. Threads may share one.

    Args:
        path: `tokenizer.json`.
        max_tokens: Most tokens of a text, special ones included; 0 takes the file's own limit.
    """

    def __init__(self, path: Path, max_tokens: int = 0) -> None:
        self._tokenizer = _open_tokenizer(path)
        own_limit = (self._tokenizer.truncation or {}).get("max_length", DEFAULT_MAX_TOKENS)
        self.pad_id = _find_pad_id(self._tokenizer)
        # cut and pad here: one tokenizer serves all threads and must not change under them
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._vocabulary_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
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
        room = self.max_tokens - len(self._prefix) - len(self._suffix)
        ids = self._encode_text(item.text, room) if item.token_ids is None else self._bare(item)
        if len(ids) > room and not truncate:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {self.max_tokens} tokens, but the text "
                f"has at least {len(ids) + self.max_tokens - room}",
                hint="shorten it",
            )
        found = [*self._prefix, *ids[:room], *self._suffix]
        if not found:
            raise InvalidInput("nothing of the text is left after tokenising", param="text")
        return np.array(found, dtype=np.int64)

    def _encode_text(self, text: str | None, room: int) -> list[int]:
        if text is None:
            raise InvalidInput("the input has neither text nor token ids")
        head = text[: CHARACTERS_PER_TOKEN * (room + 2)]
        ids = self._tokenizer.encode(head, add_special_tokens=False).ids
        # with twice the tokens needed, what was cut in mid-word is far behind the end
        if len(head) == len(text) or len(ids) >= 2 * room:
            return ids
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _bare(self, item: TextInput) -> list[int]:
        """The client's token ids, without the special ones around them."""
        ids = list(item.token_ids or ())
        for token_id in ids:
            if not 0 <= token_id < self._vocabulary_size:
                raise InvalidInput(
                    f"token id {token_id} is not in the model's vocabulary of "
                    f"{self._vocabulary_size}",
                    hint="token ids must come from this model's own tokenizer: or send text",
                )
        before, after = len(self._prefix), len(self._suffix)
        has_both = ids[:before] == self._prefix and ids[len(ids) - after :] == self._suffix
        return ids[before : len(ids) - after] if has_both else ids


def _open_tokenizer(path: Path) -> Tokenizer:
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


def pad_ids(texts: Sequence[Array], pad_id: int, length: int = 0) -> tuple[Array, Array]:
    """Token ids and attention mask, int64 [texts, tokens]: as long as the longest, or `length`."""
    width = length or max(map(len, texts))
    ids = np.full((len(texts), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(texts), width), dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return ids, mask
