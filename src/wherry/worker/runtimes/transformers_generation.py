# pyright: standard, reportMissingImports=false
"""Runtime `transformers` for language models: answers are written a token at a time.

One thread computes. Answers that are written at once take turns, a token each (a piece of a long
prompt counts as one), so none waits for another to end, and none goes on for more than a token after
its client has left. Each keeps its keys and values: how many may be written at once follows from the
memory that these may take. Options: `GenerationOptions`, `TransformersOptions`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Annotated, Any, TypeVar

import msgspec
import torch
from msgspec import Meta
from transformers import DynamicCache

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.generation import FinishReason, GenerationInput, TextDelta
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import Usage
from wherry.worker.runtimes.chat_template import PLAIN, read_template
from wherry.worker.runtimes.token_sampler import Array, Sampler
from wherry.worker.runtimes.transformers_folder import open_model, open_tokenizer
from wherry.worker.runtimes.transformers_prompts import Prompt, PromptMaker
from wherry.worker.runtimes.transformers_words import AnswerWords, ModelWords

PREFILL_TOKENS = 128
"""Tokens of a prompt that are read in one turn."""
MOST_AT_ONCE = 16
Found = TypeVar("Found")


class GenerationOptions(msgspec.Struct, frozen=True):
    """Options of a bundle, beside those of `TransformersOptions`."""

    context_tokens: Annotated[int, Meta(ge=0, le=1 << 22)] = 0
    """Prompt and answer together; 0 = as many as the model was trained with, at most 4096."""
    cache_mib: Annotated[int, Meta(ge=1, le=1 << 20)] = 1024
    """What keys and values of all answers may take."""
    max_concurrency: Annotated[int, Meta(ge=0, le=64)] = 0
    """Answers written at once; 0 = as many as `cache_mib` has room for, at most 16."""
    chat_template: str = ""
    """How a conversation is written, instead of as the folder says: a file of the bundle, Jinja's text,
    or `plain`."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    """For requests that name none; else what `generation_config.json` says, if it samples."""


USUAL_CONTEXT_TOKENS = 4096


class Writing:
    """One answer: what the model remembers of it, and what comes next."""

    def __init__(self, model: Any, prompt: Sequence[int], sampler: Sampler) -> None:
        self._model = model
        self._sampler = sampler
        self._waiting = list(prompt)
        self._settings = cache_settings(model)
        self.read_tokens = 0
        """Of the prompt, so far."""

    @property
    def is_reading(self) -> bool:
        """Whether there is more of the prompt than one turn reads."""
        return len(self._waiting) > PREFILL_TOKENS

    def read(self) -> None:
        """A piece of the prompt."""
        piece, self._waiting = self._waiting[:PREFILL_TOKENS], self._waiting[PREFILL_TOKENS:]
        self._compute(piece)
        self.read_tokens += len(piece)

    def next_token(self) -> Any:
        """The model's choice, a `Chosen`; what is left of the prompt is read before."""
        scores = self._compute(self._waiting)
        chosen = self._sampler.choose(scores)
        self._waiting = [chosen.token]
        return chosen

    def _compute(self, tokens: Sequence[int]) -> Array:
        with torch.inference_mode():
            found = self._model(
                input_ids=torch.tensor([tokens], device=self._model.device),
                use_cache=True,
                **self._settings,
            )
            scores = found.logits[0, -1].float().cpu().numpy().copy()
        if scores[scores != -float("inf")].size == 0 or (scores != scores).any():
            raise ModelFailed("the model answered with numbers that are not finite")
        return scores


def cache_settings(model: Any) -> dict[str, Any]:
    """An empty cache, as the model's `forward` takes it; and of all scores only the last token's."""
    known = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"  # renamed in transformers 5
    settings: dict[str, Any] = {name: DynamicCache(config=model.config)}
    if "logits_to_keep" in known:
        settings["logits_to_keep"] = 1
    return settings


class TransformersGenerationRuntime:
    """One language model."""

    def __init__(self) -> None:
        self.max_concurrency = 1
        self._model: Any = None
        self._thread = ThreadPoolExecutor(1, "generate")

    def load(self, bundle: Bundle, device: str) -> None:
        """Open the folder; write a token for trial."""
        options = read_options(bundle.manifest.options, GenerationOptions)
        self._model = open_model(bundle, device)
        tokenizer = open_tokenizer(bundle.main_file.parent)
        config = self._model.config.get_text_config()
        known = getattr(config, "max_position_embeddings", 0) or USUAL_CONTEXT_TOKENS
        context = min(known, options.context_tokens or USUAL_CONTEXT_TOKENS)
        self._words = ModelWords(self._model, tokenizer)
        option = options.chat_template
        template = read_template(bundle, option) if option else ""
        self._prompts = PromptMaker(
            tokenizer, context, config.vocab_size, template, is_transcript=option == PLAIN
        )
        self._usual = usual_sampling(options, self._model.generation_config)
        self.max_concurrency = options.max_concurrency or count_answers(
            config, context, options.cache_mib, self._model.dtype.itemsize
        )
        self._trial(tokenizer)

    def _trial(self, tokenizer: Any) -> None:
        """A folder that opens may still not run."""
        tokens = tokenizer("Hello")["input_ids"] or [0]
        try:
            found = self._model(input_ids=torch.tensor([tokens], device=self._model.device))
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise ModelFailed(f"the model fails on a trial input: {error!s:.200}") from error
        del found

    async def stream(
        self, item: GenerationInput, cancelled: Event, tenant: str
    ) -> AsyncIterator[TextDelta]:
        """Deltas of one answer; the last has finish reason and usage, also when cancelled."""
        del tenant  # nothing is kept between answers
        if self._model is None:
            raise ModelFailed("the model is not loaded")
        prompt = await self._in_turn(lambda: self._prompts.make(item))
        if prompt.count_only:
            yield TextDelta(input_tokens=len(prompt.tokens), finish_reason="stop")
            return
        if prompt.echo:
            yield TextDelta(text=prompt.echo)
        sampler = Sampler(item.sampling, *self._usual)
        writing = Writing(self._model, prompt.tokens, sampler)
        words = AnswerWords(self._words, prompt, item.sampling)
        while writing.is_reading and not cancelled.is_set():
            await self._in_turn(writing.read)
        reason: FinishReason | None = None
        while reason is None and not cancelled.is_set():
            delta, reason = await self._in_turn(lambda: words.take(writing.next_token()))
            if delta is not None:
                yield delta
        yield self._finish(words, prompt, writing, reason)

    def close(self) -> None:
        """Free the model."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._model = None

    async def _in_turn(self, work: Callable[[], Found]) -> Found:
        """Do a piece of work in the one thread that computes, after what others have asked for."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except (RuntimeError, IndexError) as error:
            raise ModelFailed(f"the model failed: {error!s:.200}") from error

    @staticmethod
    def _finish(
        words: AnswerWords, prompt: Prompt, writing: Writing, reason: FinishReason | None
    ) -> TextDelta:
        read = len(prompt.tokens) if words.count else writing.read_tokens
        delta = words.finish()
        delta.finish_reason = reason or "cancelled"
        if words.called and reason == "stop":
            delta.finish_reason = "tool_calls"
        delta.usage = Usage(
            input_tokens=read if prompt.charge else 0,
            output_tokens=words.count,
            rows=0 if reason is None else 1,
        )
        return delta


def usual_sampling(options: GenerationOptions, config: Any) -> tuple[float, float, int]:
    """Temperature, `top_p` and `top_k` of requests that name none."""
    samples = bool(getattr(config, "do_sample", False))

    def choose(own: float | None, name: str, usual: float) -> float:
        found = getattr(config, name, None) if samples else None
        return own if own is not None else usual if found is None else found

    return (
        float(choose(options.temperature, "temperature", 1.0)),
        float(choose(options.top_p, "top_p", 1.0)),
        int(choose(options.top_k, "top_k", 0)),
    )


def count_answers(config: Any, context_tokens: int, cache_mib: int, number_bytes: int) -> int:
    """How many answers of full length have room for their keys and values."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * heads * width * number_bytes
    room = (cache_mib << 20) // max(1, token_bytes * context_tokens)
    if not room:
        raise InvalidInput(
            f"an answer of {context_tokens} tokens needs {token_bytes * context_tokens >> 20} MiB, "
            f"cache_mib is {cache_mib}",
            hint="lower context_tokens in the bundle's options, or raise cache_mib",
        )
    return min(MOST_AT_ONCE, room)
