"""The server itself: what it is, does and offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from wherry import errors
from wherry.client.schema import CatalogEntry, Event, Overview, Point, Problem, WorkerInfo
from wherry.client.wire import (
    Call,
    Emit,
    EventReader,
    LinkError,
    Pause,
    Request,
    Stream,
    ask,
    ask_for_all,
    decode,
    exchange,
    listen,
    platform,
)

Topic = Literal["deployments", "jobs", "models", "keys", "workers"]
RECONNECT_SECONDS = 1.0


def read_overview() -> Call[Overview]:
    """The server at a glance."""
    return (yield from ask(platform("GET", "overview"), Overview))


def list_workers() -> Call[list[WorkerInfo]]:
    """The processes that have a version loaded."""
    return (yield from ask_for_all(platform("GET", "workers"), WorkerInfo))


def list_catalog() -> Call[list[CatalogEntry]]:
    """The models that `pull` knows by name."""
    return (yield from ask_for_all(platform("GET", "catalog"), CatalogEntry))


def find_problems() -> Call[list[Problem]]:
    """What is wrong with the server, why, and what to do."""
    return (yield from ask_for_all(platform("GET", "doctor"), Problem))


def check_ready() -> Call[bool]:
    """Whether the server takes requests; False also when none answers."""
    try:
        yield from exchange(Request(method="GET", path="/readyz"))
    except errors.TryLater:
        return False
    return True


class Series(msgspec.Struct):
    """What one deployment did, interval by interval."""

    deployment: str = ""
    points: list[Point] = []


def read_metrics(
    deployment: str, *, window_seconds: int = 3600, points: int = 60
) -> Call[list[Point]]:
    """Requests, errors and latency of a deployment over the last `window_seconds`."""
    query = {"deployment": deployment, "window_seconds": window_seconds, "points": points}
    series = yield from ask(platform("GET", "metrics", query=query), Series)
    return series.points


def watch_events(topics: Sequence[Topic] = (), *, after: int | None = None) -> Stream[Event]:
    """What happens on the server, as it happens; reconnects and misses nothing.

    Args:
        topics: only these; empty = all.
        after: id of the last event you have seen.
    """
    last_id = "" if after is None else str(after)
    connected_before = False
    while True:
        request = platform("GET", "events", query={"topics": ",".join(topics) or None})
        if last_id:
            request = msgspec.structs.replace(request, headers={"Last-Event-ID": last_id})
        reader = EventReader()
        try:
            yield from listen(request)
            connected_before = True
            while (event := (yield from reader.next())) is not None:
                last_id = event.id or last_id
                yield Emit(decode(event.data, Event))
        except LinkError:
            pass  # reconnected below, from the last id
        except errors.Unavailable:
            if not connected_before:
                raise
        yield Pause(RECONNECT_SECONDS)
