"""What tests of pipelines share: how a step is written, a call and its records."""

from __future__ import annotations

from typing import Any

import httpx
from tests.conftest import LiveServer
from tests.faults.checker import read_journal

from wherry.client.schema import Step
from wherry.storage.journal import OutcomeRecord


def step(name: str, deployment: str, template: Any, each: str = "") -> Step:
    """A call of a deployment with what a template makes."""
    return Step(name=name, deployment=deployment, input=template, each=each)


def ask(server: LiveServer, name: str, body: Any, **headers: str) -> httpx.Response:
    """The answer of a pipeline or a model by `/predict`."""
    return server.http.post(f"/predict/{name}", json=body, headers=headers)


def records_of(server: LiveServer, answer: httpx.Response) -> dict[str, OutcomeRecord]:
    """What the journal has of a call, by step (`.first`; empty = the call itself), each once."""
    number = answer.headers["x-request-id"]
    found = [each for each in read_journal(server.data) if each.request_id.startswith(number)]
    by_step = {each.request_id.removeprefix(number): each for each in found}
    assert len(by_step) == len(found), found
    return by_step
