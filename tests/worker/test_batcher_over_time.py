"""The batcher on a clock that the test turns: arrivals, cancels and deadlines at any moment."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from wherry.worker.batcher import Batcher, Waiting
from wherry.worker.runtimes.runtime import Prepared

SECONDS = st.integers(1, 400).map(lambda hundredths: hundredths / 100)


class Item:
    """A request's item, and what has become of it."""

    def __init__(self, number: int, waiting: Waiting[Any], rank: int) -> None:
        self.number = number
        self.waiting = waiting
        self.rank = rank
        """Items that may go before it: added by now, and due no later."""
        self.is_cancelled = False
        self.passed_by = 0
        """Batches that were formed while it waited."""
        self.ends: list[str] = []


class WorkerOnAClock(RuleBasedStateMachine):
    """An executor that takes the next batch whenever it is free, as `Worker` does."""

    @initialize(
        max_rows=st.integers(1, 12),
        max_cost=st.sampled_from([0, 50, 400]),
        seconds_per_batch=st.sampled_from([0.01, 0.3, 2.0]),
    )
    def start(self, max_rows: int, max_cost: int, seconds_per_batch: float) -> None:
        self.max_rows, self.max_cost = max_rows, max_cost
        self.seconds_per_batch = seconds_per_batch
        self.now = 100.0
        self.batcher: Batcher[Item] = Batcher(max_rows, max_cost)
        self.items: list[Item] = []
        self.waiting: set[Item] = set()
        self.running: list[Item] = []
        self.free_at = 0.0

    @rule(
        rows=st.sampled_from([1, 1, 1, 2, 5, 20]),
        length=st.sampled_from([0, 1, 5, 6, 20, 100]),
        group=st.sampled_from(["a", "a", "b"]),
        seconds=SECONDS,
        count=st.integers(1, 4),
    )
    def arrive(self, rows: int, length: int, group: str, seconds: float, count: int) -> None:
        for _ in range(count):
            waiting: Waiting[Any] = Waiting(
                None, Prepared(None, rows, length, group), self.now + seconds
            )
            earlier = [each for each in self.waiting if self.due(each) <= waiting.deadline]
            for each in self.waiting:
                each.rank += waiting.deadline <= self.due(each)
            item = Item(len(self.items), waiting, len(earlier))
            waiting.owner = item
            self.items.append(item)
            self.waiting.add(item)
            self.batcher.add(waiting)
        self.run_next()

    @rule(choice=st.randoms(use_true_random=False))
    def cancel(self, choice: Any) -> None:
        alive = [item for item in self.items if not item.ends]
        if alive:
            choice.choice(alive).is_cancelled = True
            self.drop()

    @rule(seconds=SECONDS)
    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.running and self.free_at <= until:
            self.finish()
        self.now = until

    def finish(self) -> None:
        self.now = max(self.now, self.free_at)
        for item in self.running:
            item.ends.append("ran")
        self.running = []
        self.run_next()

    # ------------------------------------------------------------------ as the worker does it

    @staticmethod
    def due(item: Item) -> float:
        return item.waiting.deadline

    def is_unwanted(self, item: Item) -> bool:
        return item.is_cancelled or self.now > item.waiting.deadline

    def drop(self) -> None:
        unwanted = {item for item in self.waiting if self.is_unwanted(item)}
        dropped = [
            each.owner for each in self.batcher.drop(lambda each: self.is_unwanted(each.owner))
        ]
        assert len(dropped) == len(unwanted)
        assert set(dropped) == unwanted
        for item in dropped:
            item.ends.append("dropped")
        self.waiting -= unwanted

    def run_next(self) -> None:
        if self.running or not self.waiting:
            return
        self.drop()
        batch = [each.owner for each in self.batcher.take()]
        assert bool(batch) == bool(self.waiting), "the executor is free while something waits"
        if not batch:
            return
        assert len(set(batch)) == len(batch)
        assert set(batch) <= self.waiting
        assert min(map(self.due, self.waiting)) == min(map(self.due, batch))
        self.check_bounds([item.waiting.prepared for item in batch])
        self.waiting -= set(batch)
        for item in self.waiting:
            item.passed_by += 1
            assert item.passed_by <= item.rank, "an item is overtaken by some that are due later"
        self.running = batch
        self.free_at = self.now + self.seconds_per_batch

    def check_bounds(self, batch: list[Prepared]) -> None:
        assert len({each.group for each in batch}) == 1
        if len(batch) == 1:
            return  # what is over a bound runs alone
        rows = sum(each.rows for each in batch)
        assert rows <= self.max_rows
        if self.max_cost:
            assert rows * max(each.length for each in batch) <= self.max_cost

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if not hasattr(self, "items"):
            return
        assert len(self.batcher) == len(self.waiting)
        for item in self.items:
            places = len(item.ends) + (item in self.waiting) + (item in self.running)
            assert places == 1

    def teardown(self) -> None:
        if not hasattr(self, "items"):
            return
        batches = 0
        while self.running:
            self.finish()
            batches += 1
            assert batches <= len(self.items) + 1
        assert not self.waiting
        assert all(len(item.ends) == 1 for item in self.items)


TestWorkerOnAClock = WorkerOnAClock.TestCase
TestWorkerOnAClock.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
