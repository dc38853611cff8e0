# pyright: standard
"""Graphs that read two texts together: cross-encoders that score a pair, and NLI models.

The tokenizer of the bundle joins the texts as the model was trained to read them (its
post-processor puts the separators, and says which token belongs to which text).
"""

from __future__ import annotations

import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.classification import sigmoid
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput, Usage
from wherry.models.tasks.text_pair import PairScore, TextPair
from wherry.models.tasks.zero_shot_classification import Entailment
from wherry.worker.runtimes.graphs.graph import Array, OpenGraph
from wherry.worker.runtimes.graphs.scores import ScoreOptions
from wherry.worker.runtimes.graphs.text_encoder import Tokens
from wherry.worker.runtimes.graphs.texts import TRIALS, TextModel, check_logits


class PairModel(TextModel):
    """Two texts in, one row of logits out."""

    outputs = ("logits",)
    trials = (TextPair(TRIALS[0], TRIALS[0]), TextPair(TRIALS[0], TRIALS[1]))

    def tokens_of(self, item: TextPair, *, truncate: bool) -> Tokens:
        """Both texts as one sequence."""
        return self.encoder.encode_pair(item.first, item.second, truncate=truncate)

    def pool(self, found: Array, mask: Array) -> Array:
        """Logits are one row a pair already."""
        return check_logits(found, self.output.name)

    def finish(self, rows: Array) -> Array:
        """Logits, as they are."""
        return rows


class PairScorer(PairModel):
    """The tasks `text-ranking` and `sentence-similarity`.

    The option `function` makes the score: of one logit `sigmoid` (default) or `none`; of two, the
    second's share by `softmax`.
    """

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        super().__init__(open_graph, bundle)
        self._count = len(self.trial_row)
        if self._count not in (1, 2):
            raise FormatNotAllowed(
                f"{self.graph.file_name!r} gives {self._count} numbers for a pair, a score is 1",
                hint="an embedder declares the task 'feature-extraction': clients rerank and "
                "compare with it all the same",
            )
        function = read_options(bundle.manifest.options, ScoreOptions).function
        self._function = function if function != "auto" else "sigmoid"
        if self._count == 2 and function not in ("auto", "softmax"):
            raise InvalidInput(f"the model gives 2 logits, which {function!r} does not join")

    def output_of(self, row: Array, usage: Usage) -> TaskOutput:
        """One score."""
        raw = float(row[-1] - row[0]) if self._count == 2 else float(row[0])
        score = raw if self._function == "none" else float(sigmoid(np.array(raw)))
        return PairScore(score=score, raw=raw, usage=usage)


class EntailmentModel(PairModel):
    """The task `zero-shot-classification`: a model that was trained on inference (NLI)."""

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        super().__init__(open_graph, bundle)
        labels = [label.lower() for label in bundle.manifest.labels]
        if len(labels) != len(self.trial_row):
            raise InvalidInput(
                f"the bundle names {len(labels)} labels, the model gives {len(self.trial_row)} scores"
            )
        entailment = [at for at, label in enumerate(labels) if label.startswith("entail")]
        if len(entailment) != 1 or len(labels) < 2:
            raise InvalidInput(
                "a model for zero-shot classification has a label 'entailment' and another",
                hint="name the labels as its config.json does, e.g. labels = ['contradiction', "
                "'neutral', 'entailment']",
            )
        self._entailment = entailment[0]
        others = [at for at, label in enumerate(labels) if label.startswith("contra")]
        # as Hugging Face's pipeline takes it where no label is called so
        self._contradiction = others[0] if others else (-1 if self._entailment == 0 else 0)

    def output_of(self, row: Array, usage: Usage) -> TaskOutput:
        """The two logits that count."""
        return Entailment(
            entailment=float(row[self._entailment]),
            contradiction=float(row[self._contradiction]),
            usage=usage,
        )
