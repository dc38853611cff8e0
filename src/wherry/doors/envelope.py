"""The few fields that a gateway reads of a JSON body; the worker reads the rest."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from wherry import errors

BYTES_PER_TOKEN = 3
"""A cautious guess: a limit on tokens reserves body bytes divided by this for the prompt."""

DEFAULT_TOKENS = 512
"""Reserved for an answer whose request names no maximum."""

Envelope = TypeVar("Envelope")


class ChatEnvelope(msgspec.Struct, kw_only=True):
    """What the gateway reads of a conversation in OpenAI's form, beside the model's name."""

    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None

    def tokens_bound(self, size: int) -> int:
        """Most tokens the request can cost."""
        asked = self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS
        return max(0, asked) * max(1, self.n or 1) + size // BYTES_PER_TOKEN


def read_envelope(body: bytes, decoder: msgspec.json.Decoder[Envelope]) -> Envelope:
    """The decoder's fields of a body; `InvalidInput` names the wrong one."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text = str(error)
        param = text.rpartition("`$.")[2].rstrip("`") if "`$." in text else None
        if "missing required field `model`" in text:
            param = "model"
        raise errors.InvalidInput(text, param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidInput(f"the body is not valid JSON: {error}") from error
