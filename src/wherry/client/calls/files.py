"""Files that the server keeps (`/v1/files`): sent in parts, read as a stream."""

from __future__ import annotations

import secrets
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from wherry import errors
from wherry.client.calls.jobs import OnProgress
from wherry.client.schema import Progress
from wherry.client.wire import (
    Call,
    LinkError,
    Pause,
    Read,
    Request,
    Work,
    ask,
    listen,
    post,
    quote_segment,
)

PART_BYTES = 8 << 20
MAX_FAILURES = 8
"""Of one part; what arrived twice is used once."""
LONGEST_PAUSE_SECONDS = 5.0

encode = msgspec.json.Encoder().encode


class _Thing(msgspec.Struct):
    """What is needed of an upload, a part and a file."""

    id: str


class _Completed(msgspec.Struct):
    file: _Thing


def send_file(path: Path, *, purpose: str, on_progress: OnProgress | None = None) -> Call[str]:
    """Let the server keep a file; gives its id.

    Raises:
        InvalidInput: there is no such file, or it is empty.
    """
    total_bytes = _measure(path)
    announced = {
        "purpose": purpose,
        "filename": path.name,
        "bytes": total_bytes,
        "mime_type": "application/octet-stream",
    }
    upload = yield from ask(post("/v1/uploads", encode(announced)), _Thing)
    part_ids: list[str] = []
    for offset in range(0, total_bytes, PART_BYTES):
        content: bytes = yield Work(partial(_read_part, path, offset))
        part_ids.append((yield from _send_part(upload.id, content)))
        if on_progress is not None:
            done_bytes = offset + len(content)
            on_progress(Progress(stage="upload", done=done_bytes, total=total_bytes, unit="B"))
    whole = post(f"/v1/uploads/{upload.id}/complete", encode({"part_ids": part_ids}))
    return (yield from ask(whole, _Completed)).file.id


def fetch_file(file_id: str, path: Path) -> Call[None]:
    """Write a file of the server's to a path; nothing is left of one that breaks off."""
    request = Request(method="GET", path=f"/v1/files/{quote_segment(file_id)}/content")
    yield from listen(request)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with unfinished.open("xb") as file:
            yield from _write(file)
        unfinished.replace(path)
    except LinkError as error:
        raise error.explain(repeatable=True) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _write(file: BinaryIO) -> Call[None]:
    while True:
        chunk: bytes | None = yield Read()
        if chunk is None:
            return
        yield Work(partial(file.write, chunk))


def _measure(path: Path) -> int:
    if not path.is_file():
        raise errors.InvalidInput(f"there is no file {str(path)!r}")
    size_bytes = path.stat().st_size
    if not size_bytes:
        raise errors.InvalidInput(f"the file {str(path)!r} is empty")
    return size_bytes


def _read_part(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(PART_BYTES)


def _send_part(upload_id: str, content: bytes) -> Call[str]:
    request = _as_form(f"/v1/uploads/{upload_id}/parts", content)
    failures = 0
    while True:
        try:
            return (yield from ask(request, _Thing)).id
        except (errors.TryLater, errors.WorkerLost, errors.TimedOut):
            failures += 1
            if failures > MAX_FAILURES:
                raise
        yield Pause(min(0.1 * 2**failures, LONGEST_PAUSE_SECONDS))


def _as_form(path: str, content: bytes) -> Request:
    """A form with the one field `data`."""
    boundary = secrets.token_hex(16)
    head = (
        f"--{boundary}\r\n"
        'content-disposition: form-data; name="data"; filename="part"\r\n'
        "content-type: application/octet-stream\r\n\r\n"
    )
    return Request(
        method="POST",
        path=path,
        content=head.encode() + content + f"\r\n--{boundary}--\r\n".encode(),
        content_type=f"multipart/form-data; boundary={boundary}",
    )
