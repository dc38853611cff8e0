"""OpenAI's files and uploads: what batches read and write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from wherry import errors
from wherry.doors.multipart import MULTIPART, receive_form
from wherry.doors.openai_lists import ExpiresAfter, ListOf, make_row, page_of, read_after
from wherry.doors.platform_base import read_body, read_number
from wherry.doors.route import Inquiry, Response, Row, json_response
from wherry.jobs.files.files import BATCH_SECONDS, Files, Incoming, StoredFile
from wherry.jobs.files.uploads import MAX_PARTS, FileUploads, StoredUpload
from wherry.models.codecs.multipart import Form, Head
from wherry.storage.spool import Spool

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
PURPOSES: tuple[str, ...] = get_args(Purpose)
MAX_PAGE = 10_000
CHUNK_BYTES = 256 << 10


class FileObject(msgspec.Struct, kw_only=True):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class Deleted(msgspec.Struct):
    """What deleting a file answers."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class UploadRequest(msgspec.Struct):
    """Announces a file that comes in parts."""

    purpose: Purpose
    filename: Annotated[str, Meta(min_length=1, max_length=255)]
    bytes: Annotated[int, Meta(ge=1)]
    mime_type: Annotated[str, Meta(max_length=255)]
    expires_after: ExpiresAfter | None = None


class CompleteRequest(msgspec.Struct):
    """Names the parts of a file in order."""

    part_ids: Annotated[list[str], Meta(min_length=1, max_length=MAX_PARTS)]
    md5: str | None = None


class PartObject(msgspec.Struct, kw_only=True):
    """A part that has arrived."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
    bytes: int


class UploadObject(msgspec.Struct, kw_only=True):
    """An upload; its parts are told by `GET` only, for a client that was cut off."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: FileObject | None = None
    parts: list[PartObject] | None = None


class OpenAIFilesDoor:
    """Rows of files and uploads.

    Args:
        files: of all teams.
        uploads: those that come in parts.
    """

    def __init__(self, files: Files, uploads: FileUploads) -> None:
        self._files = files
        self._uploads = uploads

    def rows(self) -> list[Row]:
        """The table."""
        file, upload = "/v1/files/{id}", "/v1/uploads/{id}"
        return [
            make_row(
                "POST",
                "/v1/files",
                self.create,
                "Keep a file: fields `file`, `purpose`, `expires_after[seconds]`",
                request=dict,
                answer=FileObject,
                content_types=MULTIPART,
                body_limit=0,  # the file is bounded while it is written
            ),
            make_row(
                "GET", "/v1/files", self.files, "Files of your team", answer=ListOf[FileObject]
            ),
            make_row("GET", file + "/content", self.content, "The bytes of a file", answer=bytes),
            make_row("GET", file, self.file, "A file", answer=FileObject),
            make_row("DELETE", file, self.remove, "Delete a file", answer=Deleted),
            make_row(
                "POST",
                "/v1/uploads",
                self.create_upload,
                "Announce a file that comes in parts",
                request=UploadRequest,
                answer=UploadObject,
            ),
            make_row(
                "GET", upload, self.upload, "An upload and what has arrived", answer=UploadObject
            ),
            make_row(
                "POST",
                upload + "/parts",
                self.add_part,
                "Send a part, in any order: field `data`",
                request=dict,
                answer=PartObject,
                content_types=MULTIPART,
                body_limit=0,
            ),
            make_row(
                "POST",
                upload + "/complete",
                self.complete,
                "Make a file of parts",
                request=CompleteRequest,
                answer=UploadObject,
            ),
            make_row("POST", upload + "/cancel", self.cancel, "End an upload", answer=UploadObject),
        ]

    # ------------------------------------------------------------------ files

    async def create(self, inquiry: Inquiry) -> Response:
        """Stream the file to the disk, then let it be seen."""
        team_id = inquiry.principal.team_id
        incoming = await asyncio.to_thread(self._files.begin, team_id)
        try:
            head, form = await _receive(inquiry, "file", incoming)
            purpose = form.text("purpose")
            if purpose not in PURPOSES:
                raise errors.InvalidInput(
                    f"purpose {purpose[:80]!r} is not known",
                    hint=f"one of {', '.join(PURPOSES)}",
                    param="purpose",
                )
            kept = _read_expiry(form, purpose)
            name = head.filename or ""
            file = await asyncio.to_thread(self._files.keep, incoming, team_id, purpose, name, kept)
        finally:
            await asyncio.to_thread(incoming.discard)
        return json_response(to_object(file))

    async def files(self, inquiry: Inquiry) -> Response:
        """By age, the newest first unless `order=asc`."""
        order = inquiry.query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise errors.InvalidInput(
                f"order={order[:80]!r} is neither asc nor desc", param="order"
            )
        limit = read_number(inquiry, "limit", MAX_PAGE, 1, MAX_PAGE)
        team_id, purpose = inquiry.principal.team_id, inquiry.query.get("purpose", "")
        after = read_after(inquiry)

        def look() -> list[StoredFile]:
            return self._files.page(
                team_id,
                purpose=purpose,
                after=after,
                limit=limit + 1,
                is_ascending=order == "asc",
            )

        found = await asyncio.to_thread(look)
        return json_response(page_of([to_object(each) for each in found], limit))

    async def file(self, inquiry: Inquiry) -> Response:
        """One of the team's."""
        return json_response(to_object(await self._find(inquiry)))

    async def content(self, inquiry: Inquiry) -> Response:
        """As it was sent."""
        file = await self._find(inquiry)
        return Response(
            _read(self._files.path(file)),
            content_type="application/octet-stream",
            headers={"content-length": str(file.size_bytes)},
        )

    async def remove(self, inquiry: Inquiry) -> Response:
        """For good; a batch that reads it goes on."""
        file_id = inquiry.params["id"]
        await asyncio.to_thread(self._files.remove, inquiry.principal.team_id, file_id)
        return json_response(Deleted(file_id))

    async def _find(self, inquiry: Inquiry) -> StoredFile:
        team_id, file_id = inquiry.principal.team_id, inquiry.params["id"]
        return await asyncio.to_thread(self._files.find, team_id, file_id)

    # ------------------------------------------------------------------ uploads

    async def create_upload(self, inquiry: Inquiry) -> Response:
        """It waits an hour for its parts."""
        request = await read_body(inquiry, UploadRequest)
        team_id = inquiry.principal.team_id

        def create() -> StoredUpload:
            return self._uploads.create(
                team_id,
                purpose=request.purpose,
                filename=request.filename,
                size_bytes=request.bytes,
                kept_seconds=_kept_seconds(request.expires_after, request.purpose),
            )

        return json_response(_to_upload(await asyncio.to_thread(create)))

    async def upload(self, inquiry: Inquiry) -> Response:
        """What has arrived."""
        team_id, upload_id = inquiry.principal.team_id, inquiry.params["id"]
        upload, parts = await asyncio.to_thread(self._uploads.find, team_id, upload_id)
        answer = _to_upload(upload)
        answer.parts = [
            PartObject(
                id=each.id,
                upload_id=upload_id,
                bytes=each.size_bytes,
                created_at=int(each.created_at),
            )
            for each in parts
        ]
        return json_response(answer)

    async def add_part(self, inquiry: Inquiry) -> Response:
        """Parts may come at once."""
        team_id, upload_id = inquiry.principal.team_id, inquiry.params["id"]
        incoming = await asyncio.to_thread(self._uploads.begin_part, team_id, upload_id)
        try:
            await _receive(inquiry, "data", incoming)
            part = await asyncio.to_thread(self._uploads.keep_part, team_id, upload_id, incoming)
        finally:
            await asyncio.to_thread(incoming.discard)
        return json_response(
            PartObject(
                id=part.id,
                upload_id=upload_id,
                bytes=part.size_bytes,
                created_at=int(part.created_at),
            )
        )

    async def complete(self, inquiry: Inquiry) -> Response:
        """The parts become a file."""
        request = await read_body(inquiry, CompleteRequest)
        team_id, upload_id = inquiry.principal.team_id, inquiry.params["id"]
        file = await asyncio.to_thread(
            self._uploads.complete, team_id, upload_id, request.part_ids, request.md5
        )
        upload, _ = await asyncio.to_thread(self._uploads.find, team_id, upload_id)
        return json_response(_to_upload(upload, file))

    async def cancel(self, inquiry: Inquiry) -> Response:
        """Its parts are deleted."""
        team_id, upload_id = inquiry.principal.team_id, inquiry.params["id"]
        upload = await asyncio.to_thread(self._uploads.cancel, team_id, upload_id)
        return json_response(_to_upload(upload))


async def _receive(inquiry: Inquiry, field: str, incoming: Incoming) -> tuple[Head, Form]:
    """A form whose file goes to the disk; the file's head, and the other fields."""
    heads: list[Head] = []

    async def open_sink(head: Head, form: Form) -> Spool:
        heads.append(head)
        return incoming.spool

    form = await receive_form(inquiry, field, open_sink)
    return heads[0], form


async def _read(path: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
    finally:
        file.close()


def _read_expiry(form: Form, purpose: str) -> float | None:
    fields = {name: form.text(f"expires_after[{name}]", "") for name in ("anchor", "seconds")}
    if not any(fields.values()):
        return _kept_seconds(None, purpose)
    try:
        wish = msgspec.convert(fields, ExpiresAfter, strict=False)
    except msgspec.ValidationError as error:
        raise errors.InvalidInput(f"expires_after: {error}", param="expires_after") from error
    return _kept_seconds(wish, purpose)


def _kept_seconds(wish: ExpiresAfter | None, purpose: str) -> float | None:
    if wish is not None:
        return float(wish.seconds)
    return BATCH_SECONDS if purpose == "batch" else None


def to_object(file: StoredFile) -> FileObject:
    """A file as OpenAI's clients read it."""
    return FileObject(
        id=file.id,
        bytes=file.size_bytes,
        created_at=int(file.created_at),
        expires_at=None if file.expires_at is None else int(file.expires_at),
        filename=file.filename,
        purpose=file.purpose,
    )


def _to_upload(upload: StoredUpload, file: StoredFile | None = None) -> UploadObject:
    return UploadObject(
        id=upload.id,
        bytes=upload.size_bytes,
        created_at=int(upload.created_at),
        expires_at=int(upload.expires_at),
        filename=upload.filename,
        purpose=upload.purpose,
        status=upload.state,
        file=to_object(file) if file is not None else None,
    )
