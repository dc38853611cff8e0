"""`python -m bench [--quick] [SCENARIO …]`: run, write the results file, rebuild the page."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.load import require_wrk
from bench.machine import describe_machine
from bench.rounds import Plan
from bench.scenarios import small_json

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("scenarios", nargs="*")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--only", default="", help="contestants, by name")
    given = parser.parse_args()
    require_wrk()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("error: two cores are needed: one for the server, one for the client")
    os.sched_setaffinity(0, {cores[1]})
    started = time.monotonic()
    found: dict[str, Any] = {"machine": describe_machine()}
    with tempfile.TemporaryDirectory(prefix="wherry-bench-") as name:
        plan = Plan(
            rounds=given.rounds or (3 if given.quick else 5),
            seconds=given.seconds or 2.0,
            server_cores=frozenset({cores[0]}),
            client_cores=frozenset({cores[1]}),
            folder=Path(name),
        )
        only = tuple(each for each in given.only.split(",") if each)
        found[small_json.NAME] = small_json.run(plan, only)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(found, indent=1))
    print(f"done in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
