"""The task `sentence-similarity`: how near sentences are in meaning to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.task import TaskConfig, TaskInput
from wherry.models.tasks.text import TextInput, check_text, check_texts, cosines
from wherry.models.tasks.text_pair import PairTask, TextPair

MAX_SENTENCES = 2048
"""Most sentences that one is compared with."""

SENTENCE_SIMILARITY = PairTask("sentence-similarity", "source_sentence", "sentence")


class Comparison:
    """A sentence beside others, for a model that reads two together or makes vectors of each.

    Args:
        source: The one.
        sentences: The others.
        task: Of the model: `sentence-similarity` or `feature-extraction`.
    """

    tasks = frozenset({SENTENCE_SIMILARITY.name, "feature-extraction"})
    key = "sentences"

    def __init__(self, source: str, sentences: Sequence[str], task: str) -> None:
        self.items: list[TaskInput]
        self._reads_pairs = task == SENTENCE_SIMILARITY.name
        if self._reads_pairs:
            self.items = [TextPair(source, sentence) for sentence in sentences]
        else:
            self.items = [TextInput(source), *map(TextInput, sentences)]

    @classmethod
    def from_plain(cls, body: Mapping[str, Any], task: str, config: TaskConfig) -> Comparison:
        """`{"source_sentence": "…", "sentences": ["…", …]}`."""
        source = check_text(body.get("source_sentence"), config, "source_sentence")
        sentences = check_texts(body["sentences"], config, "sentences", most=MAX_SENTENCES)
        return cls(source, sentences, task)

    def scores(self, outputs: Sequence[Any]) -> np.ndarray:
        """Of each sentence, float32: the model's score, or the cosine."""
        if not self._reads_pairs:
            return cosines(outputs)
        return np.array([each.score for each in outputs], dtype=np.float32)

    def to_plain(self, outputs: Sequence[Any]) -> dict[str, Any]:
        """`{"similarities": […]}`, in the order of the sentences."""
        return {"similarities": shortest_floats(self.scores(outputs))}
