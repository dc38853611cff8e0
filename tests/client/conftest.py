"""A twin of the server, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.client.twin import KEY, Twin, run_twin

from wherry import Client


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
def twin(_running_twin: Twin) -> Twin:
    _running_twin.reset()
    return _running_twin


@pytest.fixture
def client(twin: Twin) -> Iterator[Client]:
    with Client(twin.url, KEY) as client:
        yield client
