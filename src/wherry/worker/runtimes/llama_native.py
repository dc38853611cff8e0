"""llama.cpp itself, imported with the environment that it needs."""

from __future__ import annotations

import os
from typing import Any

# Both are read by native code alone, once, when it is loaded; os.environ stays as it is.
# A failed check in llama.cpp would else start a debugger.
os.putenv("GGML_NO_BACKTRACE", "1")
# Threads that wait for each other spin for milliseconds by default. Where other processes want
# the cores, that takes from the thread they wait for: measured 4 to 15 times slower answers.
os.putenv("GOMP_SPINCOUNT", "1000")

import xllamacpp

llama: Any = xllamacpp
"""The package, which has no types."""
