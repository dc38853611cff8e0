"""How a worker keeps and gives back memory, in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")

PRELUDE = """
import threading, sys
import numpy as np
from pathlib import Path
from wherry.memory import give_back_memory, settle_memory, share_heap

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

def fill_and_free():
    blocks = [np.ones(1 << 20, dtype=np.uint8) for _ in range(48)]
"""
THREADS = """
{share}
settle_memory()
before, everyone = resident_mib(), threading.Barrier(6)

def work():
    everyone.wait()
    for _ in range(6):  # in turn: never more than one of them needs memory
        with turn:
            fill_and_free()
    everyone.wait()

turn = threading.Lock()
threads = [threading.Thread(target=work, daemon=True) for _ in range(5)]
for thread in threads:
    thread.start()
everyone.wait()
everyone.wait()
print(resident_mib() - before)
"""
IDLE = """
settle_memory()
before = resident_mib()
blocks = [np.ones(1 << 20, dtype=np.uint8) for _ in range(200)]
del blocks[:-1]  # the last one holds the heap's end where it is
kept = resident_mib() - before
give_back_memory()
print(kept, resident_mib() - before)
"""


def run(code: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, check=True
    )
    return [int(each) for each in done.stdout.split()]


def test_a_process_with_nothing_to_do_gives_its_free_memory_back():
    kept, left = run(IDLE)
    assert kept > 150
    assert left < 20


def test_threads_keep_no_memory_each():
    (apart,) = run(THREADS.format(share=""))
    (shared,) = run(THREADS.format(share="share_heap()"))
    assert apart > 150  # what is prevented does happen
    assert shared < 80
