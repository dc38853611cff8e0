"""Two servers that differ in the path that requests take: the fast lane, and ASGI alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.conftest import LiveServer, run_server
from tests.data_plane import ANY
from tests.wire.http_conformance.exchange import KEY

from wherry import Client
from wherry.models.bundle import Manifest, encode_manifest
from wherry.models.tasks.task import Signature

STALL_SECONDS = 3.0
KEEP_ALIVE_SECONDS = 6.0
MAX_BODY_BYTES = 1 << 20
VARIABLES = {
    "WHERRY_ADMIN_KEY": KEY.decode(),
    "WHERRY_CLIENT_STALL_SECONDS": str(STALL_SECONDS),
    "WHERRY_KEEP_ALIVE_SECONDS": str(KEEP_ALIVE_SECONDS),
    "WHERRY_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
}
"""One key, so that both get the very same bytes."""

ECHO = """
import time

class Model:
    '''Gives X back; sleeps first if its first value is negative. Says what it ran.'''

    def predict(self, batch):
        for item in batch:
            first = float(item["X"].ravel()[0])
            print(f"ran {first}", flush=True)
            time.sleep(max(0.0, -first))
        return [{"X": item["X"]} for item in batch]
"""
STREAM = """
import time

class Model:
    '''Counts to 2000 in some ten seconds, and says so if it was stopped before.'''

    def stream(self, request):
        number = 0
        try:
            for number in range(2000):
                time.sleep(0.005)
                yield f"{number} "
        finally:
            print(f"ended at {number}", flush=True)
"""


def bundle(folder: Path, source: str, manifest: Manifest) -> Path:
    """A bundle with one file."""
    folder.mkdir()
    (folder / "model.py").write_text(source)
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    return folder


def bring_up(live: LiveServer, folder: Path) -> None:
    """Deploy `echo`, which runs one request at a time, and `stream`."""
    echo = Manifest(
        task="tensor",
        runtime="python_class",
        files=("model.py",),
        signature=Signature(ANY, ANY),
        sample={"X": [1.0]},
        max_batch_rows=1,
    )
    stream = Manifest(
        task="text-generation",
        runtime="python_stream",
        files=("model.py",),
        options={"max_concurrency": 4},
        sample={"text": "x", "max_tokens": 1},
    )
    with Client(live.url, live.key) as client:
        client.models.import_model(bundle(folder / "echo", ECHO, echo), name="echo")
        client.models.import_model(bundle(folder / "stream", STREAM, stream), name="stream")
        for name in ("echo", "stream"):
            client.deployments.deploy(name, wait=False)
        for name in ("echo", "stream"):
            client.deployments.wait(name, timeout=120)


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LiveServer]]:
    """The servers by the path they take."""
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        servers: dict[str, LiveServer] = {}
        for path, switch in (("lane", "1"), ("asgi", "0")):
            folder = tmp_path_factory.mktemp(path)
            servers[path] = stack.enter_context(
                run_server(folder, "--allow-code", **VARIABLES, WHERRY_FAST_LANE=switch)
            )
        folders = [tmp_path_factory.mktemp("models") for _ in servers]
        list(pool.map(bring_up, servers.values(), folders))
        yield servers


@pytest.fixture(params=["lane", "asgi"])
def live(both: dict[str, LiveServer], request: pytest.FixtureRequest) -> LiveServer:
    """Each of them."""
    return both[request.param]


def address_of(live: LiveServer) -> tuple[str, int]:
    """Where it listens."""
    host, _, port = live.url.removeprefix("http://").partition(":")
    return host, int(port)
