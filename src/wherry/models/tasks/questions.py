"""Questions whose answer takes several items of one model.

An embedder makes vectors; which document answers a query, how alike sentences are and which label
fits a text follow from them. So a bundle declares one task, and the forms in which clients ask
(codecs, and the plain form) hold such a question: its items go through the model like any others,
and it makes its answer of their outputs. See docs/decisions/0030-one-encoder-many-questions.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from wherry.models.tasks.sentence_similarity import Comparison
from wherry.models.tasks.task import Task, TaskConfig, TaskInput
from wherry.models.tasks.text_ranking import Ranking
from wherry.models.tasks.zero_shot_classification import Choice


class Question(Protocol):
    """One of `Ranking`, `Comparison` and `Choice`, whatever model it is put to."""

    items: list[TaskInput]
    """What the model is asked."""

    def to_plain(self, outputs: Sequence[Any]) -> dict[str, Any]:
        """The answer as one plain object; `outputs[i]` belongs to `items[i]`."""
        ...


QUESTIONS = (Ranking, Comparison, Choice)


def question_of(body: Mapping[str, Any], task: Task, config: TaskConfig) -> Question | None:
    """The question that a plain object puts to a model of this task; None if it is a single item.

    Raises:
        InvalidInput: it is one, but wrong.
    """
    for kind in QUESTIONS:
        if kind.key in body and task.name in kind.tasks:
            return kind.from_plain(body, task.name, config)
    return None
