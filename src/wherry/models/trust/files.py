"""The files of a bundle, by path, size and SHA-256, and the one digest that names them all."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Protocol

import msgspec

from wherry.errors import InvalidInput
from wherry.models.bundle import safe_relative_path

MAX_FILES = 10_000


class NamedFile(Protocol):
    """Whatever knows a file's path, size and SHA-256, such as a `BundleFile`."""

    @property
    def path(self) -> str:
        """Relative, with `/`."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def sha256(self) -> str:
        """Hex, lower case."""
        ...


class BundleFile(msgspec.Struct, frozen=True, order=True):
    """One file of a bundle."""

    path: str
    """Relative, with `/`."""
    size: int
    """Bytes."""
    sha256: str
    """Hex, lower case."""


def bundle_digest(files: Iterable[NamedFile]) -> str:
    """`sha256:…` over the paths, sizes and digests of all files, in the order of their paths."""
    listed = [[file.path, file.size, file.sha256] for file in sorted(files, key=_path)]
    return f"sha256:{hashlib.sha256(msgspec.json.encode(listed)).hexdigest()}"


def check_files(files: Iterable[NamedFile]) -> None:
    """`InvalidInput` unless every path is safe and none is a file and a folder, or twice there."""
    seen: set[str] = set()
    folders: set[str] = set()
    for file in files:
        path = safe_relative_path(file.path)
        if str(path) != file.path or file.path in seen:
            raise InvalidInput(f"the bundle names the file {file.path!r} twice, or not plainly")
        seen.add(file.path)
        folders.update(str(parent) for parent in path.parents)
    if clash := seen & folders:
        raise InvalidInput(f"{min(clash)!r} is a file and a folder of the bundle at once")
    if len(seen) > MAX_FILES:
        raise InvalidInput(f"the bundle has {len(seen)} files, at most {MAX_FILES} are allowed")


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading; `InvalidInput` if it is a link, a pipe, a device or a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InvalidInput(f"there is no file {path.name!r}") from error
    except OSError as error:
        raise InvalidInput(f"{path.name!r} cannot be opened: it is no ordinary file") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInput(f"{path.name!r} is not an ordinary file")
    return os.fdopen(descriptor, "rb")


def list_paths(folder: Path | str, prefix: str = "") -> Iterator[str]:
    """Relative paths of all files, sorted, each after `prefix`.

    Raises:
        InvalidInput: something is neither a file nor a folder, such as a symbolic link.
    """
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from list_paths(entry.path, f"{prefix}{entry.name}/")
        elif entry.is_file(follow_symlinks=False):
            yield prefix + entry.name
        else:
            raise InvalidInput(
                f"{entry.name!r} is a link or a special file",
                hint="put the file itself in its place",
            )


def hash_file(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of an ordinary file, both of the same opened file."""
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _path(file: NamedFile) -> str:
    return file.path
