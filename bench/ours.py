"""Our own server as a contestant: the real `wherry serve`, with key, limits and journal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.servers import Contestant, Launch, Request, Server
from wherry import Client
from wherry.client.schema import KeyLimits

Publish = Callable[[Client], None]
"""Imports and deploys what a scenario calls."""

WIDE_LIMITS = KeyLimits(
    requests_per_minute=50_000_000, tokens_per_minute=5_000_000_000, concurrency=100_000
)
"""Every limit is counted and none is reached."""


@dataclass(frozen=True)
class Home:
    """The folders of one server."""

    folder: Path
    settings: Sequence[str] = ()
    """Flags."""
    variables: Mapping[str, str] = field(default_factory=dict[str, str])

    def launch(self, port: int) -> Launch:
        """`wherry serve` on a port."""
        command = [
            sys.executable, "-m", "wherry", "serve", "--data", str(self.folder / "data"),
            "--port", str(port), *self.settings,
        ]  # fmt: skip
        (self.folder / "home").mkdir(parents=True, exist_ok=True)
        return Launch(command, {"HOME": str(self.folder / "home"), **self.variables})

    def prepare(self, publish: Publish, cores: set[int]) -> str:
        """Start it once, publish the models over the API; gives a new key with limits."""
        nothing = self.folder / "nothing"
        self.folder.mkdir(parents=True, exist_ok=True)
        nothing.touch()
        is_ready = Request("/readyz", nothing, lambda _: True, method="GET")
        starter = Contestant("prepare", "", "", self.launch, is_ready)
        server = Server(starter, cores, self.folder)
        server.start()
        try:
            admin = (self.folder / "data" / "secrets" / "local.key").read_text().strip()
            with Client(f"http://127.0.0.1:{server.port}", admin, timeout=300) as client:
                publish(client)
                return client.keys.create("bench", limits=WIDE_LIMITS).secret
        finally:
            server.stop()
