"""The task `text-ranking`: how well documents answer a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.task import TaskConfig, TaskInput
from wherry.models.tasks.text import (
    TextInput,
    check_text,
    check_texts,
    cosines,
)
from wherry.models.tasks.text_pair import PairTask, TextPair

MAX_DOCUMENTS = 2048
"""Most documents of one query."""

TEXT_RANKING = PairTask("text-ranking", "query", "text")


class Ranking:
    """A query and documents, for a model that reads them together or makes vectors of each.

    Args:
        query: What is looked for.
        documents: Where.
        task: Of the model: `text-ranking` or `feature-extraction`.
    """

    tasks = frozenset({TEXT_RANKING.name, "feature-extraction"})
    key = "documents"

    def __init__(self, query: str, documents: Sequence[str], task: str) -> None:
        self.documents = documents
        self.items: list[TaskInput]
        self._reads_pairs = task == TEXT_RANKING.name
        if self._reads_pairs:
            self.items = [TextPair(query, document) for document in documents]
        else:
            self.items = [TextInput(query), *map(TextInput, documents)]

    @classmethod
    def from_plain(cls, body: Mapping[str, Any], task: str, config: TaskConfig) -> Ranking:
        """`{"query": "…", "documents": ["…", …]}`."""
        query = check_text(body.get("query"), config, "query")
        documents = check_texts(body["documents"], config, "documents", most=MAX_DOCUMENTS)
        return cls(query, documents, task)

    def scores(self, outputs: Sequence[Any], *, raw: bool = False) -> np.ndarray:
        """Of each document, float32: the model's score (or its raw number), or the cosine."""
        if not self._reads_pairs:
            return cosines(outputs)
        return np.array([each.raw if raw else each.score for each in outputs], dtype=np.float32)

    def to_plain(self, outputs: Sequence[Any]) -> dict[str, Any]:
        """`{"results": [{"index", "score"}]}`, the best first."""
        scores = self.scores(outputs)
        shown = shortest_floats(scores)
        return {
            "results": [{"index": at, "score": shown[at]} for at in best_first(scores).tolist()]
        }


def best_first(scores: np.ndarray) -> np.ndarray:
    """Indices by descending score; equal ones in their own order."""
    return np.argsort(-scores, kind="stable")
