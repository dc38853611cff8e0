"""The tree that the documents show is the tree, in the order that imports take."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "wherry"
UNLISTED = {"__init__", "__main__", "models"}
"""`models` is no layer of its own: its parts are."""


def is_part(path: Path) -> bool:
    if path.is_dir():
        return (path / "__init__.py").exists()
    return path.suffix == ".py"


def parts_on_disk() -> set[str]:
    top = {path.stem for path in SOURCE.iterdir() if is_part(path)} - UNLISTED
    inner = {path.stem for path in (SOURCE / "models").iterdir() if is_part(path)} - UNLISTED
    return top | {f"models.{name}" for name in inner}


def layers() -> list[list[str]]:
    """Parts by layer, highest first; those that may be missing, if they are, left out."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contract = next(
        each
        for each in project["tool"]["importlinter"]["contracts"]
        if each["name"] == "Imports point down"
    )
    present = parts_on_disk()
    found: list[list[str]] = []
    for layer in contract["layers"]:
        names = [name.strip() for name in layer.split("|")]
        found.append([name.strip("()") for name in names if name.strip("()") in present])
    return [layer for layer in found if layer]


def rows() -> list[tuple[list[str], str]]:
    """Parts and their description, row by row of the tree's page."""
    text = (SOURCE / "README.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.+?) \| (.+) \|$", text, re.MULTILINE)
    return [(re.findall(r"`([\w.]+)`", parts), words) for parts, words in cells]


def test_the_page_lists_the_parts_in_the_order_of_imports():
    assert [parts for parts, _ in rows()] == layers()


def test_the_page_lists_the_parts_that_exist():
    assert {part for parts, _ in rows() for part in parts} == parts_on_disk()


def test_every_line_says_what_the_part_is():
    for parts, words in rows():
        assert len(words) > 10, parts


def test_the_architecture_page_shows_the_same_direction():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    shown = re.search(r"^cli >.*?(?=^```)", text, re.DOTALL | re.MULTILINE)
    assert shown
    found = [
        [name.strip() for name in layer.split("|")]
        for layer in " ".join(shown[0].split()).split(">")
    ]
    assert found == layers()


def test_every_family_of_plugins_is_explained():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    groups = {
        group
        for path in SOURCE.rglob("*.py")
        for group in re.findall(r'group="(wherry\.\w+)"', path.read_text(encoding="utf-8"))
    }
    assert groups == {
        f"wherry.{name}" for name in ["tasks", "codecs", "runtimes", "sources", "recipes"]
    }
    for group in groups:
        assert group in text
    for path in re.findall(r"\]\((src/[^)]+)\)", text):
        assert (ROOT / path).exists()
