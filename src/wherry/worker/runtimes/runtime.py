"""How a framework loads and runs a bundle: the contract every runtime fulfils.

A runtime lives in one worker process and reads only its bundle's folder: no network (but
`upstream`), no database, no settings. Options come from the bundle's `[options]`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Sequence
from threading import Event
from typing import Any, Protocol, runtime_checkable

import msgspec

from wherry.models.bundle import Bundle
from wherry.models.tasks.task import TaskInput, TaskOutput


class Prepared(msgspec.Struct):
    """An item ready to be batched."""

    payload: Any
    rows: int = 1
    length: int = 0
    """Padded length (tokens) for grouping; 0 where length does not matter."""
    group: Hashable = ()
    """Only items of equal group may share a batch."""

    @property
    def cost(self) -> int:
        """What the batcher's budget counts: padded tokens, or rows."""
        return self.rows * (self.length or 1)


class ItemError(msgspec.Struct):
    """One item of a batch failed; the others did not."""

    code: str
    """A code of `wherry.errors`."""
    message: str


@runtime_checkable
class BatchRuntime(Protocol):
    """Answers batches; called by one thread at a time after `load` (but `prepare`: any).

    A runtime that measures its model at load may say so after it: `spare_padding`, the most tokens
    of padding that one more item may cause in a batch (see `wherry.worker.batcher`), and
    `calibration`, what it measured. That comes back as the option `calibration` of `configure` when
    the same version is loaded again. One with `joins_rows` true takes an item with rows of several
    requests for what it would take them for one by one (see `wherry.worker.rows`).
    """

    max_batch_rows: int
    """Most rows `run` takes at once."""
    max_batch_cost: int
    """Most padded tokens `run` takes at once; 0 = no limit."""

    def load(self, bundle: Bundle, device: str) -> None:
        """Open the model. `device` is `cpu` or `cuda:N`."""
        ...

    def prepare(self, item: TaskInput) -> Prepared:
        """Tokenise, resize, check; raises `InvalidInput`. Runs off the executor."""
        ...

    def run(self, batch: Sequence[Prepared]) -> Sequence[TaskOutput | ItemError]:
        """Answer every item, in order: `len(outputs) == len(batch)`."""
        ...

    def close(self) -> None:
        """Free what `load` took."""
        ...


@runtime_checkable
class ConcurrentRuntime(Protocol):
    """Batches by itself (llama.cpp, vLLM, another server)."""

    max_concurrency: int
    """Streams it runs at once; the worker never starts more."""

    def load(self, bundle: Bundle, device: str) -> None:
        """Open the model."""
        ...

    def stream(self, item: TaskInput, cancelled: Event, tenant: str) -> AsyncIterator[TaskOutput]:
        """Outputs of one item, the last with its usage; stops soon after `cancelled` is set.

        When cancelled it still ends with an output whose usage says what was spent.
        """
        ...

    def close(self) -> None:
        """Free what `load` took."""
        ...


Runtime = BatchRuntime | ConcurrentRuntime
