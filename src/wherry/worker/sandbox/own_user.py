"""A user id of its own for a worker whose server runs as root.

Its number belongs to nobody, so it owns nothing but its scratch folder, and the limit of threads
counts it alone. Folders that are closed to others lie on the way to what it must read (the data
folder, often root's home with Python in it). They are not opened: in a view of the file system
that only this process has, an empty folder covers each of them, in which only the needed parts
appear.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import stat
from collections.abc import Collection, Sequence
from pathlib import Path

from wherry.worker.sandbox import kernel

FIRST_USER, USERS = 0x7000_0000, 1 << 24
"""Beyond what distributions, containers and directories hand out."""


def become_own_user(readable: Sequence[Path], bundle: Path, scratch: Path) -> str:
    """Stop being root; why not, or "".

    Args:
        readable: folders and files that it must go on reading.
        bundle: of these, the one that is made readable.
        scratch: the folder that becomes its own.
    """
    if os.geteuid() != 0:
        return "only a server that runs as root can give its workers users of their own"
    user = FIRST_USER + secrets.randbelow(USERS)
    try:
        _open_to_others(bundle)
        os.chown(scratch, user, user)
        uncover([each for each in readable if each.exists()], scratch)
        _check(user, readable)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        # a change of user makes the kernel forget it
        kernel.control_process(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.chown(scratch, 0, 0)
        return f"the system does not let it: {error.strerror} ({error.filename or 'user id'})"
    os.chdir(scratch)
    return ""


def _open_to_others(folder: Path) -> None:
    """Let every user read a folder of ours; the closed one it lies in keeps them out."""
    folder.chmod(0o755)
    for parent, folders, files in os.walk(folder):
        for name in folders:
            (Path(parent) / name).chmod(0o755)
        for name in files:
            path = Path(parent) / name
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o444)


def uncover(readable: Sequence[Path], scratch: Path) -> None:
    """Make all of these reachable for a stranger, and nothing that lies beside them."""
    hidden: dict[Path, list[Path]] = {}
    for path in [*readable, scratch]:
        closed = _closed_ancestor(path)
        if closed is not None:
            hidden.setdefault(closed, []).append(path)
    if not hidden:
        return
    kernel.leave_mounts()
    for cover, paths in hidden.items():
        _cover(cover, _without_nested(paths), scratch)


def _closed_ancestor(path: Path) -> Path | None:
    """The first folder on the way that others may not pass."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            return parent
    return None


def _without_nested(paths: Sequence[Path]) -> list[Path]:
    return [each for each in paths if not any(other in each.parents for other in paths)]


def _cover(cover: Path, paths: Collection[Path], scratch: Path) -> None:
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths}
    mask = os.umask(0o022)
    try:
        kernel.mount("none", cover, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m")
        for path, source in sources.items():
            if stat.S_ISDIR(os.fstat(source).st_mode):
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            kernel.mount(f"/proc/self/fd/{source}", path, None, kernel.MS_BIND | kernel.MS_REC)
            flags = kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_NOSUID | kernel.MS_NODEV
            if path != scratch:
                kernel.mount("none", path, None, flags | kernel.MS_RDONLY)
        kernel.mount(
            "none", cover, None,
            kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV,
            "mode=755,size=1m",
        )  # fmt: skip
    finally:
        os.umask(mask)
        for source in sources.values():
            os.close(source)


def _check(user: int, readable: Sequence[Path]) -> None:
    """Raises `OSError` for what the user could not read, while there is a way back."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(user)
    os.seteuid(user)
    try:
        for path in readable:
            if path.exists():
                os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
