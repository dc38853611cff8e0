"""One server with a real model of every kind, for all tests over the wire."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import openai
import pytest
from tests.conftest import LiveServer, run_server

from wherry import Client

QUICK_TRAINING = {"digits": {"passes": 8}, "topics": {"passes": 2}}
READY_SECONDS = 120.0


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that serves `chat`, `embeddings`, `iris`, `digits`, `topics` and `echo`."""
    for package in ("skops", "onnxruntime", "tokenizers", "xllamacpp"):
        pytest.importorskip(package)
    with run_server(tmp_path_factory.mktemp("wire"), "--allow-code") as server:
        with Client(server.url, server.key) as client:
            bring_up(client)
        yield server


def bring_up(client: Client) -> None:
    """Models by catalogue, by recipe and by import, all at once; return when all answer."""
    jobs = {
        "chat": client.models.pull("smollm2", name="chat", wait=False),
        "embeddings": client.models.pull("minilm", name="embeddings", wait=False),
        "iris": client.models.pull("iris", wait=False),
    }
    for recipe, parameters in QUICK_TRAINING.items():
        jobs[recipe] = client.models.train(recipe, recipe, parameters=parameters, wait=False)
    client.models.import_model(
        Path(str(files("wherry.learning") / "examples" / "echo")), name="echo"
    )
    client.deployments.deploy("echo", wait=False)
    for name, job in jobs.items():
        client.jobs.wait(job.id, timeout=READY_SECONDS)
        client.deployments.deploy(name, wait=False)
    for name in ("echo", *jobs):
        client.deployments.wait(name, timeout=READY_SECONDS)


@pytest.fixture
def sdk(live: LiveServer) -> Iterator[openai.OpenAI]:
    """The OpenAI SDK, which here refuses answers of a wrong shape."""
    with openai.OpenAI(
        base_url=f"{live.url}/v1",
        api_key=live.key,
        max_retries=0,
        timeout=60,
        _strict_response_validation=True,
    ) as client:
        yield client
