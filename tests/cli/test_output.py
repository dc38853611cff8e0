"""What commands print on a terminal: nothing cut, nothing that steers the terminal."""

from __future__ import annotations

from wherry.cli.output import lay_out_table, visible, width_of


def test_texts_from_outside_cannot_steer_a_terminal():
    assert visible("plain 你好 👩‍🚀\n\tok") == "plain 你好 👩‍🚀\n\tok"
    shown = visible("a\x1b[2Jb\x9bc\u202ed\rx")
    assert shown == "a\\u001b[2Jb\\u009bc\\u202ed\\u000dx"


def test_a_table_keeps_to_the_width_and_cuts_nothing():
    columns = ["NAME", "STATE", "EMPTY", "WHAT"]
    rows = [
        ["iris", "ready", "", "tells three species of iris apart by four lengths of the flower"],
        ["聊天", "starting", "", "short"],
    ]
    lines = lay_out_table(columns, rows, 50)
    assert all(width_of(line) <= 50 for line in lines)
    assert "EMPTY" not in lines[0]
    text = " ".join(" ".join(lines).split())
    for word in [
        "tells",
        "three",
        "species",
        "of",
        "iris",
        "apart",
        "by",
        "four",
        "lengths",
        "of",
        "the",
        "flower",
    ]:
        assert word in text
