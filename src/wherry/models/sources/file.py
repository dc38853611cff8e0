"""Files and folders on the server's own machine; only operators may name them."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path

from wherry.errors import InvalidInput, NotFound
from wherry.models.sources.source import Progress, Reference, target_path
from wherry.storage.blobs import CHUNK_BYTES, explain_full_disk

MAX_FILES = 10_000


class FileSource:
    """Copies, so that later changes of the original change nothing."""

    def __init__(self, cache: Path) -> None:
        """Takes `cache` as every source does; a copy needs none."""

    def fetch(
        self,
        reference: Reference,
        wanted_files: Sequence[str],
        target_folder: Path,
        progress: Progress,
    ) -> list[Path]:
        """See `Source.fetch`; a single file keeps only its name."""
        place = Path(reference.place.removeprefix("//"))
        if not place.is_absolute() or reference.inner:
            raise InvalidInput(
                f"{reference.text!r} is not an absolute path", hint="write e.g. file:/models/iris"
            )
        if not place.exists():
            raise NotFound(f"there is no file or folder {str(place)!r} on the server's machine")
        names = _list_files(place) if place.is_dir() else {place.name: place}
        if missing := set(wanted_files) - names.keys():
            raise NotFound(f"{str(place)!r} has no file {min(missing)!r}")
        chosen = {name: names[name] for name in wanted_files} or names
        return _copy_all(chosen, target_folder, progress)


def _list_files(folder: Path) -> dict[str, Path]:
    """Relative name → file, without hidden ones; links are refused, they may lead anywhere."""
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(parent, name)
            found[path.relative_to(folder).as_posix()] = path
        for name in folders:
            if Path(parent, name).is_symlink():
                raise InvalidInput(f"{name!r} is a link", hint="put the folder itself in its place")
        if len(found) > MAX_FILES:
            raise InvalidInput(f"the folder has over {MAX_FILES} files")
    return found


def _copy_all(chosen: dict[str, Path], target_folder: Path, progress: Progress) -> list[Path]:
    total = sum(path.lstat().st_size for path in chosen.values())
    done = 0
    copies: list[Path] = []
    with explain_full_disk():
        for name, path in chosen.items():
            target = target_path(target_folder, name)
            part = target.with_name(f".{target.name}.part")
            try:
                with _open_file(path) as original, part.open("xb") as copy:
                    while chunk := original.read(CHUNK_BYTES):
                        copy.write(chunk)
                        done += len(chunk)
                        progress(f"copying {name}", done, total)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
            copies.append(target)
    return copies


def _open_file(path: Path) -> BufferedReader:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise InvalidInput(f"the server may not read {str(path)!r}") from error
    except OSError as error:
        raise InvalidInput(f"{path.name!r} is a link or cannot be read") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInput(f"{path.name!r} is not an ordinary file")
    return os.fdopen(descriptor, "rb")
