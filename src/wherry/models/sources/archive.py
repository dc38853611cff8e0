"""Takes named files out of ZIP and tar archives, one by one; nothing is ever unpacked whole.

Archives come from strangers: links, devices, sparse files, names that occur twice and archives
that unpack to implausibly much are refused, and an archive's own names never become paths.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from wherry.errors import InvalidInput, NotFound
from wherry.models.trust.archives import open_bounded_zip
from wherry.storage.blobs import CHUNK_BYTES, explain_full_disk

MAX_MEMBERS = 50_000
MAX_UNPACKED_BYTES = 64 << 30
MAX_EXPANSION = 200
"""Most bytes out of one compressed byte, once something unpacks to over 64 MiB."""
FREE_EXPANSION_BYTES = 64 << 20
MAX_READ_BYTES = 16 << 20
"""Most that tarfile may read at once: its headers are small, unless they lie."""
MAX_NESTING = 3
MAGICS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""First bytes → what decompresses them: an archive in an archive may have any name."""
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,  # an unknown compression
)


class Member(NamedTuple):
    """A plain file in an archive."""

    name: str
    size: int


def list_members(archive: Path) -> list[Member]:
    """Every plain file of an archive; links and the like are left out."""
    with _explain_damage(archive.name):
        if _is_zip(archive):
            with archive.open("rb") as file, open_bounded_zip(file) as opened:
                return [Member(m.filename, m.file_size) for m in opened.infolist() if _is_plain(m)]
        with _open_tar(archive) as opened:
            return [Member(m.name, m.size) for m in _tar_members(archive, opened) if m.isreg()]


def extract(archive: Path, inner: tuple[str, ...], target: Path, title: str = "") -> None:
    """Write the file `inner` of an archive to `target`; of an archive in it, for several names.

    `title` names the archive in messages; default its file's name.

    Raises:
        NotFound: no such file.
        InvalidInput: the archive is damaged or suspicious.
    """
    if not 1 <= len(inner) <= MAX_NESTING:
        raise InvalidInput(f"an archive in an archive is fine, {len(inner)} levels are not")
    name, *rest = inner
    title = title or archive.name
    part = target.with_name(f".{target.name}.{len(rest)}.part")
    try:
        with explain_full_disk(), _explain_damage(title):
            if _is_zip(archive):
                _extract_zip(archive, name, part, title)
            else:
                _extract_tar(archive, name, part, title)
        if rest:
            extract(part, tuple(rest), target, name)
        else:
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _extract_zip(archive: Path, name: str, target: Path, title: str) -> None:
    with archive.open("rb") as file, open_bounded_zip(file) as opened:
        members = opened.infolist()
        found = [member for member in members if member.filename == name]
        if len(members) > MAX_MEMBERS:
            raise InvalidInput(f"{title!r} has over {MAX_MEMBERS} members")
        member = _only(title, name, found, [each.filename for each in members])
        if not _is_plain(member):
            raise InvalidInput(f"{name!r} is a link or a folder, or encrypted")
        _check_expansion(name, member.compress_size, member.file_size)
        with opened.open(member) as source:
            _copy(source, target, member.file_size)


def _extract_tar(archive: Path, name: str, target: Path, title: str) -> None:
    found: list[tarfile.TarInfo] = []
    names: list[str] = []
    with _open_tar(archive) as opened:
        for member in _tar_members(archive, opened):
            if member.name == name:
                found.append(member)
                if not member.isreg() or member.issparse():
                    raise InvalidInput(f"{name!r} is a link, a folder or no ordinary file")
                source = opened.extractfile(member)
                if source is not None and len(found) == 1:
                    _copy(source, target, member.size)
            elif member.isreg():
                names.append(member.name)
    _only(title, name, found, names)


def _only(title: str, name: str, found: list[Any], names: list[str]) -> Any:
    if not found:
        likely = [each for each in names if each.rpartition("/")[2] == name.rpartition("/")[2]]
        raise NotFound(
            f"{title!r} has no file {name!r}",
            hint=f"it has: {', '.join((likely or names)[:10])}",
        )
    if len(found) > 1:
        raise InvalidInput(f"{title!r} has two files {name!r}")
    return found[0]


def _copy(source: IO[bytes], target: Path, size: int) -> None:
    written = 0
    with target.open("xb") as file:
        while chunk := source.read(CHUNK_BYTES):
            written += len(chunk)
            if written > size:
                raise InvalidInput("a file in the archive is longer than the archive says")
            file.write(chunk)
    if written != size:
        raise InvalidInput("a file in the archive is shorter than the archive says")


def _is_zip(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(2) == b"PK"


def _is_plain(member: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(member.external_attr >> 16)
    return not member.is_dir() and kind in (0, stat.S_IFREG) and not member.flag_bits & 1


def _check_expansion(name: str, packed: int, unpacked: int) -> None:
    if unpacked > MAX_UNPACKED_BYTES or (
        unpacked > FREE_EXPANSION_BYTES and unpacked > packed * MAX_EXPANSION
    ):
        raise InvalidInput(f"{name!r} would unpack from {packed} to {unpacked} bytes")


@contextmanager
def _open_tar(archive: Path) -> Generator[tarfile.TarFile]:
    with archive.open("rb") as file:
        head = file.read(6)
    opener = next((MAGICS[magic] for magic in MAGICS if head.startswith(magic)), open)
    with opener(archive, "rb") as stream:
        guarded: Any = _Guarded(stream, archive.name, archive.stat().st_size)
        with tarfile.open(fileobj=guarded, mode="r:") as opened:
            yield opened
        while guarded.read(CHUNK_BYTES):  # to the end, where the checksum is
            pass


def _tar_members(archive: Path, opened: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for count, member in enumerate(opened):
        if count >= MAX_MEMBERS:
            raise InvalidInput(f"{archive.name!r} has over {MAX_MEMBERS} members")
        yield member


class _Guarded:
    """A decompressed stream that ends with an error where a bomb would go off."""

    def __init__(self, stream: IO[bytes], name: str, packed: int) -> None:
        self._stream = stream
        self._name = name
        self._packed = packed

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ_BYTES:
            raise InvalidInput(f"{self._name!r} has a header of {size} bytes")
        _check_expansion(self._name, self._packed, self._stream.tell() + size)
        return self._stream.read(size)

    def seek(self, position: int) -> int:
        _check_expansion(self._name, self._packed, position)
        return self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()


@contextmanager
def _explain_damage(title: str) -> Generator[None]:
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the archive
        raise InvalidInput(f"{title!r} is damaged: {error}") from error
