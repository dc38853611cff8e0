"""The live view: what it shows, and that it fits."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

import pytest
from tests.cli.conftest import Run
from tests.client.twin import KEY, Twin

from wherry.cli.output import width_of
from wherry.cli.top import lay_out_picture, look
from wherry.client import Client
from wherry.client.schema import LoadInfo, RolloutInfo


@pytest.fixture
def busy(served: Twin) -> Twin:
    """A twin whose classifier tries a canary."""
    mood = served.deployments["sentiment"]
    mood.load = LoadInfo(
        running=3, waiting=7, wait_seconds=0.4, requests_per_second=12.5, latency_ms_p95=40.0
    )
    mood.versions = {"sentiment@1": 90, "sentiment@2": 10}
    mood.rollout = RolloutInfo(
        phase="canary", candidate="sentiment@2", share=10.0, reason="88 more requests are needed"
    )
    return served


def test_one_picture_shows_load_queue_latency_and_canary(run: Run, busy: Twin):
    text = run("top", "--once").out
    line = next(each for each in text.splitlines() if each.startswith("sentiment"))
    for told in ("12.5", "40 ms", "7 (0.4 s)", "sentiment@2 10 %", "canary sentiment@2 at 10 %"):
        assert told in line
    assert "memory 100 of 4000 MiB" in text
    assert text.index("sentiment") < text.index("smollm2"), "the busiest first"


def test_json_is_one_picture(run: Run, busy: Twin):
    picture = run("top", "-o", "json").json
    loads = {each["name"]: each["load"]["waiting"] for each in picture["overview"]["deployments"]}
    assert loads == {"sentiment": 7, "smollm2": 0}
    assert picture["workers"][0]["state"] == "ready"


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_screen_is_never_wider_than_its_terminal(busy: Twin, width: int):
    with Client(busy.url, KEY) as client:
        lines = lay_out_picture(look(client), width, trouble="the server restarts")
    assert all(width_of(each) <= width for each in lines), lines
    assert any("restarts" in each for each in lines)


def test_on_a_terminal_it_goes_on_until_interrupted(busy: Twin):
    main, terminal = pty.openpty()
    environment = {**os.environ, "WHERRY_URL": busy.url, "WHERRY_API_KEY": KEY, "TERM": "xterm"}
    command = [sys.executable, "-m", "wherry", "top", "--interval", "0.2s"]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        seen = b""
        deadline = time.monotonic() + 20
        while seen.count(b"REQ/S") < 2 and time.monotonic() < deadline:
            if select.select([main], [], [], 0.5)[0]:
                seen += os.read(main, 65536)
        process.send_signal(2)
        # a terminal that is not read would keep it from ending
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([main], [], [], 0.1)[0]:
                try:
                    seen += os.read(main, 65536)
                except OSError:
                    break
        assert process.wait(10) == 130
    os.close(main)
    assert seen.count(b"REQ/S") >= 2, "it was drawn again"
