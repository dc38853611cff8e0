"""A data folder with a migrated database, and a queue that runs real runner processes on it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from wherry.accounts.teams import Teams
from wherry.client.schema import Job
from wherry.jobs.jobs import Jobs
from wherry.jobs.queue import JobQueue
from wherry.jobs.uploads import Uploads
from wherry.models.registry.registry import Registry
from wherry.settings import Settings
from wherry.storage.blobs import LocalBlobs
from wherry.storage.database import Database

FINISHED = ("succeeded", "failed", "cancelled")


class Site:
    """One data folder and what works on it."""

    def __init__(self, folder: Path, run_folder: Path, **settings: object) -> None:
        self.settings = Settings(data=str(folder), **settings)  # type: ignore[arg-type]
        self.folder = folder
        self.run_folder = run_folder
        self.database = Database.for_folder(folder)
        self.database.migrate()
        self.team_id = Teams(self.database).ensure_team("default").id
        self.other_id = Teams(self.database).ensure_team("other").id
        self.jobs = Jobs(self.database)
        self.registry = Registry(self.database, LocalBlobs(folder / "blobs"), folder)
        self.uploads = Uploads(folder / "uploads", self.settings.max_upload_bytes)

    def queue(self) -> JobQueue:
        return JobQueue(self.database, self.settings, self.run_folder)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[JobQueue]:
        """A queue that takes turns meanwhile."""
        queue = self.queue()
        task = asyncio.create_task(queue.run())
        try:
            yield queue
        finally:
            await queue.stop()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def wait(
        self,
        job_id: str,
        until: Callable[[Job], bool] = lambda job: job.state in FINISHED,
        seconds: float = 60,
    ) -> Job:
        """The job when `until` holds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job = await asyncio.to_thread(self.jobs.find, self.team_id, job_id)
            if until(job):
                return job
            await asyncio.sleep(0.03)
        raise AssertionError(f"the job did not get there: {job}")

    async def upload(self, files: dict[str, bytes], team_id: str = "") -> str:
        """An upload of these files."""
        team_id = team_id or self.team_id
        upload = self.uploads.create(team_id)
        for path, content in files.items():
            await self.uploads.write(team_id, upload.id, path, 0, pieces(content))
        return upload.id


async def pieces(content: bytes, size: int = 5) -> AsyncIterator[bytes]:
    for start in range(0, min(len(content), 10 * size), size):
        yield content[start : start + size]
    if len(content) > 10 * size:
        yield content[10 * size :]


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    run_folder = Path(tempfile.mkdtemp(prefix="wj"))
    sites: list[Site] = []

    def make(**settings: object) -> Site:
        sites.append(Site(tmp_path / "data", run_folder, **settings))
        return sites[-1]

    yield make
    for site in sites:
        site.database.close()
    shutil.rmtree(run_folder, ignore_errors=True)


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site(allow_code=True)
