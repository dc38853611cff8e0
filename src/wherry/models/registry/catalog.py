"""The built-in catalogue: models that a name is enough for. Its data is `catalog.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from wherry.client.schema import CatalogEntry
from wherry.errors import InvalidInput, NotFound
from wherry.models.bundle import MANIFEST, Manifest, encode_manifest
from wherry.models.sources.catalog import fetch
from wherry.models.sources.source import Progress, target_path

DATA_FILE = "catalog.toml"


class CatalogFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of an entry: of the model, or of the data that a recipe learns from."""

    name: str
    source: str
    """A reference that names one file."""
    sha256: str
    size: int


class CatalogModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry."""

    name: str
    description: str
    licence: str
    size_bytes: int
    memory_mib: int
    task: str
    runtime: str
    good_at: str
    bad_at: str
    languages: tuple[str, ...] = ()
    recipe: str = ""
    """Set for a model that is trained here; its `files` are then data."""
    parameters: Mapping[str, Any] = {}
    """Of the recipe."""
    files: tuple[CatalogFile, ...] = ()
    """Of a model, the main one first."""
    options: Mapping[str, Any] = {}
    labels: tuple[str, ...] = ()
    sample: Mapping[str, Any] = {}

    @property
    def source(self) -> str:
        """What the versions made of this entry say of their source."""
        if self.recipe:
            return f"recipe:{self.recipe}"
        # of a model that the system has, the entry itself is all there is to fetch
        return self.files[0].source if self.files else f"catalogue:{self.name}"

    @property
    def manifest(self) -> Manifest:
        """The manifest of the entry's model; a recipe writes its own."""
        if self.recipe:
            raise InvalidInput(f"{self.name!r} is trained, not downloaded")
        return Manifest(
            task=self.task,
            runtime=self.runtime,
            description=self.description,
            licence=self.licence,
            source=self.source,
            languages=self.languages,
            good_at=self.good_at,
            bad_at=self.bad_at,
            labels=self.labels,
            files=tuple(file.name for file in self.files),
            options=self.options,
            sample=self.sample,
        )


class CatalogData(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data file."""

    model: tuple[CatalogModel, ...]


@cache
def catalog() -> Mapping[str, CatalogModel]:
    """Every entry by its name, in the file's order."""
    text = resources.files(__package__ or "").joinpath(DATA_FILE).read_text(encoding="utf-8")
    data = msgspec.convert(tomllib.loads(text), CatalogData)
    return {entry.name: entry for entry in data.model}


def find_entry(name: str) -> CatalogModel:
    """The entry of a name; `NotFound` lists the known ones."""
    entry = catalog().get(name)
    if entry is None:
        raise NotFound(
            f"the catalogue has no model {name[:80]!r}", hint="known: " + ", ".join(catalog())
        )
    return entry


def fetch_entry(
    entry: CatalogModel, target_folder: Path, *, cache: Path, progress: Progress
) -> dict[str, Path]:
    """Fetch an entry's files by their names, each checked against its digest.

    A model's folder also gets its `wherry.toml`, so that `detect` reads it like any other.

    Raises:
        InvalidInput: a file is not what the catalogue says.
        Unavailable: the network is down; the next call continues.
    """
    found: dict[str, Path] = {}
    for file in entry.files:
        target = target_path(target_folder, file.name)
        (path,) = fetch(
            file.source, target.parent, cache=cache, progress=progress, sha256=file.sha256
        )
        found[file.name] = path if path == target else path.rename(target)
    if not entry.recipe:
        target_folder.mkdir(parents=True, exist_ok=True)
        (target_folder / MANIFEST).write_text(encode_manifest(entry.manifest), encoding="utf-8")
    return found


def describe_entries(
    installed_sources: Collection[str], free_memory_mib: int
) -> Sequence[CatalogEntry]:
    """The catalogue for people, with what fits into the free memory and what is there already."""
    return [
        CatalogEntry(
            name=entry.name,
            task=entry.task,
            source=entry.source,
            licence=entry.licence,
            size_bytes=entry.size_bytes,
            memory_mib=entry.memory_mib,
            languages=list(entry.languages),
            good_at=entry.good_at,
            bad_at=entry.bad_at,
            description=entry.description,
            fits=entry.memory_mib <= free_memory_mib,
            fit_reason=f"needs {entry.memory_mib} MiB, {free_memory_mib} MiB are free",
            installed=entry.source in installed_sources,
        )
        for entry in catalog().values()
    ]
