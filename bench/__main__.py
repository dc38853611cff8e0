"""`python -m bench [--quick] [SCENARIO …]`: run, write the results file, rebuild the page."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from bench.load import require_wrk
from bench.machine import describe_machine
from bench.report import write_report
from bench.rounds import Plan
from bench.scenarios import chat, embeddings, growth, modalities, small_json, tensors

SCENARIOS: dict[str, Any] = {
    each.NAME: each for each in (small_json, embeddings, chat, tensors, modalities, growth)
}
QUICK = (small_json.NAME, tensors.NAME)
LEAST_ROUNDS = 5
"""Fewer rounds are a trial, which leaves the page as it is."""
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run what was asked for."""
    given = read_arguments()
    if given.report:
        write_report(RESULTS / "full.json")
        return 0
    require_wrk()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("error: two cores are needed: one for the server, one for the client")
    os.sched_setaffinity(0, {cores[-1]})
    started = time.monotonic()
    only = tuple(each for each in given.only.split(",") if each)
    found: dict[str, Any] = {"machine": describe_machine(), "is_quick": given.quick}
    with tempfile.TemporaryDirectory(prefix="wherry-bench-") as name:
        plan = Plan(
            rounds=given.rounds or (3 if given.quick else 5),
            seconds=given.seconds or (1.0 if given.quick else 2.0),
            server_cores=frozenset({cores[0]}),
            client_cores=frozenset({cores[-1]}),
            folder=Path(name),
        )
        found |= {"rounds": plan.rounds, "seconds": plan.seconds}
        for scenario in given.scenarios or (QUICK if given.quick else SCENARIOS):
            module = SCENARIOS[scenario]
            print(scenario, flush=True)
            begun = time.monotonic()
            try:
                found[scenario] = module.run(plan, only or (module.QUICK if given.quick else ()))
            except Exception as error:
                traceback.print_exc()
                found[scenario] = {"failure": repr(error)}
            found[scenario]["took_seconds"] = round(time.monotonic() - begun)
    RESULTS.mkdir(exist_ok=True)
    is_trial = bool(given.quick or given.only or plan.rounds < LEAST_ROUNDS)
    path = RESULTS / ("trial.json" if is_trial else "full.json")
    keep = json.loads(path.read_text()) if path.is_file() and given.scenarios else {}
    path.write_text(json.dumps(keep | found, indent=1))
    if not is_trial:
        write_report(path)
    print(f"done in {time.monotonic() - started:.0f} s; results in {path}")
    return int(any("failure" in found[each] for each in SCENARIOS if each in found))


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument(
        "scenarios", nargs="*", choices=[*SCENARIOS, []], metavar="SCENARIO",
        help=f"default: all of {', '.join(SCENARIOS)}",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="two peers, few rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each visit")
    parser.add_argument("--only", default="", help="contestants, by name, with commas between")
    parser.add_argument(
        "--report", action="store_true", help="only rewrite the page from the last results"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
