"""Uploads: a folder's files, in pieces that continue where a broken connection left off."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec

from wherry import errors
from wherry.client.calls.jobs import OnProgress
from wherry.client.schema import Progress, Upload
from wherry.client.wire import Call, Pause, Work, ask, platform

PIECE_BYTES = 8 << 20
MAX_FAILURES = 8
"""Failures of one file without a byte of progress."""
LONGEST_PAUSE_SECONDS = 5.0


def create_upload() -> Call[Upload]:
    """Start an upload; it is deleted a day after its last write."""
    return (yield from ask(platform("POST", "uploads"), Upload))


def get_upload(upload_id: str) -> Call[Upload]:
    """What an upload has received."""
    return (yield from ask(platform("GET", "uploads", upload_id), Upload))


def remove_upload(upload_id: str) -> Call[None]:
    """Delete an upload that is not needed any more."""
    yield from ask(platform("DELETE", "uploads", upload_id), msgspec.Raw)


def upload_files(
    path: str | Path, *, upload_id: str | None = None, on_progress: OnProgress | None = None
) -> Call[Upload]:
    """Upload a file, or a folder's files; gives the finished upload, for `import_upload`.

    Args:
        path: file or folder; hidden files stay behind.
        upload_id: an upload to continue.
        on_progress: called with the bytes done.
    """
    files: dict[str, Path] = yield Work(partial(find_files, Path(path)))
    upload = yield from (get_upload(upload_id) if upload_id else create_upload())
    sizes_bytes = {name: file.stat().st_size for name, file in files.items()}
    total_bytes = sum(sizes_bytes.values())
    done_bytes = 0
    for name, file in files.items():
        offset = upload.files.get(name)
        while offset is None or offset < sizes_bytes[name]:
            upload = yield from _send_piece(upload.id, name, file, offset or 0)
            offset = upload.files.get(name, 0)
            if on_progress is not None:
                now_bytes = done_bytes + offset
                on_progress(Progress(stage="upload", done=now_bytes, total=total_bytes, unit="B"))
        done_bytes += sizes_bytes[name]
    return upload


def find_files(path: Path) -> dict[str, Path]:
    """Name in the upload → file, in order; `InvalidInput` if there is none."""
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise errors.InvalidInput(f"there is no file or folder {str(path)!r}")
    found = {
        file.relative_to(path).as_posix(): file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not _is_hidden(file.relative_to(path))
    }
    if not found:
        raise errors.InvalidInput(f"the folder {str(path)!r} has no files")
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _send_piece(upload_id: str, name: str, file: Path, offset: int) -> Call[Upload]:
    """Send the next bytes of a file; after a failure ask what arrived, and go on from there."""
    failures = 0
    while True:
        content: bytes = yield Work(partial(_read_piece, file, offset))
        request = platform(
            "PUT", "uploads", upload_id, "files", name, query={"offset": str(offset)}
        )
        request = msgspec.structs.replace(
            request, content=content, content_type="application/octet-stream"
        )
        try:
            if failures:
                upload = yield from get_upload(upload_id)
                if upload.files.get(name, 0) > offset:
                    return upload
            return (yield from ask(request, Upload))
        except (errors.TryLater, errors.WorkerLost, errors.TimedOut):
            failures += 1
            if failures > MAX_FAILURES:
                raise
        yield Pause(min(0.1 * 2**failures, LONGEST_PAUSE_SECONDS))


def _read_piece(file: Path, offset: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(PIECE_BYTES)
