"""Downloads one file over HTTP so that an interruption costs only the time it took."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from wherry.errors import InvalidInput, NotFound, Unavailable
from wherry.models.sources.source import Progress
from wherry.storage.blobs import explain_full_disk
from wherry.storage.folders import sync_folder

if TYPE_CHECKING:
    import httpx

MAX_DOWNLOAD_BYTES = 64 << 30
ATTEMPTS = 5
"""Tries without a single new byte between them."""
PAUSE_SECONDS = 0.5
TIMEOUT_SECONDS = 30.0
LOCK_PAUSE_SECONDS = 0.2
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Checksum(NamedTuple):
    """What the bytes of a file must hash to."""

    algorithm: Literal["sha256", "sha512"]
    value: str
    """Hex, lower case."""


def open_client(
    certificates: str = "", authorise: Callable[[httpx.Request], httpx.Request] | None = None
) -> httpx.Client:
    """A client that follows redirects.

    Args:
        certificates: a PEM file instead of the usual ones.
        authorise: adds what a server wants to know of us; not asked again after a redirect.
    """
    import ssl

    import httpx

    verify = ssl.create_default_context(cafile=certificates) if certificates else True
    return httpx.Client(
        follow_redirects=True, timeout=TIMEOUT_SECONDS, verify=verify, auth=authorise
    )


def download(
    url: str,
    target: Path,
    checksum: Checksum,
    *,
    client: Callable[[], httpx.Client],
    progress: Progress,
) -> None:
    """Make `target` the file of a URL, continuing what an earlier call left as `target.part`.

    Raises:
        InvalidInput: its bytes are not what `checksum` says; nothing is left.
        NotFound: the server has no such file.
        Unavailable: the network or the server failed; what arrived is kept for the next call.
    """
    part = target.with_name(f"{target.name}.part")
    with _only_process(target, progress):
        if target.exists():
            return
        with explain_full_disk():
            _fetch_all(url, part, client, progress)
        with part.open("rb") as file:
            found = hashlib.file_digest(file, checksum.algorithm).hexdigest()
            os.fsync(file.fileno())  # a finished file is believed without being read again
        if found != checksum.value:
            part.unlink()
            raise InvalidInput(
                f"{target.name!r} has {checksum.algorithm} {found!r}, "
                f"its index says {checksum.value!r}",
                hint="it was damaged on the way, or changed: try again, then ask its publisher",
            )
        part.replace(target)
        sync_folder(target.parent)


def _fetch_all(
    url: str, part: Path, client: Callable[[], httpx.Client], progress: Progress
) -> None:
    import httpx

    failures = 0
    with client() as opened:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                return _fetch_rest(opened, url, part, progress)
            except httpx.TransportError as error:
                failures = 1 if part.exists() and part.stat().st_size > before else failures + 1
                if failures >= ATTEMPTS:
                    raise Unavailable(
                        f"{part.stem!r} could not be downloaded: {error or type(error).__name__}",
                        hint="check the network and try again: it continues where it stopped",
                    ) from error
                time.sleep(PAUSE_SECONDS * failures)


def _fetch_rest(client: httpx.Client, url: str, part: Path, progress: Progress) -> None:
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:  # there is nothing behind what we have
            return
        _check_status(response, part.stem)
        start, total = _read_range(response, start)
        if total > MAX_DOWNLOAD_BYTES:
            raise InvalidInput(f"{part.stem!r} is {total} bytes, too large")
        done = start
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for chunk in response.iter_raw():  # as it comes: a break loses none of it
                file.write(chunk)
                done += len(chunk)
                if done > MAX_DOWNLOAD_BYTES:
                    raise InvalidInput(f"{part.stem!r} is too large")
                progress(f"downloading {part.stem}", done, total)
            file.truncate()
            os.fsync(file.fileno())
    _refuse_short(done, total)


def _read_range(response: httpx.Response, asked: int) -> tuple[int, int]:
    """Where the answer's bytes begin, and the file's size (0 = unknown)."""
    if response.status_code == 206:
        given = CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if given and int(given[1]) == asked:
            return asked, int(given[2]) if given[2] != "*" else 0
        raise Unavailable("the server answered with other bytes than asked for")
    length = response.headers.get("content-length", "")
    return 0, int(length) if length.isdecimal() else 0


def _refuse_short(done: int, total: int) -> None:
    import httpx

    if total and done < total:
        raise httpx.ReadError(f"the connection ended after {done} of {total} bytes")


def _check_status(response: httpx.Response, name: str) -> None:
    status = response.status_code
    if status in (404, 410):
        raise NotFound(f"the server has no file {name!r}")
    if status in (401, 403):
        raise NotFound(f"the server does not give us {name!r} (status {status})")
    if status not in (200, 206):
        raise Unavailable(f"the server answered for {name!r} with status {status}")


@contextmanager
def _only_process(target: Path, progress: Progress) -> Generator[None]:
    """Let one process at a time write the part file; the others wait and then find the file."""
    lock: Any = os.open(
        target.with_name(f"{target.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
    )
    try:
        while not _try_lock(lock):
            progress(f"waiting for another download of {target.name}", 0, 0)
            time.sleep(LOCK_PAUSE_SECONDS)
        yield
    finally:
        os.close(lock)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
