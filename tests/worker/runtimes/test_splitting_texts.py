"""Texts are split at the ends of lines and paragraphs, whatever blanks they are made of."""

from __future__ import annotations

import pytest

from wherry.worker.runtimes.apertium import PARAGRAPHS
from wherry.worker.runtimes.text_to_text import LINES


def test_blanks_between_pieces_are_kept_as_they_came() -> None:
    text = "  One  two \n three.\n\n \tFour.\n"
    assert LINES.split(text) == [
        "",
        "  ",
        "One  two",
        " \n ",
        "three.",
        "\n\n \t",
        "Four.",
        "\n",
        "",
    ]
    assert PARAGRAPHS.split(text) == ["", "  ", "One  two \n three.", "\n\n \t", "Four.", "\n", ""]


@pytest.mark.parametrize(
    "blanks", [" " * 1_000_000, " \n" + " " * 1_000_000, ("x" + " " * 999) * 1000]
)
def test_a_million_blanks_are_looked_at_once(blanks: str) -> None:
    """Looked for from each of them, their end would be found in hours."""
    text = f"One{blanks}two"
    for splitter in (LINES, PARAGRAPHS):
        assert "".join(splitter.split(text)) == text
