"""Which waiting items run next, together: pure state, no clock, no I/O.

Work-conserving: a batch is formed only when the executor is free, from what waits at that moment;
nothing is ever held back for company. The earliest deadline is the seed, items of like length
join it: on mixed texts a batch that ignores length is slower than no batch at all
(docs/decisions/0004-batching.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from wherry.worker.runtimes.runtime import Prepared

W = TypeVar("W")

PADDING_GUARD = 1.25
"""Padded tokens may be at most this multiple of real tokens."""


class Waiting(Generic[W]):
    """An item in the batcher; `owner` is whatever the caller needs back."""

    __slots__ = ("deadline", "owner", "prepared")

    def __init__(self, owner: W, prepared: Prepared, deadline: float) -> None:
        self.owner = owner
        self.prepared = prepared
        self.deadline = deadline


class Batcher(Generic[W]):
    """Items waiting for the executor.

    Args:
        max_rows: most rows in a batch; an item with more runs alone.
        max_cost: most padded tokens in a batch; 0 = no limit.
    """

    def __init__(self, max_rows: int, max_cost: int = 0) -> None:
        self._max_rows = max(1, max_rows)
        self._max_cost = max_cost
        self._waiting: dict[int, Waiting[W]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: Waiting[W]) -> None:
        """Let an item wait."""
        self._waiting[id(item)] = item

    def drop(self, is_unwanted: Callable[[Waiting[W]], bool]) -> list[Waiting[W]]:
        """Remove and return the items that need not run any more (cancelled, expired)."""
        dropped = [item for item in self._waiting.values() if is_unwanted(item)]
        for item in dropped:
            del self._waiting[id(item)]
        return dropped

    def take(self) -> list[Waiting[W]]:
        """The next batch, removed from the waiting items; empty if nothing waits."""
        if not self._waiting:
            return []
        seed = min(self._waiting.values(), key=lambda item: item.deadline)
        batch = [seed]
        rows = seed.prepared.rows
        longest = real = seed.prepared.length
        real *= rows
        for item in self._candidates(seed):
            prepared = item.prepared
            new_rows = rows + prepared.rows
            new_longest = max(longest, prepared.length)
            new_real = real + prepared.length * prepared.rows
            if new_rows > self._max_rows:
                if not longest:
                    break
                continue
            padded = new_rows * new_longest
            if self._max_cost and padded > self._max_cost:
                continue
            if padded > PADDING_GUARD * new_real:
                continue
            batch.append(item)
            rows, longest, real = new_rows, new_longest, new_real
        for item in batch:
            del self._waiting[id(item)]
        return batch

    def _candidates(self, seed: Waiting[W]) -> list[Waiting[W]]:
        """Others that may share the seed's batch: of like length first, then by arrival."""
        group = seed.prepared.group
        others = [
            item
            for item in self._waiting.values()
            if item is not seed and item.prepared.group == group
        ]
        length = seed.prepared.length
        if length:
            others.sort(key=lambda item: abs(item.prepared.length - length))
        return others
