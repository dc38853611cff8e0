"""Small requests that come together and end at once: understood, run and answered as one table.

Nearly all that a small request of a tabular model costs is handling: its parts as arrays, its turn,
its answer's parts. Where the runtime lets requests share a table, its batches take next to no time
and the requests are alike, none of that is needed for each: their rows become one matrix, the model
is called once, and the answers are cut from one table. What is not so simple, in whatever way,
makes no answer here, and the requests go the usual way one by one (`wherry.worker.loop`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from wherry.frames import Call, Piece, Usage
from wherry.models.codecs.codec import Codec, RowsCodec
from wherry.models.tasks.task import Task, TaskConfig, TaskOutput
from wherry.worker.runtimes.runtime import BatchRuntime, ItemError, Prepared

MAX_REST = 64
"""Most tables in a row that are not tried."""

Gathered = tuple[Call, Sequence[Piece]]
"""Small requests that came in one frame, and what they have in common."""
Run = Callable[[Sequence[Prepared]], Sequence[TaskOutput | ItemError]]


class Asker(Protocol):
    """The gateway whose requests they are."""

    def presume(self, presumes: bool) -> None:
        """Let every request count as begun, or not any more."""
        ...

    def send_rows(self, run_us: int, rows: Sequence[tuple[int, bytes]]) -> None:
        """Answers by the numbers of their requests."""
        ...


class Tables:
    """Makes tables of requests.

    Args:
        runtime: one with `joins_rows`, which prepares them.
        run: runs what is prepared, on the loop.
        max_rows: of a table.
        task: what the model does.
        config: what its bundle says of that.
        find_codec: the codec of a call.
    """

    def __init__(
        self,
        runtime: BatchRuntime,
        run: Run,
        max_rows: int,
        task: Task,
        config: TaskConfig,
        find_codec: Callable[[Call], Codec],
    ) -> None:
        self._runtime = runtime
        self._run = run
        self._max_rows = max_rows
        self._task = task
        self._config = config
        self._find_codec = find_codec
        self._codecs: dict[str, RowsCodec | None] = {}
        self._habit = Habit()

    def answer(self, asker: Asker, gathered: Sequence[Gathered]) -> list[Gathered]:
        """Answer what can be; returns what must go the usual way."""
        left: list[Gathered] = []
        for group in group_alike(gathered):
            if any(call.wants_gist or call.alone for call, _ in group):
                left += group
                continue
            asked = [(call, piece) for call, pieces in group for piece in pieces]
            for start in range(0, len(asked), self._max_rows):
                some = asked[start : start + self._max_rows]
                if not self._answer_table(asker, group[0][0], [piece for _, piece in some]):
                    left += [(call, (piece,)) for call, piece in some]
        return left

    def _answer_table(self, asker: Asker, call: Call, pieces: Sequence[Piece]) -> bool:
        if not self._habit.may_try():
            return False
        begun = time.monotonic()
        asker.presume(True)
        try:
            answers = self._compute([body for _, _, body in pieces], call)
        except Exception:  # noqa: BLE001 - the usual way finds out whose fault it is
            answers = None
        self._habit.note(answers is not None)
        if answers is None:
            return False
        numbers = [number for number, _, _ in pieces]
        run_us = int((time.monotonic() - begun) * 1e6)
        asker.send_rows(run_us, list(zip(numbers, answers, strict=True)))
        return True

    def _compute(self, bodies: Sequence[memoryview], call: Call) -> Sequence[bytes] | None:
        """The answers to requests of one row each, in order; None if they are not so simple."""
        codec = self._find_rows_codec(call)
        if codec is None:
            return None
        item = codec.decode_rows(bodies, call, self._task, self._config)
        if item is None:
            return None
        prepared = self._runtime.prepare(item)
        if prepared.rows != len(bodies):
            return None
        (output,) = self._run((prepared,))
        if isinstance(output, ItemError) or output.usage != Usage(rows=len(bodies)):
            return None
        answers = codec.encode_rows(output, call, self._task, self._config)
        return answers if answers is not None and len(answers) == len(bodies) else None

    def _find_rows_codec(self, call: Call) -> RowsCodec | None:
        try:
            return self._codecs[call.codec]
        except KeyError:
            codec = self._find_codec(call)
            does_task = not codec.tasks or self._task.name in codec.tasks
            found = codec if does_task and isinstance(codec, RowsCodec) else None
            self._codecs[call.codec] = found
            return found


class Habit:
    """Whether trying tables pays: after each one that came to nothing, more are not even tried.

    A model whose answers a codec cannot cut into rows would run twice for each request otherwise.
    """

    def __init__(self) -> None:
        self._rest = 0
        self._next_rest = 1

    def may_try(self) -> bool:
        """Asked before each."""
        if self._rest:
            self._rest -= 1
            return False
        return True

    def note(self, is_answered: bool) -> None:
        """What became of one that was tried."""
        if is_answered:
            self._next_rest = 1
        else:
            self._rest = self._next_rest
            self._next_rest = min(2 * self._next_rest, MAX_REST)


def group_alike(gathered: Sequence[Gathered]) -> list[list[Gathered]]:
    """Frames whose requests may be in one table: they differ in who asks, and in nothing else."""
    if len(gathered) == 1:
        return [list(gathered)]
    groups: dict[Any, list[Gathered]] = {}
    for each in gathered:
        call = each[0]
        key = call.codec, call.deployment, call.version, *call.headers.items()
        groups.setdefault(key, []).append(each)
    return list(groups.values())
