"""Stored responses outlive the processes that made them; those that ran in one end with it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from tests.conftest import LiveServer, run_server

from wherry import Client

READY_SECONDS = 120.0
PATIENCE_SECONDS = 40.0


def sdk_of(live: LiveServer) -> openai.OpenAI:
    """A client whose calls come over connections of their own, so they meet both gateways."""
    return openai.OpenAI(
        base_url=f"{live.url}/v1",
        api_key=live.key,
        max_retries=3,
        default_headers={"connection": "close"},
        _strict_response_validation=True,
    )


def deploy_chat(live: LiveServer) -> None:
    with Client(live.url, live.key) as client:
        client.models.pull("smollm2", name="chat")
        client.deployments.deploy("chat", wait=False)
        client.deployments.wait("chat", timeout=READY_SECONDS)


def begin(sdk: openai.OpenAI) -> Any:
    """A background response that takes long."""
    return sdk.responses.create(
        model="chat", input="Write a long story.", background=True, max_output_tokens=4000
    )


def wait_until(state: str, sdk: openai.OpenAI, response_id: str) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        found = sdk.responses.retrieve(response_id)
        if found.status == state:
            return found
        time.sleep(0.2)
    raise AssertionError(f"the response is still {found.status}")


def gateways(live: LiveServer) -> list[psutil.Process]:
    children = psutil.Process(live.process.pid).children()
    return [each for each in children if "wherry: gateway" in " ".join(each.cmdline())]


def test_responses_outlive_gateways_and_the_server(tmp_path: Path):
    pytest.importorskip("xllamacpp")
    with run_server(tmp_path, "--gateways", "2") as live:
        deploy_chat(live)
        sdk = sdk_of(live)
        kept = sdk.responses.create(model="chat", input="Hi", max_output_tokens=8, temperature=0)
        running = [begin(sdk) for _ in range(4)]
        for each in running[:2]:
            assert sdk.responses.cancel(each.id).status == "cancelled", "whichever gateway runs it"
        for each in gateways(live):
            os.kill(each.pid, signal.SIGKILL)
        for each in running[2:]:
            failed = wait_until("failed", sdk, each.id)
            assert failed.error.code == "server_error"
            assert "gateway" in failed.error.message
        assert sdk.responses.retrieve(kept.id) == kept
        stopped = begin(sdk)
    with run_server(tmp_path, "--gateways", "2") as live:
        sdk = sdk_of(live)
        assert sdk.responses.retrieve(kept.id) == kept
        failed = sdk.responses.retrieve(stopped.id)
        assert failed.status == "failed", "it was told when the gateway stopped"
        assert "stopped" in failed.error.message
        with Client(live.url, live.key) as client:
            client.deployments.wait("chat", timeout=READY_SECONDS)
        follows = sdk.responses.create(
            model="chat", input="Go on", previous_response_id=kept.id, max_output_tokens=4
        )
        assert follows.usage.input_tokens > kept.usage.input_tokens
