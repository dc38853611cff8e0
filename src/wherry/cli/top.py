"""`wherry top`: what a server does, as it does it."""

# ruff: noqa: D417  # what every command has is described once, in command.py

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import msgspec

from wherry import errors
from wherry.cli.command import DEFAULT, SERVER, Common, command
from wherry.cli.deployments import describe_rollout
from wherry.cli.output import (
    format_age,
    lay_out_table,
    parse_duration,
    print_table,
    shorten,
    show,
    terminal_width,
    visible,
)
from wherry.client.schema import Deployment, Overview, WorkerInfo

if TYPE_CHECKING:
    from wherry.client import Client

MIN_INTERVAL_SECONDS = 0.2
COLUMNS = (
    "NAME",
    "STATE",
    "REQ/S",
    "ERR/S",
    "P50",
    "P95",
    "RUN",
    "WAIT",
    "WORKERS",
    "BUSY",
    "MEMORY",
    "VERSIONS",
    "CHANGE",
)


class Picture(msgspec.Struct):
    """One look at a server."""

    at: float
    url: str
    overview: Overview
    workers: list[WorkerInfo]
    """Empty if the key may not see them."""


@command(
    "top",
    group=SERVER,
    examples=["wherry top", "wherry top --interval 5s", "wherry top --once -o json"],
)
def top(*, interval: str = "1s", once: bool = False, common: Common = DEFAULT) -> None:
    """Watch deployments: load, latencies, queues, workers, memory, changes; Ctrl-C ends it.

    In a pipe or as JSON it shows one picture and ends.

    Args:
        interval: Time between two pictures.
        once: Show one picture and end.
    """
    seconds = max(MIN_INTERVAL_SECONDS, parse_duration(interval))
    with common.connect() as client:
        if once or common.output == "json" or not sys.stdout.isatty():
            picture = look(client)
            show(common, picture, lambda: _print_once(picture))
            return
        _watch(client, seconds)


def look(client: Client) -> Picture:
    """What is shown, asked of the server."""
    overview = client.overview()
    try:
        workers = client.workers()
    except errors.NotPermitted:
        workers = []
    return Picture(time.time(), client.url, overview, workers)


def _watch(client: Client, interval_seconds: float) -> None:
    from rich.live import Live
    from rich.text import Text

    trouble = ""
    picture = look(client)
    with Live(auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        while True:
            lines = lay_out_picture(picture, terminal_width() or 80, trouble)
            live.update(Text("\n".join(lines)), refresh=True)
            time.sleep(interval_seconds)
            try:
                picture, trouble = look(client), ""
            except errors.TryLater as error:  # it restarts: the last picture stays, and says so
                trouble = error.message


def lay_out_picture(picture: Picture, width: int, trouble: str = "") -> list[str]:
    """The lines of a screen."""
    lines = [shorten(each, width) for each in _head(picture)]
    if trouble:
        lines.append(shorten(f"as of {format_age(picture.at)} ago: {trouble}", width))
    rows = [[visible(str(cell)) for cell in row] for row in _rows(picture)]
    return [*lines, "", *lay_out_table(COLUMNS, rows, width)]


def _print_once(picture: Picture) -> None:
    for line in _head(picture):
        print(line)
    print()
    print_table(COLUMNS, _rows(picture))


def _head(picture: Picture) -> list[str]:
    overview = picture.overview
    at = time.strftime("%H:%M:%S", time.localtime(picture.at))
    busy = sum(each.busy for each in picture.workers)
    found = [
        f"{picture.url}  {at}  up {format_age(overview.started_at)}  "
        f"memory {overview.memory_used_mib} of {overview.memory_limit_mib} MiB  "
        f"workers {len(picture.workers)}, {busy:.1f} busy  "
        f"last hour {overview.requests_last_hour} requests, {overview.errors_last_hour} errors"
    ]
    return found + [
        visible(f"{each.severity}: {each.subject}: {each.what}") for each in overview.problems[:3]
    ]


def _rows(picture: Picture) -> list[tuple[object, ...]]:
    # the busiest first: on a short screen the rest may be cut
    found = sorted(
        picture.overview.deployments,
        key=lambda each: (-each.load.running, -each.load.requests_per_second, each.name),
    )
    return [_row(each, [w for w in picture.workers if w.deployment == each.name]) for each in found]


def _row(deployment: Deployment, workers: list[WorkerInfo]) -> tuple[object, ...]:
    load = deployment.load
    shares = deployment.versions.items()
    return (
        deployment.name,
        deployment.state,
        f"{load.requests_per_second:.1f}",
        f"{load.errors_per_second:.1f}" if load.errors_per_second else "",
        f"{load.latency_ms_p50:.3g} ms" if load.latency_ms_p50 else "",
        f"{load.latency_ms_p95:.3g} ms" if load.latency_ms_p95 else "",
        load.running,
        f"{load.waiting} ({load.wait_seconds:.1f} s)" if load.waiting else "",
        f"{deployment.replicas_ready} of "
        f"{deployment.spec.replicas.min}..{deployment.spec.replicas.max}",
        f"{sum(each.busy for each in workers) * 100:.0f} %" if workers else "",
        f"{sum(each.memory_mib for each in workers)} MiB" if workers else "",
        ", ".join(name if len(shares) == 1 else f"{name} {share} %" for name, share in shares),
        describe_rollout(deployment) or deployment.cause,
    )
