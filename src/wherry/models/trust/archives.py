"""Checks ZIP files (skops, npz) and NumPy arrays by content, without unpacking anything to disk."""

from __future__ import annotations

import ast
import math
import re
import stat
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, BinaryIO

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import safe_relative_path
from wherry.models.trust.files import open_regular

MAX_MEMBERS = 10_000
MAX_DIRECTORY_BYTES = 16 << 20
"""Of a ZIP file: half a million members at most, before they are counted."""
MAX_UNPACKED_BYTES = 16 << 30
MAX_EXPANSION = 100
"""Most bytes out of one compressed byte, once an archive unpacks to over 64 MiB."""
FREE_EXPANSION_BYTES = 64 << 20
MAX_NPY_HEADER_BYTES = 64 << 10
NPY_MAGIC = b"\x93NUMPY"
PLAIN_DTYPE = re.compile(r"[<>|=]([biufcmMSUV])(\d{1,9})(?:\[\w+\])?")


def check_skops(path: Path) -> None:
    """Check that the file is what `skops.io.dump` writes; its types are for the runtime to judge.

    Raises:
        FormatNotAllowed: it is no ZIP file, or holds something that skops would not.
    """
    with open_regular(path) as file, _open_zip(path.name, file) as archive:
        names = _check_members(path.name, archive)
        if "schema.json" not in names:
            raise FormatNotAllowed(
                f"{path.name!r} is a ZIP file without the schema.json of skops",
                hint="save the model with skops.io.dump",
            )
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                with archive.open(member) as array:
                    check_npy_header(member.filename, array)


def check_npz(path: Path) -> None:
    """Check that a ZIP file holds only NumPy arrays of numbers; raises as `check_skops` does."""
    with open_regular(path) as file, _open_zip(path.name, file) as archive:
        _check_members(path.name, archive)
        for member in archive.infolist():
            with archive.open(member) as array:
                check_npy_header(member.filename, array)


def check_npy(path: Path) -> None:
    """Check that a file is one NumPy array of numbers and is as long as it says."""
    with open_regular(path) as file:
        expected = check_npy_header(path.name, file)
        if file.seek(0, 2) != expected:
            raise FormatNotAllowed(f"{path.name!r} is cut off, or has something behind its array")


def check_npy_header(name: str, file: IO[bytes]) -> int:
    """How many bytes the file must have.

    Raises:
        FormatNotAllowed: no NumPy array, or one of Python objects, which are pickles.
    """
    start = file.read(10)
    wide = start[6:7] in (b"\x02", b"\x03")
    start += file.read(2) if wide else b""
    length = int.from_bytes(start[8:], "little")
    if start[:6] != NPY_MAGIC or length > MAX_NPY_HEADER_BYTES:
        raise FormatNotAllowed(f"{name!r} is not a NumPy array")
    try:
        header = ast.literal_eval(file.read(length).decode("latin-1").strip())
        item_bytes = _item_bytes(header["descr"])
        count = math.prod(header["shape"])
        is_plausible = 0 <= count < 1 << 48 and min(header["shape"], default=0) >= 0
    except (ValueError, SyntaxError, KeyError, TypeError, IndexError, RecursionError, MemoryError):
        item_bytes, count, is_plausible = 0, 0, False
    if not is_plausible:
        raise FormatNotAllowed(
            f"{name!r} is not a plain NumPy array of numbers",
            hint="save arrays of numbers or texts, not of Python objects",
        )
    return len(start) + length + count * item_bytes


def _item_bytes(description: Any) -> int:
    """Size of one item of a dtype as npy headers write it; `ValueError` if it holds objects."""
    if isinstance(description, list):  # a record, such as the nodes of scikit-learn's trees
        return sum(
            _item_bytes(field[1]) * math.prod(field[2] if len(field) > 2 else ())
            for field in description
        )
    match = PLAIN_DTYPE.fullmatch(description)
    if not match:
        raise ValueError(description)
    return int(match[2]) * (4 if match[1] == "U" else 1)


@contextmanager
def checked_zip(path: Path) -> Generator[zipfile.ZipFile]:
    """A ZIP file whose members are plain files with safe names, not too many, and no bomb.

    Raises:
        FormatNotAllowed: it is none, or damaged.
    """
    with open_regular(path) as file, _open_zip(path.name, file) as archive:
        _check_members(path.name, archive)
        try:
            yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise FormatNotAllowed(f"{path.name!r} is a damaged ZIP file") from error


def zip_names(path: Path) -> set[str]:
    """Names inside a ZIP file, to tell its kind; `FormatNotAllowed` if it is none."""
    with open_regular(path) as file, _open_zip(path.name, file) as archive:
        return set(archive.namelist())


def check_expansion(name: str, packed: int, unpacked: int) -> None:
    """`FormatNotAllowed` for an archive that unpacks to implausibly much."""
    if unpacked > MAX_UNPACKED_BYTES or (
        unpacked > FREE_EXPANSION_BYTES and unpacked > packed * MAX_EXPANSION
    ):
        raise FormatNotAllowed(f"{name!r} would unpack from {packed} to {unpacked} bytes")


class BoundedReader:
    """A file whose single reads are bounded: a ZIP file's directory is read in one of any size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Read; `BadZipFile` where that would be more than any directory needs."""
        wanted = size if 0 <= size <= MAX_DIRECTORY_BYTES else MAX_DIRECTORY_BYTES + 1
        data = self._file.read(wanted)
        if len(data) > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its directory is too large")
        return data

    def seek(self, position: int, whence: int = 0) -> int:
        """As of any file."""
        return self._file.seek(position, whence)

    def tell(self) -> int:
        """As of any file."""
        return self._file.tell()

    def seekable(self) -> bool:
        """As of any file."""
        return True


def open_bounded_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Open a ZIP file without reading a directory of gigabytes; raises as `ZipFile` does."""
    bounded: Any = BoundedReader(file)
    return zipfile.ZipFile(bounded)


def _open_zip(name: str, file: BufferedReader) -> zipfile.ZipFile:
    if file.read(4) != b"PK\x03\x04":
        raise FormatNotAllowed(
            f"{name!r} is not a ZIP file, or has something before it",
            hint="skops files are ZIP files: save the model with skops.io.dump",
        )
    try:
        archive = open_bounded_zip(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise FormatNotAllowed(f"{name!r} is a damaged ZIP file") from error
    if len(archive.infolist()) > MAX_MEMBERS:
        raise FormatNotAllowed(f"{name!r} has over {MAX_MEMBERS} members")
    return archive


def _check_members(name: str, archive: zipfile.ZipFile) -> set[str]:
    seen: set[str] = set()
    for member in archive.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.is_dir() or kind not in (0, stat.S_IFREG) or member.flag_bits & 1:
            raise FormatNotAllowed(f"{name!r} holds {member.filename!r}, which is no plain file")
        try:
            safe_relative_path(member.filename)
            archive.open(member).close()  # compares the member's own header with the directory
        except (InvalidInput, zipfile.BadZipFile, NotImplementedError, OSError) as error:
            raise FormatNotAllowed(f"{name!r} holds {member.filename!r}: {error}") from error
        if member.filename in seen:
            raise FormatNotAllowed(f"{name!r} holds {member.filename!r} twice")
        seen.add(member.filename)
    packed = sum(member.compress_size for member in archive.infolist())
    check_expansion(name, packed, sum(member.file_size for member in archive.infolist()))
    return seen
