"""The one thread in which a batch runtime loads and runs."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from wherry.errors import WherryError
from wherry.worker.runtimes.runtime import BatchRuntime, ItemError, Prepared

QUICK_SECONDS = 0.002
SLOW_SECONDS = 0.05
QUICK_RUNS = 32
"""Batches in a row that must have been quick; a few that are not (a busy machine) are forgiven."""

Result = Any
"""A `TaskOutput` or an `ItemError`."""


class Pace:
    """Whether batches are so quick that the loop may run them itself.

    The loop reads no frames and answers no ping while it runs a batch, so it takes only what has
    been quick for long, and never code that came with a model.
    """

    def __init__(self, *, may_be_quick: bool) -> None:
        self._may_be_quick = may_be_quick
        self._quick_runs = 0

    @property
    def is_quick(self) -> bool:
        """As far as the last runs tell."""
        return self._quick_runs >= QUICK_RUNS

    def note(self, seconds: float) -> None:
        """A batch ran for so long."""
        if seconds > SLOW_SECONDS or not self._may_be_quick:
            self._quick_runs = 0
        elif seconds > QUICK_SECONDS:
            self._quick_runs = min(self._quick_runs, 2 * QUICK_RUNS) - 1
        else:
            self._quick_runs += 1


class Executor:
    """Runs functions one after another; answers arrive on the loop.

    `busy_since` is the monotonic start of what runs now, 0.0 when idle: the watchdog's evidence.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: SimpleQueue[
            tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]
        ]
        self._queue = SimpleQueue()
        self.busy_since = 0.0
        self.finished = 0
        self.last_seconds = 0.0
        threading.Thread(target=self._work, name="executor", daemon=True).start()

    def submit(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run `work` in the thread, then `done(result, error)` on the loop."""
        self._queue.put((work, done))

    def begin(self) -> float:
        """Something runs from now on; also what the loop runs itself."""
        self.busy_since = now = time.monotonic()
        return now

    def end(self, begun: float) -> float:
        """It has ended; the seconds that it took."""
        self.busy_since = 0.0
        self.finished += 1
        return time.monotonic() - begun

    async def call(self, work: Callable[[], Any]) -> Any:
        """Run `work` in the thread and wait for its result."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.submit(work, done)
        return await future

    def _work(self) -> None:
        while True:
            work, done = self._queue.get()
            begun = self.begin()
            result, error = None, None
            try:
                result = work()
            except BaseException as caught:  # noqa: BLE001 - the loop decides what it means
                error = caught
            self.last_seconds = self.end(begun)
            try:
                self._loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:
                return  # the loop is closed: the process is ending


def run_batch(runtime: BatchRuntime, batch: Sequence[Prepared]) -> list[Result]:
    """One result for every item, whatever the runtime does.

    A batch that raises is run again item by item, so that one poisonous row fails alone.
    """
    try:
        return _checked(runtime, batch)
    except Exception as error:  # noqa: BLE001 - a model may raise anything
        if len(batch) == 1:
            return [_item_error(error)]
    results: list[Result] = []
    for item in batch:
        try:
            results += _checked(runtime, [item])
        except Exception as error:  # noqa: BLE001 - as above
            results.append(_item_error(error))
    return results


def _checked(runtime: BatchRuntime, batch: Sequence[Prepared]) -> list[Result]:
    results = list(runtime.run(batch))
    if len(results) != len(batch):
        raise RuntimeError(f"the model gave {len(results)} results for {len(batch)} inputs")
    return results


def _item_error(error: Exception) -> ItemError:
    if isinstance(error, WherryError):
        return ItemError(error.code, error.text)
    traceback.print_exception(error, file=sys.stderr)  # into `wherry logs`, never to the caller
    return ItemError("model_failed", "the model failed on this input")
