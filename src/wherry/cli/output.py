"""What commands print: answers (tables, JSON) to stdout; progress, questions, errors to stderr."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
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
    """Print rows under their columns: fitted to a terminal, plain and uncut elsewhere."""
    texts = [["" if cell is None else visible(str(cell)) for cell in row] for row in rows]
    width = terminal_width()
    if width is None:
        _print_plain([list(columns), *texts])
        return
    head, *lines = lay_out_table(columns, texts, width)
    from rich.console import Console

    Console(highlight=False).print(head, style="bold", markup=False, soft_wrap=True)
    for line in lines:
        print(line)


def lay_out_table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines of a table on a terminal: nothing is cut, and words are not broken.

    Columns that are empty everywhere are left out. A last column that is too wide is wrapped in
    its place; what has no place at all goes under its row.
    """
    used = [index for index in range(len(columns)) if not rows or any(row[index] for row in rows)]
    cells = [[columns[index], *(row[index] for row in rows)] for index in used]
    widths = [max(map(width_of, column)) for column in cells]
    count = _count_fitting(widths, width)
    room = width - sum(widths[:count]) - len(GAP) * count
    last = cells[count] if count == len(cells) - 1 and room >= LEAST_PROSE_COLUMNS else None
    beneath = cells[count:] if last is None else []
    lines: list[str] = []
    for number in range(len(rows) + 1):
        line = GAP.join(pad(cells[each][number], widths[each]) for each in range(count))
        pieces = [] if last is None else wrap(last[number], room)
        lines.append((line + GAP + pieces[0] if pieces else line).rstrip())
        lines += [" " * (width - room) + piece for piece in pieces[1:]]
        if number:
            facts = [f"{each[0].lower()} {each[number]}" for each in beneath if each[number]]
            lines += [f"    {piece}" for piece in wrap(", ".join(facts), width - 4)]
    return lines


GAP = "  "
LEAST_PROSE_COLUMNS = 24


def _count_fitting(widths: Sequence[int], width: int) -> int:
    """How many columns have room side by side; the first always has."""
    used = -len(GAP)
    for count, each in enumerate(widths):
        used += len(GAP) + each
        if used > width and count:
            return count
    return len(widths)


def print_fields(fields: Mapping[str, object]) -> None:
    """Print one thing, a line a field; empty ones are left out."""
    shown = {
        name: visible(str(value))
        for name, value in fields.items()
        if value not in (None, "", [], {})
    }
    indent = max((width_of(name) for name in shown), default=0) + len(GAP) + 1
    for name, text in shown.items():
        print_wrapped(pad(f"{name}:", indent) + text, indent)


def print_wrapped(text: str, indent: int = 0) -> None:
    """Print a line; on a terminal its words are wrapped, and the lines after it indented."""
    width = terminal_width()
    if width is None or width_of(text) <= width or "\n" in text:
        print(text)
        return
    first, *others = wrap(text[indent:], width - indent) or [""]
    print(text[:indent] + first)
    for line in others:
        print(" " * indent + line)


def _print_plain(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (pad(text, width) for text, width in zip(row, widths, strict=True))
        print(GAP.join(padded).rstrip())


def wrap(text: str, width: int) -> list[str]:
    """Lines of whole words; a word that is longer than a line stays whole, to be copied."""
    lines: list[str] = []
    for word in text.split():
        if lines and width_of(lines[-1]) + 1 + width_of(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def pad(text: str, width: int) -> str:
    """A text with blanks up to a width."""
    return text + " " * (width - width_of(text))


def width_of(text: str) -> int:
    """Columns that a text takes on a terminal; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def terminal_width() -> int | None:
    """Columns of the terminal that reads our answers; None if a pipe or a file does."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def note(text: str) -> None:
    """Tell the person something that is not the answer."""
    print(text, file=sys.stderr, flush=True)


def print_error(error: errors.WherryError | UsageError) -> None:
    """`error: …` and `hint: …`, a line each."""
    note(f"error: {one_line(error.message)}")
    if error.hint:
        note(f"hint: {one_line(error.hint)}")


def visible(text: str) -> str:
    """A text from outside with what would steer a terminal written out, by their code."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t\u200d" else f"\\u{ord(each):04x}"
        for each in text
    )


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
        BarColumn(BAR_COLUMNS),
        TextColumn("{task.fields[amount]}"),
    )
    started = time.monotonic()
    console = Console(stderr=True)
    room = max(console.width - BAR_COLUMNS - AMOUNT_COLUMNS, AMOUNT_COLUMNS)
    with Bars(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(escape(title), total=None, amount="")

        def report(now: Progress) -> None:
            words = f"{title}: {now.stage}" if now.stage else title
            bars.update(
                bar,
                description=escape(shorten(one_line(words), room)),
                completed=now.done,
                total=now.total or None,
                amount=format_amount(now, time.monotonic() - started),
            )

        yield report


BAR_COLUMNS = 20
AMOUNT_COLUMNS = 36
"""What `12.0 MB of 100.0 MB, 3.1 MB/s` and the spinner take."""


def shorten(text: str, longest: int) -> str:
    """A text cut to a length, with a sign that it was."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


HERE = Path()


def new_file(name: str, suffix: str, folder: Path = HERE) -> Path:
    """The first of NAME-1, NAME-2 … in the folder that is not there yet."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    numbered = (folder / f"{stem}-{number}{suffix}" for number in itertools.count(1))
    return next(path for path in numbered if not path.exists())


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
