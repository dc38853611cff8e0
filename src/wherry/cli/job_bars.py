"""How far several jobs are, each on a bar of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from wherry.cli.output import note

if TYPE_CHECKING:
    from wherry.client import Client
    from wherry.client.schema import Job

POLL_SECONDS = 0.2
OVER = frozenset({"succeeded", "failed", "cancelled"})


def follow_jobs(client: Client, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Job]]:
    """Each job by its name when it is over, in whatever way; bars show the others meanwhile."""
    waiting = dict(jobs)
    with Bars(jobs) as show:
        while waiting:
            for name, job in list(waiting.items()):
                now = client.jobs.get(job.id)
                show(name, now)
                if now.state in OVER:
                    del waiting[name]
                    yield name, now
            time.sleep(POLL_SECONDS)


class Bars:
    """A bar for every job; on a pipe, a line when one is done."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = list(names)
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        self._done: set[str] = set()

    def __enter__(self) -> Callable[[str, Job], None]:
        if sys.stderr.isatty() and self._names:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("{task.fields[name]:<11}"),
                BarColumn(30),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._progress.start()
            for name in self._names:
                self._tasks[name] = self._progress.add_task("waiting", name=name, total=None)
        return self._show

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _show(self, name: str, job: Job) -> None:
        is_done = job.state == "succeeded"
        if self._progress is None:
            if is_done and name not in self._done:
                self._done.add(name)
                note(f"{name:<11} model is here")
            return
        now = job.progress
        self._progress.update(
            self._tasks[name],
            description="done" if is_done else now.stage or job.state,
            total=1 if is_done else now.total or None,
            completed=1 if is_done else now.done,
        )
