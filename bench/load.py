"""Loads a server with wrk from a core of its own, and counts what it cost the server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.machine import cpu_by_process, cpu_seconds

SCRIPT = Path(__file__).with_name("post.lua")
TIMEOUT_SECONDS = 30
ERRORS = ("connect", "read", "write", "status", "timeout")


class Visit(NamedTuple):
    """What one visit of one server gave."""

    connections: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """CPU time of the server's whole tree for a request, in microseconds."""
    errors: int
    parts: dict[str, float]
    """The same by kind of process, where they have names."""


class Target(NamedTuple):
    """Where requests go, and what they are."""

    url: str
    headers: Mapping[str, str]
    bodies: Path
    """File of bodies: a body a line, sent in turn; or, if `is_whole`, one body."""
    is_whole: bool = False
    many: bool = False


def require_wrk() -> None:
    """Leave with the one thing to do if there is no wrk."""
    if shutil.which("wrk") is None:
        raise SystemExit(
            "error: wrk, the client, is missing. Run once: sudo apt-get install -y wrk"
        )


def write_bodies(path: Path, bodies: Sequence[bytes]) -> Path:
    """The file of bodies that a `Target` names; bodies are JSON without line breaks."""
    path.write_bytes(b"\n".join(bodies) + b"\n")
    return path


def run_wrk(target: Target, connections: int, seconds: float, cores: set[int]) -> dict[str, float]:
    """One run of wrk; its counts and latencies as the script prints them."""
    command = [
        "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s",
        f"--timeout={TIMEOUT_SECONDS}s", f"--script={SCRIPT}",
    ]  # fmt: skip
    for name, value in target.headers.items():
        command += ["-H", f"{name}: {value}"]
    command += [target.url, "--", str(target.bodies), "whole" if target.is_whole else "lines"]
    environment = {**os.environ, **({"BENCH_MANY_BODIES": "1"} if target.many else {})}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=seconds + TIMEOUT_SECONDS + 30,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise RuntimeError(f"wrk failed: {done.stdout[-500:]}{done.stderr[-500:]}")


def visit(target: Target, root: int, connections: int, seconds: float, cores: set[int]) -> Visit:
    """Load a server whose tree hangs below `root` for some seconds."""
    before, parts_before = cpu_seconds(root), cpu_by_process(root)
    found = run_wrk(target, connections, seconds, cores)
    used = cpu_seconds(root) - before
    parts = {
        kind: round((seconds - parts_before.get(kind, 0.0)) / max(found["requests"], 1) * 1e6, 2)
        for kind, seconds in cpu_by_process(root).items()
    }
    errors = int(sum(found[name] for name in ERRORS))
    good = max(found["requests"] - found["status"], 0)
    return Visit(
        connections,
        round(good / found["seconds"], 2),
        round(found["p50_us"] / 1000, 4),
        round(found["p99_us"] / 1000, 4),
        round(used / max(found["requests"], 1) * 1e6, 2),
        errors,
        parts,
    )
