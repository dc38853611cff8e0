"""Chat: processor time a token and the first token, beside the bare llama.cpp library.

`bench.chat` measures it, in pairs and on all cores: tokens are the work of the library itself, and
what we add is small, so that pairs tell more than rounds.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bench.rounds import Plan

NAME = "chat"
QUICK = ()
LEAST_ROUNDS, LEAST_PAIRS = 10, 100
"""So many the thresholds name; a trial run with fewer rounds takes fewer."""
TIMEOUT_SECONDS = 1800


def run(plan: Plan, only: Sequence[str] = ()) -> dict[str, Any]:
    """What `python -m bench.chat` says."""
    del only
    if importlib.util.find_spec("bench.chat") is None:
        return {"failure": "bench/chat.py is not there"}
    is_trial = plan.rounds < 5
    rounds, pairs = (2, 10) if is_trial else (LEAST_ROUNDS, LEAST_PAIRS)
    every_core = plan.server_cores | plan.client_cores
    done = subprocess.run(
        [sys.executable, "-m", "bench.chat", "--rounds", str(rounds), "--pairs", str(pairs)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=TIMEOUT_SECONDS,
        preexec_fn=lambda: os.sched_setaffinity(0, every_core),
    )
    return {"rounds": rounds, "pairs": pairs, "found": json.loads(done.stdout.splitlines()[-1])}
