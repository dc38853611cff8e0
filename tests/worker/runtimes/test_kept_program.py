"""Real processes: a program, what it starts, its keeper, and a worker that dies."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wherry.worker.runtimes.kept_program import KeptProgram

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process groups as Linux has them")

FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1] + ".tmp", "w").write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".tmp", sys.argv[1])
time.sleep(600)
"""
"""A program with a child of its own, which tells both their numbers."""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAMILY


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return b"\nState:\tZ" not in Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return False


def family(told: Path) -> list[int]:
    wait_for(told.exists, "the program did not start")
    return [int(each) for each in told.read_text().split()]


def start(
    code: str, told: Path, on_end: Callable[[int], None] = lambda status: None
) -> KeptProgram:
    return KeptProgram([sys.executable, "-c", code, str(told)], {}, on_end)


@pytest.mark.parametrize("code", [FAMILY, STUBBORN])
def test_ending_it_ends_all_it_has_started(tmp_path: Path, code: str) -> None:
    ended: list[int] = []
    program = start(code, tmp_path / "told", ended.append)
    pids = family(tmp_path / "told")
    assert all(map(lives, pids))
    program.end()
    wait_for(lambda: not any(map(lives, pids)), "something was left over")
    assert ended == [], "an end that was wanted is no news"


def test_a_program_that_ends_by_itself_is_told_with_its_status(tmp_path: Path) -> None:
    told: queue.Queue[int] = queue.Queue()
    KeptProgram([sys.executable, "-c", "raise SystemExit(7)"], {}, told.put)
    assert told.get(timeout=60) == 7


def test_a_program_that_is_killed_is_told_and_its_children_end(tmp_path: Path) -> None:
    told: queue.Queue[int] = queue.Queue()
    start(FAMILY, tmp_path / "told", told.put)
    program, child = family(tmp_path / "told")
    os.kill(program, signal.SIGKILL)
    assert told.get(timeout=60) == 128 + signal.SIGKILL
    wait_for(lambda: not lives(child), "its child was left over")


def test_a_keeper_that_is_killed_takes_the_program_along(tmp_path: Path) -> None:
    told: queue.Queue[int] = queue.Queue()
    start(FAMILY, tmp_path / "told", told.put)
    pids = family(tmp_path / "told")
    os.kill(os.getpgid(pids[0]), signal.SIGKILL)
    assert told.get(timeout=60) == -signal.SIGKILL
    wait_for(lambda: not any(map(lives, pids)), "something was left over")


def test_a_worker_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = f"""
        import sys, time
        from wherry.worker.runtimes.kept_program import KeptProgram
        KeptProgram([sys.executable, "-c", {FAMILY!r}, {str(told)!r}], {{}}, print)
        time.sleep(600)
    """
    worker = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    pids = family(told)
    worker.kill()
    worker.wait()
    wait_for(lambda: not any(map(lives, pids)), "something outlived its worker")


def test_its_memory_is_that_of_all_its_processes(tmp_path: Path) -> None:
    program = start(FAMILY, tmp_path / "told")
    family(tmp_path / "told")
    assert program.memory_mib() > 10  # a keeper, a program and its child: Pythons, all three
    program.end()
    assert program.memory_mib() == 0


def test_variables_reach_it(tmp_path: Path) -> None:
    told: queue.Queue[int] = queue.Queue()
    code = "import os; raise SystemExit(int(os.environ['WHERRY_TEST_STATUS']))"
    KeptProgram([sys.executable, "-c", code], {"WHERRY_TEST_STATUS": "9"}, told.put)
    os.unsetenv("WHERRY_TEST_STATUS")
    assert told.get(timeout=60) == 9
