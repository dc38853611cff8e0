"""The folders that a running server holds: its data, which are locked, and that of its sockets."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from wherry import errors

RUN_PREFIX = "wherry-run-"


@contextlib.contextmanager
def lock_data(folder: Path) -> Any:
    """One server per data folder; the lock goes with the process.

    Yields the file; what a server that was killed wrote there is still in it.
    """
    import fcntl

    with (folder / "serve.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.Conflict(
                f"another server uses the data folder {str(folder)!r}",
                hint="stop it, or give --data another folder",
            ) from error
        yield file


@contextlib.contextmanager
def short_folder(lock: Any) -> Any:
    """A private folder for sockets; short, as their paths may have 107 bytes only.

    Its name is kept in the lock file, so that the next start removes what a kill left behind.
    """
    lock.seek(0)
    left_behind = Path(lock.read().strip() or "none")
    if left_behind.name.startswith(RUN_PREFIX) and left_behind.parent == Path(
        tempfile.gettempdir()
    ):
        shutil.rmtree(left_behind, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=RUN_PREFIX))
    lock.truncate(0)
    lock.write(str(folder))
    lock.flush()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
