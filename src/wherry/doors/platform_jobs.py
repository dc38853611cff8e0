"""The platform API's uploads and jobs."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec

from wherry import errors
from wherry.client import schema
from wherry.doors.platform_base import (
    PageOf,
    Parts,
    make_row,
    read_cursor,
    read_limit,
    read_number,
    write_cursor,
)
from wherry.doors.route import Inquiry, Response, Row, json_response
from wherry.doors.sse import format_event

FINISHED = frozenset({"succeeded", "failed", "cancelled"})
JOB_CURSOR = re.compile(r"job_[0-9a-z]{26}")

encode = msgspec.json.Encoder().encode


class JobsPart:
    """Rows of uploads and jobs."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def rows(self) -> list[Row]:
        """The table."""
        return [
            _row(
                "POST",
                "/uploads",
                "publish",
                self.create_upload,
                "Start an upload",
                answer=schema.Upload,
                status=201,
            ),
            _row(
                "GET",
                "/uploads/{id}",
                "publish",
                self.upload,
                "What has arrived",
                answer=schema.Upload,
            ),
            _row(
                "DELETE",
                "/uploads/{id}",
                "publish",
                self.remove_upload,
                "Delete an upload",
                answer=schema.Upload,
            ),
            _row(
                "PUT",
                "/uploads/{id}/files/{path:path}",
                "publish",
                self.write_file,
                "Append the body to a file, at ?offset=",
                answer=schema.Upload,
                query=("offset",),
                body_limit=self._parts.settings.max_upload_bytes,
            ),
            _row(
                "GET",
                "/jobs",
                "any",
                self.jobs,
                "Jobs of your team, newest first",
                answer=PageOf[schema.Job],
                query=("limit", "cursor"),
            ),
            _row(
                "POST",
                "/jobs/{id}:cancel",
                "publish",
                self.cancel,
                "Ask a job to stop",
                answer=schema.Job,
            ),
            _row(
                "GET",
                "/jobs/{id}/events",
                "any",
                self.events,
                "The job whenever it changes, until it is finished",
                answer=schema.Job,
                streams=True,
            ),
            _row("GET", "/jobs/{id}", "any", self.job, "A job", answer=schema.Job),
        ]

    # ------------------------------------------------------------------ uploads

    async def create_upload(self, inquiry: Inquiry) -> Response:
        """Start an upload of the team's."""
        upload = await asyncio.to_thread(self._parts.uploads.create, inquiry.principal.team_id)
        return json_response(upload, 201)

    async def upload(self, inquiry: Inquiry) -> Response:
        """Sizes by path."""
        team_id, upload_id = inquiry.principal.team_id, inquiry.params["id"]
        return json_response(await asyncio.to_thread(self._parts.uploads.find, team_id, upload_id))

    async def remove_upload(self, inquiry: Inquiry) -> Response:
        """Delete one that is not needed."""
        team_id, upload_id = inquiry.principal.team_id, inquiry.params["id"]
        await asyncio.to_thread(self._parts.uploads.remove, team_id, upload_id)
        return json_response(schema.Upload(id=upload_id))

    async def write_file(self, inquiry: Inquiry) -> Response:
        """Append to a file of an upload; straight to the disk."""
        if "content-encoding" in inquiry.headers:
            raise errors.InvalidInput("compressed bodies are not accepted here")
        most = self._parts.settings.max_upload_bytes
        upload = await self._parts.uploads.write(
            inquiry.principal.team_id,
            inquiry.params["id"],
            inquiry.params["path"],
            read_number(inquiry, "offset", 0, 0, most),
            inquiry.stream(),
        )
        return json_response(upload)

    # ------------------------------------------------------------------ jobs

    async def jobs(self, inquiry: Inquiry) -> Response:
        """Newest first."""
        limit, before = read_limit(inquiry), read_cursor(inquiry) or ""
        if before and not (isinstance(before, str) and JOB_CURSOR.fullmatch(before)):
            raise errors.InvalidInput("this cursor is none of ours", param="cursor")
        team_id = inquiry.principal.team_id
        jobs = await asyncio.to_thread(self._parts.jobs.page, team_id, before, limit + 1)
        following = write_cursor(jobs[limit - 1].id) if len(jobs) > limit else None
        return json_response(PageOf(jobs[:limit], following))

    async def job(self, inquiry: Inquiry) -> Response:
        """One job."""
        return json_response(await self._find(inquiry))

    async def cancel(self, inquiry: Inquiry) -> Response:
        """A running job ends a moment later; a finished one stays as it is."""
        team_id, job_id = inquiry.principal.team_id, inquiry.params["id"]
        job = await asyncio.to_thread(self._parts.jobs.cancel, team_id, job_id)
        self._parts.uplink.nudge()
        return json_response(job)

    async def events(self, inquiry: Inquiry) -> Response:
        """The first event is the job as it is; so nothing needs to be resumed."""
        await self._find(inquiry)  # one that is not there is a 404, not a stream
        revisions = self._parts.streams.revisions
        seen_revision = -2
        last = b""
        number = 0

        async def produce() -> tuple[list[bytes], bool]:
            nonlocal seen_revision, last, number
            revision = revisions.value("jobs")
            if revision == seen_revision:
                return [], False
            job = await self._find(inquiry)
            seen_revision, now = revision, encode(job)
            if now == last:
                return [], False
            last, number = now, number + 1
            return [format_event(now, number)], job.state in FINISHED

        return self._parts.streams.respond(inquiry, produce)

    async def _find(self, inquiry: Inquiry) -> schema.Job:
        team_id, job_id = inquiry.principal.team_id, inquiry.params["id"]
        return await asyncio.to_thread(self._parts.jobs.find, team_id, job_id)


def _row(*arguments: Any, **options: Any) -> Row:
    return make_row("jobs", *arguments, **options)
