"""Runtime `llama_embeddings`: GGUF models that turn texts into vectors, through xllamacpp.

Bundle options: `EmbeddingOptions`. llama.cpp computes the texts of a batch together.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import ContextLengthExceeded, InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskInput, TaskOutput, Usage
from wherry.models.tasks.text import FEATURE_EXTRACTION, Embedding, TextInput
from wherry.worker.runtimes.gguf import GgufFacts, read_gguf
from wherry.worker.runtimes.llama_native import llama
from wherry.worker.runtimes.llama_start import StartedServer, new_parameters, start_server
from wherry.worker.runtimes.runtime import ItemError, Prepared

DEFAULT_CONTEXT_TOKENS = 512
MEAN, RANK = 1, 4
"""`pooling_type` of GGUF files."""
POOLING = {"mean": MEAN, "cls": 2, "last": 3}


class EmbeddingOptions(msgspec.Struct, frozen=True):
    """Options of a bundle; 0 lets the runtime choose."""

    n_parallel: Annotated[int, Meta(ge=1, le=64)] = 8
    """Texts computed at once; each has `context_tokens` of its own."""
    context_tokens: Annotated[int, Meta(ge=0, le=1 << 17)] = 0
    """Of one text; default 512, or what the model was trained with if that is less."""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """How vectors of tokens become one; `auto` as the file says, else their mean."""
    normalise: bool = True
    """Vectors of length 1."""
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0


class TokenCount(msgspec.Struct):
    """`usage` of an answer."""

    prompt_tokens: int = 0


class Vector(msgspec.Struct):
    """One of `data`."""

    embedding: list[float]


class Problem(msgspec.Struct):
    """`error` of an answer."""

    code: int = 500
    message: str = ""


class Answer(msgspec.Struct):
    """What llama.cpp answers."""

    data: list[Vector] = []
    usage: TokenCount = msgspec.field(default_factory=TokenCount)
    error: Problem | None = None


answer_decoder = msgspec.json.Decoder(Answer)


class LlamaEmbeddingsRuntime:
    """One model of texts' meanings, loaded once."""

    max_batch_rows = 1
    max_batch_cost = 0

    def __init__(self) -> None:
        self._server: StartedServer | None = None
        self._facts: GgufFacts | None = None
        self._context_tokens = DEFAULT_CONTEXT_TOKENS
        self._normalise = True
        self._threads: ThreadPoolExecutor | None = None

    def load(self, bundle: Bundle, device: str) -> None:
        """Check the file and open it."""
        if bundle.manifest.task != FEATURE_EXTRACTION.name:
            raise InvalidInput(
                f"the runtime 'llama_embeddings' does not do the task {bundle.manifest.task!r}"
            )
        options = read_options(bundle.manifest.options, EmbeddingOptions)
        self._facts = read_gguf(bundle.main_file)
        wanted = options.context_tokens or DEFAULT_CONTEXT_TOKENS
        self._context_tokens = min(wanted, self._facts.context_length or wanted)
        self._normalise = options.normalise
        parameters = new_parameters(bundle.main_file, device, threads=options.threads)
        parameters.embedding = True
        parameters.pooling_type = llama.llama_pooling_type(_pooling_of(options, self._facts))
        parameters.n_parallel = options.n_parallel
        parameters.n_ctx = options.n_parallel * self._context_tokens
        # else texts of mixed lengths in one batch get wrong vectors (measured: cosine 0.91 to those
        # of the same texts alone)
        parameters.kv_unified = True
        # a text is read in one piece: all its tokens see each other
        parameters.n_batch = parameters.n_ubatch = self._context_tokens
        self._server = start_server(parameters)
        self.max_batch_rows = options.n_parallel
        self._threads = ThreadPoolExecutor(options.n_parallel, "llama-embeddings")

    def prepare(self, item: TaskInput) -> Prepared:
        """Refuse what the tokenizer could not read; the text itself is tokenised by llama.cpp."""
        if self._facts is None:
            raise ModelFailed("the model is not loaded")
        if item.token_ids is not None:
            wrong = next((i for i in item.token_ids if i >= self._facts.vocabulary_size), None)
            if wrong is not None:
                raise InvalidInput(f"token id {wrong} is not in the model's vocabulary")
        least = _least_tokens(item, self._facts)
        if least > self._context_tokens:
            raise self._too_long(f"at least {least}")
        return Prepared(item)

    def run(self, batch: Sequence[Prepared]) -> Sequence[TaskOutput | ItemError]:
        """A call of llama.cpp for each text: it computes them together, and counts each."""
        if self._threads is None:
            raise ModelFailed("the model is not loaded")
        return list(self._threads.map(self._embed, (prepared.payload for prepared in batch)))

    def close(self) -> None:
        """Free the model."""
        if self._threads is not None:
            self._threads.shutdown()
        if self._server is not None:
            self._server.native = None
            shutil.rmtree(self._server.folder, ignore_errors=True)
        self._server = self._facts = self._threads = None

    def _embed(self, item: TextInput) -> TaskOutput | ItemError:
        assert self._server is not None
        text: Any = item.text if item.token_ids is None else [list(item.token_ids)]
        body = {"input": text, "embd_normalize": 2 if self._normalise else -1}
        answer = answer_decoder.decode(
            self._server.native.handle_embeddings(msgspec.json.encode(body))
        )
        if answer.error is not None:
            return self._error_of(answer.error)
        vector = np.array(answer.data[0].embedding, dtype=np.float32)
        if not np.isfinite(vector).all():
            return ItemError(
                ModelFailed.code, "the model answered with numbers that are not finite"
            )
        usage = Usage(input_tokens=answer.usage.prompt_tokens, rows=1)
        return Embedding(vector=vector, usage=usage)

    def _error_of(self, error: Problem) -> ItemError:
        if "too large" in error.message:
            return ItemError(ContextLengthExceeded.code, self._too_long("more").message)
        if 400 <= error.code < 500:
            return ItemError(
                InvalidInput.code, f"the model refused the text: {error.message[:300]}"
            )
        return ItemError(ModelFailed.code, f"llama.cpp failed: {error.message[:300]}")

    def _too_long(self, tokens: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"this model's maximum context length is {self._context_tokens} tokens, but the text "
            f"has {tokens}",
            hint="shorten it",
        )


def _least_tokens(item: TextInput, facts: GgufFacts) -> int:
    if item.token_ids is not None:
        return len(item.token_ids)
    return len(item.text or "") // facts.longest_token_bytes


def _pooling_of(options: EmbeddingOptions, facts: GgufFacts) -> int:
    if facts.pooling_type == RANK:
        raise InvalidInput("the model ranks texts and makes no vectors of them")
    if options.pooling == "auto":
        return facts.pooling_type or MEAN
    return POOLING[options.pooling]
