"""The text of tokens as they come, and the bytes of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wherry.worker.runtimes.gguf import byte_of_character

REPLACEMENT = "\ufffd"
"""What stands for bytes that are no whole character yet."""
MOST_HELD = 32
"""No character has so many tokens: an answer may also be of such signs."""
CONTEXT_TOKENS = 8
"""A token's text may depend on those before it: whether it begins with a blank, say."""


class TokenWriter:
    """Tokens in, whole characters out."""

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._tokens = list(before[-CONTEXT_TOKENS:])
        self._written = len(decode(self._tokens)) if self._tokens else 0

    def write(self, token: int) -> str:
        """What the token adds; "" if it ends within a character."""
        self._tokens.append(token)
        whole = self._decode(self._tokens)
        if whole.endswith(REPLACEMENT) and len(self._tokens) < MOST_HELD:
            return ""
        return self._take(whole)

    def finish(self) -> str:
        """What was left of a character that never became whole."""
        return self._take(self._decode(self._tokens)) if self._tokens else ""

    def _take(self, whole: str) -> str:
        added = whole[self._written :]
        if len(self._tokens) > 2 * CONTEXT_TOKENS:
            self._tokens = self._tokens[-CONTEXT_TOKENS:]
            whole = self._decode(self._tokens)
        self._written = len(whole)
        return added


def bytes_of_token(token: str, text: str, *, is_byte_level: bool) -> list[int]:
    """The bytes that a token stands for.

    Args:
        token: As the vocabulary has it: `Ġriver`, `<0xE4>`, `▁river`.
        text: As it reads alone.
        is_byte_level: Whether the vocabulary writes bytes as characters.
    """
    if is_byte_level and REPLACEMENT in text:
        return list(b"".join(byte_of_character(each) for each in token))
    if token.startswith("<0x") and token.endswith(">") and len(token) == 6:
        return [int(token[3:5], 16)]
    return list((token.replace("\u2581", " ") if token.startswith("\u2581") else text).encode())
