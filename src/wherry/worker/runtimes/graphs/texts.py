# pyright: standard
"""Graphs that read texts: what they have in common, vectors (`feature-extraction`) and labels.

The bundle holds `tokenizer.json` beside the graph. Results do not depend on what else is in a
batch: at load, two texts run alone and together, and the answers decide what may be joined.
Padding harms models that look at it (some recurrent ones): those join texts of equal length.
Dynamic quantisation (DynamicQuantizeLinear) scales a batch as one, so that MiniLM's vectors turn
by up to 15 degrees (cosine 0.967) with their neighbours, even at equal lengths: such graphs run
texts one by one, which was as fast (131 against 99 texts/s).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed, WherryError
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput, Usage
from wherry.models.tasks.text import Embedding, TextInput, embedding_dimensions
from wherry.worker.runtimes.graphs.calibration import Calibration, calibrate, recall
from wherry.worker.runtimes.graphs.graph import Array, Graph, OpenGraph, rows_agree, trial
from wherry.worker.runtimes.graphs.pooling import DenseLayer, Pooling, pool
from wherry.worker.runtimes.graphs.scores import ScoreHead, check_rows
from wherry.worker.runtimes.graphs.text_encoder import TextEncoder, Tokens, pad_ids
from wherry.worker.runtimes.runtime import Prepared

TOKENIZER = "tokenizer.json"
KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
TRIALS = (
    "A cat sat.",
    "Quarterly revenue of $3,000,000 beat the forecasts of all eleven analysts.",
)

Joining = Literal["any", "equal length", "none"]


class TextOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    max_tokens: int = 0
    """Most tokens of a text; 0 takes the limit of `tokenizer.json`, else 512."""
    truncate: bool = True
    """Cut longer texts; false answers them with `context_length_exceeded`."""
    pooling: Pooling = "mean"
    """How vectors of tokens become one of the text."""
    prompt: str = ""
    """What comes before every text of an embedder."""
    dense: tuple[str, ...] = ()
    """Folders of the bundle with layers of sentence-transformers that come after the pooling."""
    normalise: bool = True
    """Scale each vector to length 1."""
    output: str = ""
    """Name of the graph's output; by default it is guessed."""


class TextReader(ABC):
    """What all tasks over texts share: tokens in, numbers out, batches that change no answer."""

    max_batch_rows = 64
    max_batch_cost = 512  # padded tokens: more at once is slower on one thread
    spare_padding = -1.0
    outputs: tuple[str, ...] = ()
    """Names by which the graph's output is looked for."""
    trials: tuple[Any, Any] = (TextInput(TRIALS[0]), TextInput(TRIALS[1]))
    """A short input and a long one."""

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self.graph = open_graph(bundle.main_file)
        self.options = read_options(bundle.manifest.options, TextOptions)
        self.fixed_tokens = check_text_inputs(self.graph)
        limits = [limit for limit in (self.options.max_tokens, self.fixed_tokens) if limit]
        self.encoder = TextEncoder(bundle.path(TOKENIZER), min(limits, default=0))
        self.output = self.graph.find_output((self.options.output, *self.outputs))
        if self.options.output and self.output.name != self.options.output:
            raise InvalidInput(f"the graph has no output {self.options.output!r}")
        self.joining = self._find_joining()
        if self.joining == "none":
            self.max_batch_rows = 1

    def calibrate(self, known: object, device: str) -> Calibration | None:
        """Choose what a batch may hold by trying, or as an earlier load on this machine did."""
        if self.max_batch_rows == 1 or self.fixed_tokens:
            return None  # nothing is to be chosen
        found = recall(known, device) or calibrate(
            self._run_trial,
            device,
            most_tokens=self.encoder.max_tokens,
            most_budget=self.max_batch_cost,
        )
        self.max_batch_cost, self.spare_padding = found.batch_tokens, found.spare_padding
        return found

    def _run_trial(self, rows: int, tokens: int) -> None:
        short = self.tokens_of(self.trials[0], truncate=True)
        self.forward([Tokens(*(np.resize(each, tokens) for each in short))] * rows)

    def tokens_of(self, item: Any, *, truncate: bool) -> Tokens:
        """An item as the model reads it; see `TextEncoder.encode`."""
        ids = self.encoder.encode(item, truncate=truncate)
        return Tokens(ids, np.zeros_like(ids))

    def forward(self, texts: Sequence[Tokens]) -> Array:
        """Raw numbers of each text, float32 [texts, …], as `pool` makes them."""
        ids, mask = pad_ids([text.ids for text in texts], self.encoder.pad_id, self.fixed_tokens)
        types, _ = pad_ids([text.types for text in texts], 0, self.fixed_tokens)
        values = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": types,
            "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
        }
        feeds = {each.name: values[each.name].astype(each.dtype) for each in self.graph.inputs}
        found = self.graph.run(feeds, [self.output.name])[0]
        check_rows(found, len(texts))
        return self.pool(found.astype(np.float32, copy=False), mask)

    @abstractmethod
    def pool(self, found: Array, mask: Array) -> Array:
        """The graph's output as rows, one a text (or a token, for tasks that name them)."""

    def numbers_of(self, texts: Sequence[Tokens]) -> list[Array]:
        """What the model says of each text, without what it says of padding."""
        return list(self.forward(texts))

    def _find_joining(self) -> Joining:
        short, long = (self.tokens_of(each, truncate=True) for each in self.trials)
        with trial(self.graph):
            self.trial_row = self.forward([short])[0]
            self.forward([long])
        if not self.graph.inputs[0].has_free_rows:
            return "none"
        # without a mask the model must see the padding, even if this trial does not show it
        has_mask = any(each.name == "attention_mask" for each in self.graph.inputs)
        if has_mask and self._agree_together([short, long]):
            return "any"
        reverse = np.concatenate([long.ids[:1], long.ids[-2:0:-1], long.ids[-1:]])
        other = Tokens(reverse, long.types)  # as long as `long`
        return "equal length" if self._agree_together([long, other]) else "none"

    def _agree_together(self, texts: list[Tokens]) -> bool:
        try:
            alone = [self.numbers_of([text])[0] for text in texts]
            return all(map(rows_agree, alone, self.numbers_of(texts)))
        except WherryError:  # free rows in the declaration, fixed inside
            return False


class TextModel(TextReader):
    """One row of numbers a text."""

    def prepare(self, item: Any) -> Prepared:
        """Tokenise; safe in many threads."""
        tokens = self.tokens_of(item, truncate=self.options.truncate)
        length = self.fixed_tokens or len(tokens.ids)
        group = length if self.joining == "equal length" else ()
        return Prepared(tokens, length=length, group=group)

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One run for the whole batch, padded to its longest text."""
        texts: list[Tokens] = [prepared.payload for prepared in batch]
        rows = self.finish(self.forward(texts))
        if not np.isfinite(rows).all():
            raise ModelFailed("the model answered with numbers that are not finite")
        return [
            self.output_of(row, Usage(input_tokens=len(text.ids), rows=1))
            for text, row in zip(texts, rows, strict=True)
        ]

    @abstractmethod
    def finish(self, rows: Array) -> Array:
        """Rows as they are answered."""

    @abstractmethod
    def output_of(self, row: Array, usage: Usage) -> TaskOutput:
        """One answer."""


class EmbeddingModel(TextModel):
    """The task `feature-extraction`."""

    outputs = ("sentence_embedding", "last_hidden_state", "token_embeddings")

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        stated_layers = read_options(bundle.manifest.options, TextOptions).dense
        self._dense = [DenseLayer(bundle, folder) for folder in stated_layers]
        super().__init__(open_graph, bundle)
        stated = embedding_dimensions(bundle.manifest.task_config())
        if stated not in (0, len(self.trial_row)):
            raise InvalidInput(
                f"the bundle's dimensions are {stated}, the model gives {len(self.trial_row)}"
            )

    def tokens_of(self, item: Any, *, truncate: bool) -> Tokens:
        """The prompt and the text; ids of tokens stay as they are."""
        if self.options.prompt and item.text is not None:
            item = msgspec.structs.replace(item, text=self.options.prompt + item.text)
        return super().tokens_of(item, truncate=truncate)

    def pool(self, found: Array, mask: Array) -> Array:
        """Vectors of tokens [texts, tokens, d] to vectors of texts [texts, d]."""
        if found.ndim == 2:  # the graph pools by itself
            return found
        if found.ndim != 3:
            raise FormatNotAllowed(
                f"output {self.output.name!r} has {found.ndim} dimensions, not 2 or 3",
                hint="name another with the option 'output'",
            )
        rows = pool(found, mask, self.options.pooling)
        for layer in self._dense:
            rows = layer(rows)
        return rows

    def finish(self, rows: Array) -> Array:
        """Unit length, if the bundle wants it."""
        if not self.options.normalise:
            return rows
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    def output_of(self, row: Array, usage: Usage) -> TaskOutput:
        """One vector."""
        return Embedding(vector=row, usage=usage)


class TextClassifier(TextModel):
    """The task `text-classification`."""

    outputs = ("logits",)

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        super().__init__(open_graph, bundle)
        self.head = ScoreHead(bundle, self.trial_row, self.output)

    def pool(self, found: Array, mask: Array) -> Array:
        """Logits are one row a text already."""
        return check_logits(found, self.output.name)

    def finish(self, rows: Array) -> Array:
        """Scores of the labels."""
        return self.head.scores(rows)

    def output_of(self, row: Array, usage: Usage) -> TaskOutput:
        """One score a label."""
        return self.head.output_of(row, usage)


def check_logits(found: Array, name: str) -> Array:
    """One row a text, or `FormatNotAllowed`."""
    if found.ndim != 2:
        raise FormatNotAllowed(
            f"output {name!r} has {found.ndim} dimensions, not 2",
            hint="name another with the option 'output'",
        )
    return found


def check_text_inputs(graph: Graph) -> int:
    """The graph takes tokens; how many if that is fixed, else 0."""
    names = {each.name for each in graph.inputs}
    if "input_ids" not in names or names - KNOWN_INPUTS:
        raise FormatNotAllowed(
            f"{graph.file_name!r} takes {sorted(names)}, an encoder of texts takes 'input_ids' and "
            f"some of {sorted(KNOWN_INPUTS - {'input_ids'})}",
            hint="serve it with the task 'tensor'",
        )
    shape = next(each.shape for each in graph.inputs if each.name == "input_ids")
    if len(shape) != 2 or (isinstance(shape[0], int) and shape[0] != 1):
        raise FormatNotAllowed(
            f"'input_ids' of {graph.file_name!r} has shape {list(shape)}, not [texts, tokens]",
            hint="export it with a free first dimension",
        )
    return shape[1] if isinstance(shape[1], int) else 0
