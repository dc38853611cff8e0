"""Which waiting items run next, together: pure state, no clock, no I/O.

Work-conserving: a batch is formed only when the executor is free, from what waits at that moment;
nothing is ever held back for company. The item due first is the seed, items of like length join
it: on mixed texts a batch that ignores length is slower than no batch at all
(docs/decisions/0004-batching.md, 0020-calibrated-batches.md).

The contract, which `tests/worker/test_batcher.py` checks:

* Every item that was added leaves exactly once: in a batch of `take`, or in what `drop` returns.
* `take` gives a batch whenever something waits. Its first item is the one due first of all: no
  item can be overtaken by more than those that were due before it (and one batch at a time).
* Due is the deadline, or `PATIENCE_SECONDS` after arrival if that is earlier: a far deadline does
  not mean waiting for ever behind those with near ones.
* All items of a batch have one `group`. Rows are at most `max_rows`, padded tokens (rows times the
  greatest length) at most `max_cost`; an item that breaks a bound by itself runs alone.
* Items without length join in the order in which they are due. Items with length join by nearness
  to the seed's, while the padding that each one causes is worth less
  than the run that it saves: at most `spare_padding` tokens, or, for a model that has not been
  calibrated, while padded tokens are at most `PADDING_GUARD` times the real ones.

`add` costs O(log n) comparisons, `take` O(log n) for each item that it takes, `drop` O(n).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable
from heapq import heappop, heappush
from typing import Generic, TypeVar

from wherry.worker.runtimes.runtime import Prepared

W = TypeVar("W")

PADDING_GUARD = 1.25
"""Most padded tokens to real ones, where nothing has been measured."""
PATIENCE_SECONDS = 5.0
"""Longest time for which an item with a far deadline gives way to those with near ones."""


class Waiting(Generic[W]):
    """An item in the batcher; `owner` is whatever the caller needs back.

    Args:
        owner: the caller's.
        prepared: what a runtime made of the input.
        deadline: monotonic time by which somebody wants the answer.
        arrived: monotonic time; without it only the deadline counts.
        index: the caller's, too: which of the owner's items it is.
    """

    __slots__ = ("deadline", "due", "index", "is_gone", "owner", "prepared")

    def __init__(
        self,
        owner: W,
        prepared: Prepared,
        deadline: float,
        arrived: float = math.inf,
        index: int = 0,
    ) -> None:
        self.owner = owner
        self.prepared = prepared
        self.deadline = deadline
        self.index = index
        patience = arrived + PATIENCE_SECONDS
        self.due = deadline if deadline < patience else patience
        self.is_gone = False
        """Taken or dropped; the batcher may still hold it for a while."""


class Batcher(Generic[W]):
    """Items waiting for the executor.

    Args:
        max_rows: most rows in a batch; an item with more runs alone.
        max_cost: most padded tokens in a batch; 0 = no limit.
        spare_padding: most tokens of padding that one more item may cause; negative: unknown.
    """

    def __init__(self, max_rows: int, max_cost: int = 0, spare_padding: float = -1.0) -> None:
        self._max_rows = max(1, max_rows)
        self._max_cost = max_cost
        self._spare_padding = spare_padding
        self._groups: dict[Hashable, _Group[W]] = {}
        self._heads: list[tuple[float, int, _Group[W]]] = []
        """A heap: the item due first of each group, and some that are not any more."""
        self._added = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, item: Waiting[W]) -> None:
        """Let an item wait; it may be added once."""
        key = item.prepared.group
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(key)
        self._added += 1
        self._waiting += 1
        if group.add(item, self._added):
            heappush(self._heads, (item.due, self._added, group))

    def drop(self, is_unwanted: Callable[[Waiting[W]], bool]) -> list[Waiting[W]]:
        """Remove and return the items that need not run any more (cancelled, expired)."""
        dropped: list[Waiting[W]] = []
        for group in list(self._groups.values()):
            found = [item for item in group.items() if is_unwanted(item)]
            if not found:
                continue
            for item in found:
                item.is_gone = True
            dropped += found
            group.forget_gone()
            self._note_head(group)
        self._waiting -= len(dropped)
        return dropped

    def take(self) -> list[Waiting[W]]:
        """The next batch, removed from the waiting items; empty if nothing waits."""
        heads = self._heads
        while heads:
            _, number, group = heappop(heads)
            if group.by_due and group.by_due[0][1] == number:
                break
        else:
            return []
        seed = group.by_due[0][2]
        batch = self._like(group, seed) if seed.prepared.length else self._in_turn(group)
        self._waiting -= len(batch)
        self._note_head(group)
        return batch

    def _note_head(self, group: _Group[W]) -> None:
        """Let the group be found by its item due first; forget it if it has none."""
        head = group.head()
        if head is None:
            del self._groups[group.key]
        else:
            heappush(self._heads, (head[0], head[1], group))

    def _in_turn(self, group: _Group[W]) -> list[Waiting[W]]:
        """Items whose length does not matter, as they are due."""
        by_due, room = group.by_due, self._max_rows
        batch: list[Waiting[W]] = []
        while by_due:
            item = by_due[0][2]
            if not item.is_gone:
                if item.prepared.length:
                    break
                room -= item.prepared.rows
                if room < 0 and batch:
                    break
                item.is_gone = True
                batch.append(item)
            heappop(by_due)
        return batch

    def _like(self, group: _Group[W], seed: Waiting[W]) -> list[Waiting[W]]:
        """The seed, and what is near it in length; the nearest first, in both directions."""
        by_length = group.by_length
        prepared = seed.prepared
        low = bisect_left(by_length, (prepared.length, seed.due, group.by_due[0][1]))
        high = low + 1
        rows, longest = prepared.rows, prepared.length
        real = rows * longest
        seed.is_gone = True
        batch = [seed]
        may_fall, may_rise = low > 0, high < len(by_length)
        while may_fall or may_rise:
            falls = may_fall and (
                not may_rise
                or prepared.length - by_length[low - 1][0] < by_length[high][0] - prepared.length
            )
            item = by_length[low - 1 if falls else high][3]
            more_rows = rows + item.prepared.rows
            more_longest = max(longest, item.prepared.length)
            more_real = real + item.prepared.rows * item.prepared.length
            padding = more_rows * more_longest - rows * longest - more_real + real
            if self._fits(more_rows, more_longest, more_real, padding):
                rows, longest, real = more_rows, more_longest, more_real
                item.is_gone = True
                batch.append(item)
                low, high = (low - 1, high) if falls else (low, high + 1)
                may_fall, may_rise = may_fall and low > 0, may_rise and high < len(by_length)
            elif falls:  # what is shorter still would only be padded more
                may_fall = False
            else:
                may_rise = False
        del by_length[low:high]
        return batch

    def _fits(self, rows: int, longest: int, real: int, padding: int) -> bool:
        padded = rows * longest
        if rows > self._max_rows or (self._max_cost and padded > self._max_cost):
            return False
        if self._spare_padding < 0:
            return padded <= PADDING_GUARD * real
        return padding <= self._spare_padding


class _Group(Generic[W]):
    """Waiting items that may share a batch."""

    __slots__ = ("by_due", "by_length", "key")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.by_due: list[tuple[float, int, Waiting[W]]] = []
        """A heap; may hold items that are gone."""
        self.by_length: list[tuple[int, float, int, Waiting[W]]] = []
        """Sorted; those with a length."""

    def add(self, item: Waiting[W], number: int) -> bool:
        """Take an item in; whether it is the one due first now."""
        heappush(self.by_due, (item.due, number, item))
        if item.prepared.length:
            insort(self.by_length, (item.prepared.length, item.due, number, item))
        return self.by_due[0][1] == number

    def items(self) -> list[Waiting[W]]:
        """All that wait."""
        return [item for _, _, item in self.by_due if not item.is_gone]

    def head(self) -> tuple[float, int, Waiting[W]] | None:
        """The item due first."""
        while self.by_due and self.by_due[0][2].is_gone:
            heappop(self.by_due)
        return self.by_due[0] if self.by_due else None

    def forget_gone(self) -> None:
        """Hold on to nothing that was dropped."""
        self.by_due = sorted(each for each in self.by_due if not each[2].is_gone)
        self.by_length = [each for each in self.by_length if not each[3].is_gone]
