"""Makes a verified, read-only folder of a version's blobs, for a worker to load."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from wherry.errors import Conflict, NotFound
from wherry.models.trust.files import (
    NamedFile,
    bundle_digest,
    check_files,
    hash_file,
    list_paths,
)
from wherry.storage.blobs import Blobs, explain_full_disk

UNFINISHED = ".unfinished-"


def bundle_folder(bundles: Path, digest: str) -> Path:
    """Where the version of this digest (`sha256:…`) is, or would be."""
    return bundles / digest.removeprefix("sha256:")


def materialise(blobs: Blobs, files: Sequence[NamedFile], target: Path) -> None:
    """Make `target` hold exactly `files`, every byte verified now, whether or not it existed.

    Several processes may do so at once: one wins, and all verify what is there in the end.

    Raises:
        Conflict: a file is damaged, missing or was never part of the version; the message names it.
        Unavailable: the disk is full; nothing is left behind.
    """
    check_files(files)
    if not target.is_dir():
        _build(blobs, files, target)
    verify_folder(target, files)


def verify_folder(folder: Path, files: Sequence[NamedFile]) -> None:
    """Read every file again; raises `Conflict` as `materialise` does."""
    wanted = {file.path: file for file in files}
    present = set(list_paths(folder))
    for path in sorted(present - wanted.keys()):
        if "__pycache__" not in Path(path).parts:
            raise _damage(folder, path, "does not belong to this version")
        # Written by Python when it imported the model; never loaded unverified.
        (folder / path).unlink(missing_ok=True)
    for path in sorted(wanted.keys() - present):
        raise _damage(folder, path, "is missing")
    for path, file in wanted.items():
        if hash_file(folder / path) != (file.size, file.sha256):
            raise _damage(folder, path, "is damaged: it is not what was imported")


def remove_bundle(bundles: Path, digest: str) -> None:
    """Remove the folder of a version, in one step for whoever looks at it."""
    folder = bundle_folder(bundles, digest)
    doomed = bundles / f"{UNFINISHED}{secrets.token_hex(8)}"
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def sweep_unfinished(bundles: Path) -> int:
    """Remove what interrupted calls left; how many. Call at start, before the first worker."""
    leftovers = list(bundles.glob(f"{UNFINISHED}*"))
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)
    return len(leftovers)


def _build(blobs: Blobs, files: Sequence[NamedFile], target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = target.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
    try:
        with explain_full_disk():
            temporary.mkdir(mode=0o700)
            for file in files:
                path = temporary / file.path
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                blobs.place(file.sha256, path)
            _publish(temporary, target)
    except NotFound as error:
        raise Conflict(
            f"a file of the version {bundle_digest(files)!r} is missing from the store",
            hint="import the model again, or restore a backup of the data folder",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster; its folder gets verified
            raise


def _damage(folder: Path, path: str, what: str) -> Conflict:
    return Conflict(
        f"the bundle's file {path!r} {what}",
        hint=f"delete the folder bundles/{folder.name} of the data folder to have it made again; "
        "if that does not help, import the model again",
    )
