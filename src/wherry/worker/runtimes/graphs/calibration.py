"""How long a loaded model takes for batches of texts, and what follows for forming them.

The time of a run is nearly `run_ms` + `token_ms` times its padded tokens. So a text that joins a
batch saves `run_ms`, and its padding costs `token_ms` a token: it should join while its padding is
below their ratio. Past some number of tokens a run is no cheaper by the token (the processor is
full, then its caches are), and only makes others wait: that is the budget.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import msgspec

from wherry.worker.cores import count_cores

FORMAT = 1
SHORT, MEDIUM, LONG = 8, 32, 64
"""Tokens of the texts that are tried."""
BUDGETS = (128, 256, 512)
"""Padded tokens of a batch that are tried, at `MEDIUM`."""
SECONDS = 1.0
"""Longest calibration, but for a run that has begun."""
ROUNDS = 3
WORTH = 0.95
"""A larger budget is taken if it needs at most this share of the time by the token."""
CAUTION = 0.75
"""Share of the measured worth of a run that padding may cost: a measurement is never exact."""

RunBatch = Callable[[int, int], None]
"""Runs the model on so many texts of so many tokens each."""


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured, and what was chosen."""

    run_ms: float
    """A run without its tokens."""
    token_ms: float
    """A padded token."""
    batch_tokens: int
    """Most padded tokens of a batch."""
    spare_padding: float
    """Most tokens of padding that one more text may cause."""
    threads: int
    """That compute in a worker: one; more workers serve more than more threads do."""
    workers: int
    """That keep all processors of this machine busy: as many replicas are worth having."""
    machine: str
    """What it holds for."""
    format: int = FORMAT


def describe_machine(device: str) -> str:
    """What must be the same for a calibration to hold: processor, number of them, device."""
    name = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a line of many
            lines = (line for line in file if line.startswith(("model name", "CPU part")))
            name = next(lines, "").partition(":")[2].strip()
    except OSError:
        pass
    return f"{name or os.uname().machine}, {count_cores()} processors, {device}"


def _count_workers(device: str) -> int:
    return count_cores() if device == "cpu" else 1


def recall(known: object, device: str) -> Calibration | None:
    """An earlier calibration, if it is one of this format and machine."""
    try:
        found = msgspec.convert(known, Calibration)
    except msgspec.ValidationError:
        return None
    is_same = found.format == FORMAT and found.machine == describe_machine(device)
    return found if is_same else None


def calibrate(run: RunBatch, device: str, *, most_tokens: int, most_budget: int) -> Calibration:
    """Measure for at most about a second; other work on the machine hardly shows.

    Args:
        run: runs the model.
        device: where it runs.
        most_tokens: of a text.
        most_budget: of a batch, also where nothing better was found out.
    """
    clock = time.thread_time if device == "cpu" else time.perf_counter
    short, medium, long = (min(length, most_tokens) for length in (SHORT, MEDIUM, LONG))
    shapes = [(1, short), (1, long)]
    budgets = [budget for budget in BUDGETS if medium <= budget <= most_budget]
    shapes += [(budget // medium, medium) for budget in budgets]
    seconds: dict[tuple[int, int], float] = {}
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        for shape in shapes:
            if len(seconds) > 1 and time.perf_counter() - begin > SECONDS:
                break
            before = clock()
            run(*shape)
            seconds[shape] = min(seconds.get(shape, 1e9), clock() - before)
    token = (seconds[1, long] - seconds[1, short]) / max(1, long - short)
    token = max(token, seconds[1, long] / long / 10)
    whole = max(0.0, seconds[1, short] - token * short)
    by_token = [
        (budget, seconds[shape] / (shape[0] * shape[1]))
        for budget, shape in zip(budgets, shapes[2:], strict=True)
        if shape in seconds
    ]
    return Calibration(
        run_ms=round(whole * 1000, 3),
        token_ms=round(token * 1000, 4),
        batch_tokens=_choose_budget(by_token, most_budget),
        spare_padding=round(CAUTION * whole / token, 1),
        threads=1,
        workers=_count_workers(device),
        machine=describe_machine(device),
    )


def _choose_budget(by_token: list[tuple[int, float]], most: int) -> int:
    """The smallest budget that a larger one does not clearly beat."""
    if not by_token:
        return most
    chosen, time_a_token = by_token[0]
    for budget, other in by_token[1:]:
        if other < WORTH * time_a_token:
            chosen, time_a_token = budget, other
    return chosen


def to_report(calibration: Calibration | None, batch_rows: int, device: str) -> dict[str, Any]:
    """As `Report.calibration` carries it; also what was not measured because it is certain."""
    if calibration is not None:
        return msgspec.to_builtins(calibration)
    return {"batch_rows": batch_rows, "threads": 1, "workers": _count_workers(device)}
