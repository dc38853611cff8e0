"""Interleaved rounds: every round visits every server, in an order of its own."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.load import Visit, visit
from bench.servers import Contestant, Server

WARM_SECONDS = 1.0
IDLE_SECONDS = 2.0


@dataclass(frozen=True)
class Plan:
    """How long and how often; which cores."""

    rounds: int
    seconds: float
    server_cores: frozenset[int]
    client_cores: frozenset[int]
    folder: Path
    """For logs and data of this run."""
    seed: int = 1


@dataclass
class Result:
    """What all rounds gave for one contestant."""

    name: str
    label: str
    setting: str
    visits: dict[int, list[Visit]] = field(default_factory=dict[int, list[Visit]])
    start_seconds: float | None = None
    memory: dict[str, float] = field(default_factory=dict[str, float])
    idle_cpu_share: float | None = None
    failure: str = ""

    def to_plain(self) -> dict[str, Any]:
        """For the results file: medians, and each round's requests a second."""
        return {
            "name": self.name,
            "label": self.label,
            "setting": self.setting,
            "start_seconds": self.start_seconds,
            "memory": self.memory,
            "idle_cpu_share": self.idle_cpu_share,
            "failure": self.failure,
            "loads": {str(count): summarise(visits) for count, visits in self.visits.items()},
        }


def summarise(visits: Sequence[Visit]) -> dict[str, Any]:
    """Medians over the rounds; errors are summed."""

    def median(name: str) -> float:
        return round(statistics.median(getattr(each, name) for each in visits), 4)

    return {
        "requests_per_second": median("requests_per_second"),
        "p50_ms": median("p50_ms"),
        "p99_ms": median("p99_ms"),
        "cpu_us": median("cpu_us"),
        "errors": sum(each.errors for each in visits),
        "cpu_us_by_process": {
            kind: round(statistics.median(each.parts.get(kind, 0.0) for each in visits), 2)
            for kind in visits[0].parts
        },
        "rounds": [each.requests_per_second for each in visits],
        "rounds_cpu_us": [each.cpu_us for each in visits],
        "rounds_p50_ms": [each.p50_ms for each in visits],
    }


def run_rounds(
    contestants: Sequence[Contestant],
    loads: Mapping[str, tuple[int, ...]] | tuple[int, ...],
    plan: Plan,
    between: Callable[[], object] | None = None,
) -> list[Result]:
    """Start all, visit each once a round at each number of connections, stop all.

    `between` is called once a round, while all are idle.

    A contestant that cannot be started, or stops answering right, is left out from then on; its
    result says why.
    """
    results = {each.name: Result(each.name, each.label, each.setting) for each in contestants}
    servers: dict[str, Server] = {}
    try:
        for each in contestants:
            server = Server(each, set(plan.server_cores), plan.folder)
            if _attempt(results[each.name], "start", partial(_first_start, server)):
                servers[each.name] = server
        for name, server in servers.items():
            if server.contestant.is_resident:
                results[name].idle_cpu_share = server.idle_cpu_share(IDLE_SECONDS)
        order = random.Random(plan.seed)
        for number in range(plan.rounds):
            if between is not None:
                between()
            names = [name for name in servers if not results[name].failure]
            order.shuffle(names)
            print(f"  round {number + 1} of {plan.rounds}", flush=True)
            for name in names:
                counts = loads if isinstance(loads, tuple) else loads[name]
                work = partial(_visit, servers[name], results[name], counts, plan)
                _attempt(results[name], "visit", work)
    finally:
        for server in servers.values():
            server.stop()
    return list(results.values())


def _first_start(server: Server) -> None:
    server.start()
    print(f"  {server.contestant.name} answers after {server.start_seconds} s", flush=True)
    if not server.contestant.is_resident:
        server.stop()


def _visit(server: Server, result: Result, counts: tuple[int, ...], plan: Plan) -> None:
    is_resident = server.contestant.is_resident
    if not is_resident:
        server.start()
    try:
        server.check()
        cores = set(plan.client_cores)
        if not is_resident or not result.visits:
            visit(server.target, server.root, max(counts), WARM_SECONDS, cores)
        for count in counts:
            seconds = plan.seconds if count > 1 else max(1.0, plan.seconds / 2)
            found = visit(server.target, server.root, count, seconds, cores)
            result.visits.setdefault(count, []).append(found)
        server.check()
        server.measure_memory()
    finally:
        if not is_resident:
            server.stop()
    result.start_seconds, result.memory = server.start_seconds, server.memory
    shown = "  ".join(
        f"c={count} {visits[-1].requests_per_second:.0f}/s {visits[-1].cpu_us:.0f} µs"
        + "".join(f" {kind} {cost:.0f}" for kind, cost in visits[-1].parts.items())
        for count, visits in result.visits.items()
    )
    print(f"    {result.name:24} {shown}", flush=True)


def _attempt(result: Result, what: str, work: Any) -> bool:
    """Do it; a failure is the result then, and the others go on."""
    try:
        work()
    except Exception as error:
        result.failure = f"{what}: {error}"
        print(f"  {result.name} is left out: {result.failure[:2000]}", flush=True)
    return not result.failure
