# pyright: standard
"""Static embedders: a vector for every token, and for a text their mean. No network is computed.

The bundle is `model.safetensors` (first) and `tokenizer.json` beside it, as model2vec or
sentence-transformers (`StaticEmbedding`) write them. The tensor `embeddings` or `embedding.weight` has
a row a token; `mapping`, if there, says which row a token has, `weights` how much it counts.

Options: `normalise` (scale each vector to length 1), `drop_unknown` (leave unknown tokens out of the
mean, as model2vec does), `max_tokens` (default 512, longer texts are cut), `dimensions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskInput, TaskOutput, Usage
from wherry.models.tasks.text import Embedding, embedding_dimensions
from wherry.worker.runtimes.graphs.graph import Array
from wherry.worker.runtimes.graphs.text_encoder import TextEncoder
from wherry.worker.runtimes.runtime import ItemError, Prepared
from wherry.worker.runtimes.safetensors_file import read_tensors

TASK = "feature-extraction"
TABLES = ("embeddings", "embedding.weight")
DEFAULT_MAX_TOKENS = 512


class StaticOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    normalise: bool = True
    drop_unknown: bool = True
    max_tokens: int = DEFAULT_MAX_TOKENS


class StaticEmbeddingsRuntime:
    """One table of vectors."""

    max_batch_rows = 256
    max_batch_cost = 0

    def load(self, bundle: Bundle, device: str) -> None:
        """Map the table into memory, and check that it has a row for every token."""
        if bundle.manifest.task != TASK:
            raise InvalidInput(
                f"the static_embeddings runtime does not do the task {bundle.manifest.task!r}",
                hint=f"it does {TASK}",
            )
        self._options = read_options(bundle.manifest.options, StaticOptions)
        main = bundle.main_file
        self._encoder = TextEncoder(main.with_name("tokenizer.json"), self._options.max_tokens)
        tensors = read_tensors(main)
        self._table = _find_table(tensors, main.name)
        self._mapping = _check_column(tensors, "mapping", "iu")
        self._weights = _check_column(tensors, "weights", "f")
        self._check_sizes(bundle)

    def _check_sizes(self, bundle: Bundle) -> None:
        tokens = self._encoder.vocabulary_size
        rows = len(self._table) if self._mapping is None else len(self._mapping)
        if rows < tokens or (self._weights is not None and len(self._weights) < tokens):
            raise FormatNotAllowed(f"the tokenizer has {tokens} tokens, the table {rows} rows")
        if self._mapping is not None and not 0 <= self._mapping.min() <= self._mapping.max() < len(
            self._table
        ):
            raise FormatNotAllowed("the mapping names rows that the table does not have")
        width, stated = self._table.shape[1], embedding_dimensions(bundle.manifest.task_config())
        if stated not in (0, width):
            raise InvalidInput(f"the bundle's dimensions are {stated}, the model gives {width}")

    def prepare(self, item: TaskInput) -> Prepared:
        """Token ids without special ones; safe in many threads."""
        most = self._encoder.max_tokens
        if item.token_ids is not None:
            ids = self._encoder.check_known(item.token_ids)
        else:
            ids = self._encoder.encode_bare(item.text, most).ids
        found = np.array(ids[:most], dtype=np.int64)
        if self._options.drop_unknown and self._encoder.unknown_id is not None:
            found = found[found != self._encoder.unknown_id]
        return Prepared(found)

    def run(self, batch: Sequence[Prepared]) -> Sequence[TaskOutput | ItemError]:
        """The mean of each text's rows; zeros where no token is known."""
        return [
            Embedding(
                vector=self._embed(prepared.payload),
                usage=Usage(input_tokens=len(prepared.payload), rows=1),
            )
            for prepared in batch
        ]

    def _embed(self, ids: Array) -> Array:
        if not len(ids):
            return np.zeros(self._table.shape[1], dtype=np.float32)
        rows = self._table[ids if self._mapping is None else self._mapping[ids]]
        rows = rows.astype(np.float32)
        if self._weights is not None:
            rows *= self._weights[ids].astype(np.float32)[:, np.newaxis]
        vector = rows.mean(axis=0)
        if self._options.normalise:
            vector /= max(float(np.linalg.norm(vector)), 1e-12)
        return vector

    def close(self) -> None:
        """Let go of the table."""
        del self._table, self._mapping, self._weights, self._encoder


def _find_table(tensors: Mapping[str, Array], name: str) -> Array:
    for key in TABLES:
        found = tensors.get(key)
        if found is not None and found.ndim == 2 and found.dtype.kind in "fi":
            return found
    raise FormatNotAllowed(
        f"{name!r} has no table of vectors: {sorted(tensors)[:10]}",
        hint=f"it should be called {' or '.join(TABLES)}",
    )


def _check_column(tensors: Mapping[str, Array], name: str, kinds: str) -> Array | None:
    found = tensors.get(name)
    if found is None:
        return None
    if found.ndim != 1 or found.dtype.kind not in kinds:
        raise FormatNotAllowed(f"the tensor {name!r} has {found.ndim} dimensions of {found.dtype}")
    return found
