"""What the start does when the installed uvicorn is not what our protocols stand on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from wherry import errors
from wherry.doors.http_guard import GuardedProtocol
from wherry.doors.self_check import METHODS, check_protocol, choose_protocol, find_changed

SECONDS = 0.5
"""Long enough: only what must fail waits for it."""


async def live(scope: Any, receive: Any, send: Any) -> None:
    """As much of the doors as the exchanges ask for."""
    status = 200 if scope["method"] == "GET" else 405
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


class Forgetful(GuardedProtocol):
    """Never begins the next request."""

    def on_response_complete(self) -> None:
        self.running = None


class Renamed(GuardedProtocol):
    """Has lost an attribute that is used."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        del self.expect_100_continue


class Open(GuardedProtocol):
    """Has lost a bound."""

    def _screen(self) -> None:
        pass


def choose(*protocols: type[GuardedProtocol]) -> type[GuardedProtocol]:
    return asyncio.run(choose_protocol(live, *protocols, seconds=SECONDS))


def test_the_installed_uvicorn_passes():
    assert find_changed(GuardedProtocol) == []
    asyncio.run(check_protocol(GuardedProtocol, live))


@pytest.mark.parametrize(
    ("broken", "how"),
    [
        (Forgetful, "no end of the answers"),
        (Renamed, "no expect_100_continue"),
        (Open, r"\[200\] instead of \[431\]"),
    ],
)
def test_a_guard_that_fails_does_not_serve(broken: type[GuardedProtocol], how: str):
    with pytest.raises(errors.Internal, match=how) as raised:
        choose(broken)
    assert "does not work with uvicorn" in str(raised.value)


@pytest.mark.parametrize("broken", [Forgetful, Renamed, Open])
def test_a_fast_lane_that_fails_is_left_out(broken: type[GuardedProtocol]):
    assert choose(GuardedProtocol, broken) is GuardedProtocol


def test_a_fast_lane_that_works_serves():
    class Fast(GuardedProtocol):
        pass

    assert choose(GuardedProtocol, Fast) is Fast


def test_methods_that_are_gone_or_changed_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(METHODS, "on_sight", [])
    monkeypatch.setitem(METHODS, "on_body", ["body", "more"])
    assert find_changed(GuardedProtocol) == ["on_body(self, body: 'bytes') -> 'None'", "on_sight"]
