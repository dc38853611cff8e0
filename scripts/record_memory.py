"""Asks a server that has every model (`make demo ALL=1`) and writes down what its workers take.

    .venv/bin/python scripts/record_memory.py

The server must run on this machine; it and the key are found as by any client. Every exhibit is asked
a few times; then the resident memory of its worker and of what that has started, rounded up to tens of
MiB, replaces the catalogue's figure. Placement uses what was measured where a model was imported.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import psutil

from wherry import Client
from wherry.cli.exhibits import exhibits
from wherry.errors import WherryError

CATALOGUE = Path(__file__).parent.parent / "src/wherry/models/registry/catalog.toml"
QUESTIONS = 5
STEP_MIB = 10


def main() -> int:
    """Ask all, then write; the exit status."""
    try:
        found = measure_all()
    except WherryError as error:
        sys.stderr.write(f"error: {error.message}\nhint: {error.hint or 'make demo ALL=1'}\n")
        return 1
    text = CATALOGUE.read_text(encoding="utf-8")
    for model, memory_mib in found.items():
        text = with_memory(text, model, memory_mib)
    CATALOGUE.write_text(text, encoding="utf-8")
    sys.stdout.write(f"wrote the memory of {len(found)} models into {CATALOGUE.name}\n")
    return 0


def measure_all() -> dict[str, int]:
    """Model of the catalogue → resident MiB of its worker, once it has answered."""
    own = [each for each in exhibits() if each.model and not each.through]
    found: dict[str, int] = {}
    with Client(timeout=120) as client, tempfile.TemporaryDirectory() as cache:
        for each in own:
            question = each.fetch_inputs(Path(cache), show_nothing)
            for _ in range(QUESTIONS):
                client.predict(each.deployment, question)
            pid = next(one.pid for one in client.workers() if one.deployment == each.deployment)
            found[each.model] = max(resident_mib(pid), found.get(each.model, 0))
    return found


def resident_mib(pid: int) -> int:
    """Of a process and those that it has started."""
    worker = psutil.Process(pid)
    family = [worker, *worker.children(recursive=True)]
    return sum(each.memory_info().rss for each in family) >> 20


def show_nothing(*_: object) -> None:
    """Of the progress of a download."""


def with_memory(text: str, model: str, memory_mib: int) -> str:
    """The catalogue with another figure for a model."""
    rounded = -(-memory_mib // STEP_MIB) * STEP_MIB
    pattern = rf'(?ms)(^name = "{re.escape(model)}"$.*?^memory_mib = )\d+'
    changed, count = re.subn(pattern, rf"\g<1>{rounded}", text, count=1)
    if count != 1:
        raise SystemExit(f"error: {model!r} is not in {CATALOGUE.name}")
    return changed


if __name__ == "__main__":
    sys.exit(main())
