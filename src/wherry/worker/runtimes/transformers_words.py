# pyright: standard
"""An answer's tokens as words: whole characters, stop texts, tool calls, likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wherry.models.tasks.generation import (
    FinishReason,
    Sampling,
    TextDelta,
    TokenLogprob,
    TopLogprob,
)
from wherry.worker.runtimes.stop_texts import StopFinder
from wherry.worker.runtimes.token_sampler import Chosen
from wherry.worker.runtimes.token_texts import TokenWriter, bytes_of_token
from wherry.worker.runtimes.transformers_prompts import Prompt


class ModelWords:
    """What a model's tokens mean."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        end = model.generation_config.eos_token_id
        self.ends = {
            each
            for each in (*(end if isinstance(end, list) else [end]), tokenizer.eos_token_id)
            if each is not None
        }
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_byte_level = "ByteLevel" in str(getattr(backend, "decoder", ""))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; control tokens are left out."""
        return self._tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def text_of(self, token: int) -> str:
        """The text of one token, a control token's name included."""
        return self._tokenizer.decode([token], clean_up_tokenization_spaces=False)

    def logprob_of(self, chosen: Chosen) -> TokenLogprob:
        """A choice as clients see it."""
        text, octets = self._describe(chosen.token)
        rivals = [
            TopLogprob(text, logprob, octets)
            for token, logprob in chosen.rivals
            for text, octets in [self._describe(token)]
        ]
        return TokenLogprob(text, chosen.logprob, octets, rivals)

    def _describe(self, token: int) -> tuple[str, list[int]]:
        text = self.text_of(token)
        name = self._tokenizer.convert_ids_to_tokens(token) or ""
        octets = bytes_of_token(name, text, is_byte_level=self._is_byte_level)
        return text, octets


class AnswerWords:
    """One answer."""

    def __init__(self, words: ModelWords, prompt: Prompt, sampling: Sampling) -> None:
        self._words = words
        self._prompt = prompt
        self._has_logprobs = sampling.top_logprobs is not None
        self._writer = TokenWriter(words.decode, prompt.tokens)
        self._stops = StopFinder([*sampling.stop, *prompt.stops])
        self.count = 0
        """Tokens so far."""

    @property
    def called(self) -> bool:
        """Whether the answer calls a tool."""
        return self._prompt.reader.called

    def take(self, chosen: Chosen) -> tuple[TextDelta | None, FinishReason | None]:
        """What one more token shows, and why the answer ends with it, if it does."""
        self.count += 1
        if chosen.token in self._words.ends:
            return None, "stop"
        shown = self._stops.feed(self._writer.write(chosen.token))
        delta = self._prompt.reader.feed(shown) if shown else TextDelta()
        if self._has_logprobs:
            delta.logprobs = [self._words.logprob_of(chosen)]
        if self.count == 1:
            delta.input_tokens = len(self._prompt.tokens)
        reason: FinishReason | None = None
        if self._stops.found:
            reason = "stop"
        elif self.count >= self._prompt.max_tokens:
            reason = "length"
        is_empty = not (delta.text or delta.tool_calls or delta.logprobs or delta.input_tokens)
        return None if is_empty else delta, reason

    def finish(self) -> TextDelta:
        """What was held back, now that no more comes."""
        rest = self._stops.feed(self._writer.finish()) + self._stops.finish()
        delta = self._prompt.reader.feed(rest) if rest else TextDelta()
        last = self._prompt.reader.finish()
        delta.text += last.text
        delta.tool_calls += last.tool_calls
        found = self._stops.found
        delta.stop_text = (
            "" if found in self._prompt.stops else found
        )  # the client asked for its own
        return delta
