"""A model on disk: a folder with its files and `wherry.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from wherry.errors import InvalidInput
from wherry.models.tasks.task import Signature, TaskConfig

MANIFEST = "wherry.toml"
FORMAT_VERSION = 1
CODE_RUNTIMES = frozenset({"python_class", "python_stream"})
"""Runtimes whose bundles bring Python code: only where the operator allows it."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `wherry.toml` holds. Immutable with the version: changing it makes a new version."""

    task: str
    """A name of `wherry.models.tasks.catalog`."""
    runtime: str
    """A name of `wherry.worker.runtimes.catalog`."""
    format_version: int = FORMAT_VERSION
    description: str = ""
    licence: str = ""
    """SPDX identifier, as the source states it."""
    source: str = ""
    """Where the files came from, in the form that `wherry pull` takes."""
    languages: tuple[str, ...] = ()
    good_at: str = ""
    bad_at: str = ""
    labels: tuple[str, ...] = ()
    """Names of classes, in the order of the model's outputs."""
    signature: Signature = Signature()
    files: tuple[str, ...] = ()
    """Files the runtime opens, relative to the bundle, the main one first."""
    options: Mapping[str, Any] = {}
    """The runtime's and the task's own settings (documented in each runtime's module)."""
    requirements: tuple[str, ...] = ()
    """pip requirements of a Python model; installed at import, in an own environment."""
    sample: Mapping[str, Any] = {}
    """One input in the plain form that `/predict` takes; used by smoke test and docs."""
    idempotent: bool = True
    """Whether a request may be repeated after its worker died (default: pure inference)."""
    max_batch_rows: int = 0
    """Most rows in one batch; 0 lets the runtime choose."""

    def task_config(self) -> TaskConfig:
        """The part of the manifest that tasks and codecs may see."""
        return TaskConfig(labels=self.labels, signature=self.signature, options=self.options)


class Bundle(msgspec.Struct, frozen=True):
    """A folder whose files have been verified, and what its manifest says."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """A file of the bundle; `InvalidInput` if it is missing or would leave the folder."""
        safe_relative_path(name)
        found = self.folder / name
        if not found.exists():
            raise InvalidInput(f"the bundle has no file {name!r}")
        return found

    @property
    def main_file(self) -> Path:
        """The first of `files`: what most runtimes open."""
        if not self.manifest.files:
            raise InvalidInput("the bundle's manifest names no files")
        return self.path(self.manifest.files[0])


def safe_relative_path(name: str) -> PurePosixPath:
    """`name` as a relative path without `..`, or `InvalidInput`."""
    path = PurePosixPath(name)
    if (
        not name
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or "\x00" in name
        or len(name) > 255
    ):
        raise InvalidInput(f"{name!r} is not a file name inside a bundle")
    return path


def decode_manifest(text: str) -> Manifest:
    """Parse `wherry.toml`; `InvalidInput` says which key is wrong."""
    try:
        manifest = msgspec.convert(tomllib.loads(text), Manifest)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidInput(f"{MANIFEST} is not valid: {error}") from error
    if manifest.format_version > FORMAT_VERSION:
        raise InvalidInput(
            f"the bundle has format version {manifest.format_version}, this Wherry reads up to "
            f"{FORMAT_VERSION}",
            hint="upgrade wherry",
        )
    return manifest


def encode_manifest(manifest: Manifest) -> str:
    """The text of `wherry.toml`; decoding it gives an equal manifest."""
    import tomli_w  # only imports and pulls write manifests

    return tomli_w.dumps(msgspec.to_builtins(manifest))


def open_bundle(folder: Path) -> Bundle:
    """Read the manifest of a folder."""
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file():
        raise InvalidInput(f"{folder.name!r} is not a bundle: it has no {MANIFEST}")
    return Bundle(folder, decode_manifest(manifest_path.read_text(encoding="utf-8")))
