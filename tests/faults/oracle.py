"""Models whose answers prove themselves: a keyed hash of the request's nonce and the version.

A wrong answer, another request's row or another version's answer cannot pass for a right one. A
request may also command a fault: sleep, hang, crash.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import IntEnum
from pathlib import Path

KEY = b"the tests' own key"


class Command(IntEnum):
    """What the model does before it answers."""

    ANSWER = 0
    SLEEP = 1
    """Milliseconds."""
    HANG = 2
    HANG_IN_C = 3
    """Sleeps with the interpreter's lock held: no other thread of the worker moves."""
    SEGFAULT = 4
    EXIT = 5
    RECURSE = 6
    RECURSE_IN_C = 7
    PRINT = 9
    """Writes so many MiB to its standard output, descriptor and all."""
    ALLOCATE = 10


ORACLE = """
import ctypes, hashlib, hmac, os, sys, time

import numpy

KEY, VERSION = {key!r}, {version}


def answer(nonce):
    digest = hmac.digest(KEY, b"%d/%d" % (nonce, VERSION), hashlib.sha256)
    return int.from_bytes(digest[:6], "big")


def recurse_in_c():
    # a C callback that calls itself: Python's own bound never stops it, the stack's end does
    sys.setrecursionlimit(2_000_000_000)
    deeper = []
    deeper.append(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: deeper[0]()))
    deeper[0]()


def obey(command, argument):
    if command == 1:
        time.sleep(argument / 1000)
    elif command == 2:
        while True:
            pass
    elif command == 3:
        ctypes.PyDLL(None).sleep(600)
    elif command == 4:
        ctypes.string_at(0)
    elif command == 5:
        os._exit(argument)
    elif command == 6:
        obey(command, argument)
    elif command == 7:
        recurse_in_c()
    elif command == 9:
        block = b"x" * 99 + b"\\n"
        for _ in range(argument):
            os.write(1, block * 10486)
    elif command == 10:
        held = []
        while True:
            held.append(numpy.ones(8 << 20, dtype=numpy.uint8))


class Model:
    def predict(self, batch):
        results = []
        for item in batch:
            nonce, command, argument = (int(each) for each in item["X"])
            obey(command, argument)
            results.append({{"X": numpy.array([answer(nonce), VERSION], dtype=numpy.int64)}})
        return results
"""

TOML = """
format_version = 1
task = "tensor"
runtime = "python_class"
licence = "Apache-2.0"
files = ["model.py"]
max_batch_rows = {rows}
idempotent = {idempotent}

[sample]
X = [1, 0, 0]

[[signature.inputs]]
name = "X"
datatype = "INT64"
shape = [3]

[[signature.outputs]]
name = "X"
datatype = "INT64"
shape = [2]
"""

STREAM = '''
import hashlib, hmac, time

KEY = {key!r}


class Model:
    def stream(self, request):
        """The prompt is `nonce pieces milliseconds`."""
        text = request["messages"][-1]["content"]
        parts = [int(each) for each in text.split()] if text[:1].isdigit() else [0, 2, 0]
        nonce, pieces, pause = parts
        for number in range(pieces):
            time.sleep(pause / 1000)
            yield hmac.digest(KEY, b"%d.%d" % (nonce, number), hashlib.sha256).hex()[:8] + " "
'''

STREAM_TOML = """
format_version = 1
task = "text-generation"
runtime = "python_stream"
licence = "Apache-2.0"
files = ["model.py"]

[options]
max_concurrency = 8
"""


def expected_answer(nonce: int, version: int) -> int:
    """What version `version` answers to a nonce."""
    digest = hmac.digest(KEY, b"%d/%d" % (nonce, version), hashlib.sha256)
    return int.from_bytes(digest[:6], "big")


def expected_piece(nonce: int, number: int) -> str:
    """A piece of the streaming oracle."""
    return hmac.digest(KEY, b"%d.%d" % (nonce, number), hashlib.sha256).hex()[:8] + " "


def write_oracle(folder: Path, version: int = 1, *, rows: int = 1, idempotent: bool = True) -> Path:
    """A bundle of the oracle that says it is this version; `rows` are batched at most."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(ORACLE.format(key=KEY, version=version))
    text = TOML.format(rows=rows, idempotent=str(idempotent).lower())
    (folder / "wherry.toml").write_text(text)
    return folder


def write_stream_oracle(folder: Path) -> Path:
    """A bundle of the oracle that streams."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(STREAM.format(key=KEY))
    (folder / "wherry.toml").write_text(STREAM_TOML)
    return folder
