"""How `--help` looks: plain text in two columns, readable without colour and by a screen reader."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

LABEL_COLUMNS = 26
"""A longer label has its description on the next line."""
LONGEST_LINE = 100


class HelpText:
    """Prints the parts of a help page."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print a titled list of commands or parameters."""
        if not panel.entries:
            return
        lines = [f"{as_text(panel.title)}:"]
        for entry in panel.entries:
            lines += _entry_lines(entry, min(console.width, LONGEST_LINE))
        _print(console, [*lines, ""])

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print the usage line."""
        if usage:
            text = as_text(usage).strip()
            _print(console, [text if text.startswith("Usage:") else f"Usage: {text}", ""])

    def render_description(
        self, console: Console, options: ConsoleOptions, description: Any
    ) -> None:
        """Print what a command does."""
        width = min(console.width, LONGEST_LINE)
        for paragraph in as_text(description).split("\n\n"):
            _print(console, [*textwrap.wrap(" ".join(paragraph.split()), width), ""])


def as_text(renderable: Any) -> str:
    """What rich would show, unwrapped."""
    if renderable is None or isinstance(renderable, str):
        return renderable or ""
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=10_000, no_color=True, markup=False, highlight=False).print(renderable)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip()


def _entry_lines(entry: HelpEntry, width: int) -> list[str]:
    label = ", ".join(entry.display_labels_with_metavar)
    facts = [as_text(entry.description)]
    if entry.choices:
        facts.append(f"[{', '.join(entry.choices)}]")
    default = str(entry.default) if entry.default is not None else ""
    if default not in ("", "False", "None"):
        facts.append(f"[default: {default}]")
    if entry.required:
        facts.append("[required]")
    words = " ".join(fact for fact in facts if fact)
    indent = " " * LABEL_COLUMNS
    lines = textwrap.wrap(words, max(width - LABEL_COLUMNS, 20), break_on_hyphens=False)
    head = f"  {label}"
    if lines and len(head) + 2 <= LABEL_COLUMNS:
        head = f"{head:<{LABEL_COLUMNS}}{lines.pop(0)}"
    return [head, *(indent + line for line in lines)]


def _print(console: Console, lines: list[str]) -> None:
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
