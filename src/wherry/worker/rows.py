"""Small requests that come together and end at once: understood, run and answered as one table.

Nearly all that a small request of a tabular model costs is handling: its parts as arrays, its turn,
its answer's parts. Where the runtime lets requests share a table, its batches take next to no time
and the requests are alike, none of that is needed for each: their rows become one matrix, the model
is called once, and the answers are cut from one table. What is not so simple, in whatever way,
makes no answer here, and the requests go the usual way one by one (`wherry.worker.loop`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wherry.frames import Call, Piece, Usage
from wherry.models.codecs.codec import RowsCodec
from wherry.models.tasks.task import Task, TaskConfig, TaskOutput
from wherry.worker.runtimes.runtime import BatchRuntime, ItemError, Prepared

MAX_REST = 64
"""Most tables in a row that are not tried."""

Gathered = tuple[Call, Sequence[Piece]]
"""Small requests that came in one frame, and what they have in common."""


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


def answer_rows(
    bodies: Sequence[memoryview],
    call: Call,
    codec: RowsCodec,
    task: Task,
    config: TaskConfig,
    runtime: BatchRuntime,
    run: Callable[[Sequence[Prepared]], Sequence[TaskOutput | ItemError]],
) -> Sequence[bytes] | None:
    """The answers to requests of one row each, in order; None if they must go the usual way.

    Args:
        bodies: theirs.
        call: what they have in common.
        codec: of the call.
        task: what the model does.
        config: what the bundle says of it.
        runtime: which prepares the rows.
        run: what runs them.

    Raises:
        Exception: whatever codec, task or model raise; then, too, they must.
    """
    item = codec.decode_rows(bodies, call, task, config)
    if item is None:
        return None
    prepared = runtime.prepare(item)
    if prepared.rows != len(bodies):
        return None
    (output,) = run((prepared,))
    if isinstance(output, ItemError) or output.usage != Usage(rows=len(bodies)):
        return None
    answers = codec.encode_rows(output, call, task, config)
    return answers if answers is not None and len(answers) == len(bodies) else None
