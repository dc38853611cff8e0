"""The command line, run inside the test's process against a twin of the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from tests.client.twin import CATALOG, KEY, Twin, run_twin

from wherry.cli.main import main
from wherry.client.schema import DeploymentSpec


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """No test meets the servers or variables of whoever runs it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WHERRY_URL", "WHERRY_API_KEY", "WHERRY_CONFIG", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def _running_twin() -> Iterator[Twin]:
    with run_twin() as twin:
        yield twin


@pytest.fixture
def twin(_running_twin: Twin, monkeypatch) -> Twin:
    """A twin that the command line finds by its variables."""
    _running_twin.reset()
    monkeypatch.setenv("WHERRY_URL", _running_twin.url)
    monkeypatch.setenv("WHERRY_API_KEY", KEY)
    return _running_twin


@pytest.fixture
def run(capsys) -> Run:
    def run(*arguments: str) -> Outcome:
        code = main(arguments)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture
def served(twin: Twin) -> Twin:
    """A twin with a classifier and a text generation model, both deployed."""
    for entry in CATALOG[:2]:
        twin.add_version(entry.name, entry.task)
        twin.deploy(DeploymentSpec(name=entry.name, model=entry.name))
        twin.deployments[entry.name].state = "ready"
    return twin
