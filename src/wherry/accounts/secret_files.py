"""The files of `data/secrets`: private, complete or absent, and made once however many try."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from wherry.errors import Conflict
from wherry.storage.folders import make_folder, replace_file, sync_folder, write_temporary

PEPPER_BYTES = 32


def load_pepper(folder: Path) -> bytes:
    """The pepper of a data folder, made on first use.

    It is the HMAC key of all stored digests: without this file a copy of the database says nothing
    about any secret, and with another one every key stops working.

    Raises:
        Conflict: the file is damaged, or others than its owner may read it.
    """
    path = folder / "pepper"
    pepper = read_secret_file(path)
    if pepper is None:
        _create_private_folder(folder)
        temporary = write_temporary(path, secrets.token_bytes(PEPPER_BYTES))
        try:
            os.link(temporary, path)  # fails if another process was faster: then its pepper counts
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
        sync_folder(folder)
        pepper = read_secret_file(path)
    if pepper is None or len(pepper) != PEPPER_BYTES:
        raise Conflict(
            f"{str(path)!r} is damaged",
            hint="restore it from a backup; a new one would make every key invalid",
        )
    return pepper


def read_secret_file(path: Path) -> bytes | None:
    """The content of a private file; None if there is none.

    Raises:
        Conflict: others than its owner may read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise Conflict(
                    f"others than its owner may read {str(path)!r}", hint=f"chmod 600 {path}"
                )
            return file.read(4096)
    except FileNotFoundError:
        return None


def replace_secret_file(path: Path, content: bytes) -> None:
    """Write a private file, whole or not at all."""
    _create_private_folder(path.parent)
    replace_file(path, content)


@contextmanager
def lock_folder(folder: Path) -> Generator[None]:
    """Let one process at a time pass here."""
    _create_private_folder(folder)
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _create_private_folder(folder: Path) -> None:
    """Make it; `Conflict` if others could put a file of theirs in the place of ours."""
    make_folder(folder)
    for each in (folder, folder.parent):
        if stat.S_IMODE(each.stat().st_mode) & 0o002:
            raise Conflict(
                f"everybody on this machine may change {str(each)!r}", hint=f"chmod 700 {each}"
            )
