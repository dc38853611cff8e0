"""Files in packages of npm registries: `npm:name@version!/path/in/package`.

The path is the one in the installed package: the folder that every tarball has around its files
(mostly `package/`) is left out, as the npm client leaves it out. Nothing of a package is run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec

from wherry.errors import InvalidInput, NotFound
from wherry.models.sources.archive import Member, list_members
from wherry.models.sources.download import open_client
from wherry.models.sources.npm_registry import (
    NpmSettings,
    Release,
    find_release,
    read_npm_settings,
)
from wherry.models.sources.packages import ask_for_file, get_archive, place_files, wanted_paths
from wherry.models.sources.source import Progress, Reference, file_name

PACKAGE = re.compile(
    r"((?:@[A-Za-z0-9~-][A-Za-z0-9._~-]{0,99}/)?[A-Za-z0-9~-][A-Za-z0-9._~-]{0,99})"
    r"@([0-9A-Za-z][0-9A-Za-z.+_-]{0,99})"
)
EXACT = re.compile(r"\d+\.\d+\.\d+([-+].*)?", re.ASCII)
MAX_SHOWN = 10


class NpmSource:
    """The tarball of one version of a package."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache / "npm"

    def pin(self, reference: Reference) -> Reference:
        """The reference with the version that its tag means now."""
        name, wanted = parse_package(reference.place)
        if EXACT.fullmatch(wanted):
            return reference
        release = _find(read_npm_settings(), name, wanted)
        return msgspec.structs.replace(reference, place=f"{name}@{release.version}")

    def fetch(
        self,
        reference: Reference,
        wanted_files: Sequence[str],
        target_folder: Path,
        progress: Progress,
    ) -> list[Path]:
        """See `Source.fetch`; `wanted_files` are paths in the package."""
        name, wanted = parse_package(reference.place)
        paths = wanted_paths(reference, wanted_files)
        progress(f"looking for {name} {wanted}", 0, 0)
        settings = read_npm_settings()
        release = _find(settings, name, wanted)
        archive = get_archive(
            self._cache,
            f"{file_name(name)}-{release.version}.tgz",
            release.url,
            release.checksum,
            client=lambda: open_client(settings.certificates, settings.authorise),
            progress=progress,
        )
        members = {path_in_package(member): member for member in list_members(archive)}
        if not paths:
            sizes = {path: member.size for path, member in members.items()}
            raise ask_for_file(reference, archive, sizes)
        for path, *_ in paths:
            if path not in members:
                raise _explain_absence(archive, path, list(members))
        return place_files(
            archive, paths, reference, target_folder, progress, lambda path: members[path].name
        )


def parse_package(place: str) -> tuple[str, str]:
    """Name, and version or tag, of `name@1.2.3`, `@scope/name@1.2.3` or `name@latest`."""
    match = PACKAGE.fullmatch(place)
    if not match:
        raise InvalidInput(
            f"{place[:100]!r} names no version of an npm package",
            hint="write e.g. npm:@scope/package@1.2.3!/path/in/package",
        )
    return match[1], match[2]


def path_in_package(member: Member) -> str:
    """A member's path without the folder that is around all of them."""
    return "/".join(PurePosixPath(member.name).parts[1:])


def _find(settings: NpmSettings, name: str, wanted: str) -> Release:
    with open_client(settings.certificates, settings.authorise) as client:
        return find_release(client, settings, name, wanted)


def _explain_absence(archive: Path, path: str, present: Sequence[str]) -> NotFound:
    alike = [each for each in present if file_name(each) == file_name(path)]
    return NotFound(
        f"{archive.name!r} has no file {path!r}",
        hint=f"it has: {', '.join((alike or present)[:MAX_SHOWN])}",
    )
