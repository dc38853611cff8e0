"""A real server with oracles, whose processes a test may find and harm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
from tests.conftest import LiveServer, run_server
from tests.faults.checker import (
    check_answers,
    check_books,
    nothing_left_behind,
)
from tests.faults.load import Entry, Load
from tests.faults.oracle import write_oracle

from wherry import Client
from wherry.client.schema import Limits, Rollout


class House:
    """A running server and what clients saw of it."""

    def __init__(self, folder: Path, server: LiveServer, client: Client) -> None:
        self.folder = folder
        self.server = server
        self.client = client
        self.logs: list[list[Entry]] = []

    def add_oracle(self, name: str = "oracle", version: int = 1, **options: Any) -> None:
        """A new version of an oracle."""
        bundle = write_oracle(self.folder / f"{name}-{version}", version, **options)
        made = self.client.models.import_model(bundle, name=name)
        assert made.number == version

    def deploy(
        self,
        model: str = "oracle",
        *,
        name: str | None = None,
        replicas: int = 1,
        rollout: Rollout | None = None,
        **limits: Any,
    ) -> None:
        """Serve it, and wait until all its workers are ready."""
        deployment = name or model.partition("@")[0]
        self.client.deployments.deploy(
            model,
            name=name,
            replicas=replicas,
            rollout=rollout,
            limits=Limits(**limits),
            timeout=60,
        )
        self.wait_for(lambda: len(self.ready(deployment)) >= replicas)

    def load(self, key: str = "", kind: type[Load] = Load) -> Load:
        """Clients whose log is checked at the end."""
        made = kind(self.server.url, key or self.server.key)
        self.logs.append(made.log)
        return made

    def ready(self, deployment: str = "oracle") -> list[Any]:
        """Its workers that are ready."""
        return [
            each
            for each in self.client.workers()
            if each.deployment in (deployment, f"default/{deployment}") and each.state == "ready"
        ]

    def processes(self, title: str) -> list[psutil.Process]:
        """The server's processes by title."""
        found = []
        for each in psutil.Process(self.server.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if title in " ".join(each.cmdline()):
                    found.append(each)
        return found

    def wait_for(self, what: Callable[[], object], seconds: float = 30.0) -> float:
        """Wait until something holds; tells how long it took."""
        begun = time.monotonic()
        while not what():
            assert time.monotonic() - begun < seconds, f"it never came to be\n{self.server.log()}"
            time.sleep(0.05)
        return time.monotonic() - begun

    def check(self) -> None:
        """Every answer is right."""
        for log in self.logs:
            check_answers(log)


@contextlib.contextmanager
def run_house(folder: Path, *arguments: str, **variables: str) -> Iterator[House]:
    """A server that, when it has ended, has kept its promises: answers, books, nothing left."""
    with nothing_left_behind(folder) as traces:
        with (
            run_server(folder, "--allow-code", *arguments, **variables) as server,
            Client(server.url, server.key) as client,
        ):
            traces.note(server)
            house = House(folder, server, client)
            yield house
            traces.note(server)
        house.check()
        check_books([entry for log in house.logs for entry in log], server.data)


def kill(process: psutil.Process | int) -> None:
    """SIGKILL by number."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process if isinstance(process, int) else process.pid, signal.SIGKILL)


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a story on a loop of its own."""
    asyncio.run(story())
