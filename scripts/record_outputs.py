"""Asks a server that has every model (`make demo ALL=1`) and writes down what it answers.

    .venv/bin/python scripts/record_outputs.py

Server and key are found as by any client. The answers go into docs/tasks/outputs.json, from which
`make docs` makes the tables of tasks; run it when an exhibit is new (src/wherry/cli/exhibits.toml) or
answers otherwise than before. A model that does not answer ends it, and nothing is written.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import msgspec

from wherry import Client
from wherry.cli.answers import sum_up
from wherry.cli.exhibits import Exhibit, exhibits
from wherry.errors import WherryError

OUTPUTS = Path(__file__).parent.parent / "docs" / "tasks" / "outputs.json"


class Output(msgspec.Struct):
    """What was asked and answered, in words."""

    task: str
    model: str
    question: str
    answer: str


def main() -> int:
    """Ask all, then write; the exit status."""
    try:
        outputs = ask_all()
    except WherryError as error:
        sys.stderr.write(f"error: {error.message}\nhint: {error.hint or 'make demo ALL=1'}\n")
        return 1
    OUTPUTS.write_bytes(msgspec.json.format(msgspec.json.encode(outputs), indent=1) + b"\n")
    sys.stdout.write(f"wrote {len(outputs)} answers into docs/tasks/{OUTPUTS.name}\n")
    return 0


def ask_all() -> list[Output]:
    """Every exhibit's question to the server."""
    with Client() as client, tempfile.TemporaryDirectory() as cache:
        return [ask(client, exhibit, Path(cache)) for exhibit in exhibits()]


def ask(client: Client, exhibit: Exhibit, cache: Path) -> Output:
    """One question."""
    inputs = exhibit.fetch_inputs(cache, lambda *_: None)
    answer = client.predict(exhibit.deployment, inputs)
    return Output(exhibit.task, exhibit.model, exhibit.words, sum_up(answer))


if __name__ == "__main__":
    sys.exit(main())
