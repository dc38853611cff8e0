"""What commands print: answers (tables, JSON) to stdout; progress, questions, errors to stderr."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from wherry import errors

if TYPE_CHECKING:
    from wherry.cli.command import Common
    from wherry.client.schema import Progress


class UsageError(Exception):
    """An option has a value that it cannot have; exit code 2."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def show(common: Common, value: Any, table: Callable[[], None]) -> None:
    """Print an answer as JSON, or by `table`."""
    if common.output == "json":
        print_json(value)
    else:
        table()


def print_json(value: Any) -> None:
    """Print a value for programs."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_json_line(value: Any) -> None:
    """Print one item of a stream for programs."""
    print(msgspec.json.encode(value).decode(), flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns: with rich on a terminal, plain and uncut elsewhere."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _print_plain([list(columns), *texts])
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        # Names are for copying: broken over lines at worst, never cut.
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    for row in texts:
        table.add_row(*map(Text, row))
    Console().print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """Print one thing, a line a field; empty ones are left out."""
    shown = {name: str(value) for name, value in fields.items() if value not in (None, "", [], {})}
    _print_plain([[f"{name}:", text] for name, text in shown.items()])


def _print_plain(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (
            text + " " * (width - width_of(text)) for text, width in zip(row, widths, strict=True)
        )
        print("  ".join(padded).rstrip())


def width_of(text: str) -> int:
    """Columns that a text takes on a terminal; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def note(text: str) -> None:
    """Tell the person something that is not the answer."""
    print(text, file=sys.stderr, flush=True)


def print_error(error: errors.WherryError | UsageError) -> None:
    """`error: …` and `hint: …`, a line each."""
    note(f"error: {one_line(error.message)}")
    if error.hint:
        note(f"hint: {one_line(error.hint)}")


def one_line(text: str) -> str:
    """A text without line breaks and control characters."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def confirm(question: str, *, flag: str) -> None:
    """Go on if the person says yes; `Cancelled` otherwise. Programs must give the flag."""
    if not sys.stdin.isatty():
        raise errors.InvalidInput("nobody can answer the question here", hint=f"give {flag}")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise errors.Cancelled("nothing was changed")


# ------------------------------------------------------------------------------ progress


@contextmanager
def progress(title: str) -> Generator[Callable[[Progress], None]]:
    """Show how far something is: a bar on a terminal, a line a stage elsewhere."""
    if sys.stderr.isatty():
        with _bar(title) as report:
            yield report
    else:
        yield _stage_lines(title)


def _stage_lines(title: str) -> Callable[[Progress], None]:
    told = ""

    def report(now: Progress) -> None:
        nonlocal told
        if now.stage and now.stage != told:
            told = now.stage
            note(f"{title}: {one_line(told)}")

    return report


@contextmanager
def _bar(title: str) -> Generator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
    )
    started = time.monotonic()
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(escape(title), total=None, amount="")

        def report(now: Progress) -> None:
            words = f"{title}: {now.stage}" if now.stage else title
            bars.update(
                bar,
                description=escape(one_line(words)),
                completed=now.done,
                total=now.total or None,
                amount=format_amount(now, time.monotonic() - started),
            )

        yield report


def format_amount(now: Progress, elapsed_seconds: float | None) -> str:
    """`12.0 MB of 100.0 MB, 3.1 MB/s`, or `3 of 10 epochs`; no speed if the time is unknown."""
    if not now.total and not now.done:
        return ""
    if now.unit != "B":
        of_total = f" of {now.total}" if now.total else ""
        return f"{now.done}{of_total} {now.unit}".rstrip()
    of_total = f" of {format_bytes(now.total)}" if now.total else ""
    amount = format_bytes(now.done) + of_total
    if elapsed_seconds is None:
        return amount
    return f"{amount}, {format_bytes(int(now.done / max(elapsed_seconds, 0.001)))}/s"


# ------------------------------------------------------------------------------ numbers


def format_bytes(size_bytes: int) -> str:
    """`1.5 GB`; powers of 1000, as disks and downloads are told."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_age(unix_seconds: float) -> str:
    """`3 m`, `5 h`, `2 d`: how long ago a time was."""
    if not unix_seconds:
        return ""
    seconds = max(0.0, time.time() - unix_seconds)
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


_SECONDS_BY_UNIT = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `15m`, `2h` or `30d`."""
    number = text.rstrip("smhd")
    try:
        return float(number) * _SECONDS_BY_UNIT[text[len(number) :]]
    except (ValueError, KeyError) as error:
        raise UsageError(f"{text!r} is not a duration", hint="e.g. 90s, 15m, 2h") from error
