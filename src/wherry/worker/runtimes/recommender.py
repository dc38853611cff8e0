"""Recommenders whose users and items are vectors: who likes what is near in direction.

The bundle's files, in this order:

* `items.tsv`: a line an item: its id, a tab, its title;
* `users.txt`: a line a user that the model knows: the id;
* `items.npy`: float32 [items, factors];
* `users.npy`: float32 [users, factors];
* `seen.npy`: int32 [likes]: the items that each user has, user after user;
* `ends.npy`: int64 [users]: where each user's part of `seen.npy` ends.

A user that the model did not learn from gets a vector by their history, as training would have made
it from these items (Hu, Koren, Volinsky 2008, Collaborative Filtering for Implicit Feedback Datasets).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options
from wherry.models.tasks.recommendation import Recommendation, RecommendationInput, Recommended
from wherry.models.tasks.task import Usage
from wherry.worker.runtimes.runtime import Prepared

Array = np.ndarray[Any, np.dtype[Any]]
MAX_BATCH_SCORES = 1 << 24
"""Most scores that are held at once."""


class FactorOptions(msgspec.Struct, frozen=True):
    """A bundle's `[options]`: as the model was trained, so that new users are treated alike."""

    confidence: float = 1.0
    """How much more a like counts than no like."""
    regularisation: float = 10.0


class Question(msgspec.Struct):
    """A question by numbers."""

    asked: RecommendationInput
    basis: Any
    vector: Array | None
    """Of the user, the history or the item; None for what is popular."""
    seen: Array
    """Items that are not to be told."""


class RecommenderRuntime:
    """Scores of all items by one product of matrices a batch."""

    max_batch_rows = 64
    max_batch_cost = 0

    def load(self, bundle: Bundle, device: str) -> None:
        """Read the files and see that they belong together."""
        options = read_options(bundle.manifest.options, FactorOptions)
        if len(bundle.manifest.files) != 6:
            raise FormatNotAllowed(f"a recommender has 6 files, not {len(bundle.manifest.files)}")
        items, users, item_vectors, user_vectors, seen, ends = map(
            bundle.path, bundle.manifest.files
        )
        lines = [line.partition("\t") for line in items.read_text("utf-8").splitlines()]
        self.ids = [line[0] for line in lines]
        self.titles = [line[2] for line in lines]
        self.number_of_item = {each: number for number, each in enumerate(self.ids)}
        names = users.read_text("utf-8").splitlines()
        self.number_of_user = {each: number for number, each in enumerate(names)}
        self.items = np.load(item_vectors, allow_pickle=False)
        self.users = np.load(user_vectors, allow_pickle=False)
        self.seen = np.load(seen, allow_pickle=False)
        self.ends = np.load(ends, allow_pickle=False)
        self._check()
        self.popularity = np.bincount(self.seen, minlength=len(self.ids)).astype(np.float32)
        lengths = np.linalg.norm(self.items, axis=1, keepdims=True)
        self.directions = self.items / np.maximum(lengths, 1e-12)
        self.confidence = options.confidence
        ridge = options.regularisation * np.eye(self.items.shape[1], dtype=np.float32)
        self.base = self.items.T @ self.items + ridge
        self.max_batch_rows = max(1, min(64, MAX_BATCH_SCORES // max(1, len(self.ids))))

    def _check(self) -> None:
        fits = (
            len(self.ids) == len(self.number_of_item) == len(self.items)
            and len(self.number_of_user) == len(self.users) == len(self.ends)
            and self.items.ndim == self.users.ndim == 2
            and self.items.shape[1] == self.users.shape[1]
            and self.items.dtype == self.users.dtype == np.float32
            and bool(np.isfinite(self.items).all() and np.isfinite(self.users).all())
            and self.seen.ndim == self.ends.ndim == 1
            and self.seen.dtype.kind == self.ends.dtype.kind == "i"
            and bool((np.diff(self.ends, prepend=0) >= 0).all())
            and (len(self.ends) == 0 or int(self.ends[-1]) == len(self.seen))
            and bool(((self.seen >= 0) & (self.seen < len(self.ids))).all())
        )
        if not fits or not self.ids:
            raise FormatNotAllowed("the files of the recommender do not belong together")

    def prepare(self, item: RecommendationInput) -> Prepared:
        """Ids as numbers; an unknown item is the client's mistake, an unknown user is a new one."""
        if item.item is not None:
            number = self._item(item.item, "item")
            return Prepared(self._question(item, "item", self.directions[number], [number]))
        if item.history:
            history = sorted({self._item(each, "history") for each in item.history})
            vector = self._fold_in(np.array(history))
            return Prepared(self._question(item, "history", vector, history))
        number = self.number_of_user.get(item.user or "")
        if number is None:
            return Prepared(self._question(item, "popularity", None, []))
        start = int(self.ends[number - 1]) if number else 0
        seen = self.seen[start : self.ends[number]].tolist()
        return Prepared(self._question(item, "user", self.users[number], seen))

    def _item(self, name: str, param: str) -> int:
        number = self.number_of_item.get(name)
        if number is None:
            raise InvalidInput(f"the model knows no item {name!r}", param=param)
        return number

    def _question(
        self, asked: RecommendationInput, basis: str, vector: Array | None, seen: Sequence[int]
    ) -> Question:
        hidden = {self.number_of_item.get(each, -1) for each in asked.exclude} - {-1}
        if basis == "item" or asked.exclude_seen:
            hidden.update(seen)
        return Question(asked, basis, vector, np.array(sorted(hidden), dtype=np.int64))

    def _fold_in(self, history: Array) -> Array:
        """The vector that training would give a user with these items."""
        liked = self.items[history]
        left = self.base + self.confidence * liked.T @ liked
        return np.linalg.solve(left, (1 + self.confidence) * liked.sum(axis=0)).astype(np.float32)

    def run(self, batch: Sequence[Prepared]) -> Sequence[Recommendation]:
        """Score all items for every question, and tell the best."""
        return [self._answer(prepared.payload) for prepared in batch]

    def _answer(self, question: Question) -> Recommendation:
        scores = self._scores(question)
        scores[question.seen] = -np.inf
        count = min(question.asked.top_k, len(scores) - len(question.seen))
        best = np.argpartition(-scores, count - 1)[:count] if 0 < count < len(scores) else None
        chosen = np.arange(len(scores)) if best is None else np.sort(best)
        ranked = chosen[np.argsort(-scores[chosen], kind="stable")][: max(0, count)]
        items = [
            Recommended(self.ids[each], float(scores[each]), self.titles[each])
            for each in ranked.tolist()
        ]
        return Recommendation(items=items, basis=question.basis, usage=Usage(rows=1))

    def _scores(self, question: Question) -> Array:
        if question.vector is None:
            return self.popularity.copy()
        of = self.directions if question.basis == "item" else self.items
        return of @ question.vector

    def close(self) -> None:
        """Free the vectors."""
        del self.items, self.users, self.directions
