"""Jobs from their row to their end, with real runner processes and real models."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.jobs.conftest import Site

from wherry.client.schema import Job
from wherry.jobs.work import ImportWork, PullWork, TrainWork

IRIS = "wherry.learning.recipes.iris:IRIS"
ECHO = b"""
class Model:
    def predict(self, batch):
        return [{"X": item["X"]} for item in batch]
"""
ECHO_TOML = b"""
task = "tensor"
runtime = "python_class"
files = ["model.py"]
[signature]
inputs = [{name = "X", datatype = "FP32", shape = [-1]}]
outputs = [{name = "X", datatype = "FP32", shape = [-1]}]
"""
SLEEPY = b"""
import time
class Model:
    def load(self, folder):
        time.sleep(600)
    def predict(self, batch):
        return batch
"""


def is_running(job: Job) -> bool:
    return job.state == "running" and job.progress.stage != ""


def runners() -> list[psutil.Process]:
    """Runner processes and workers that this test's queues started (servers have their own)."""
    found = []
    for child in psutil.Process().children():
        line = _line(child)
        if "wherry: supervisor" in line or "serve" in line.split():
            continue
        for process in [child, *child.children(recursive=True)]:
            line = _line(process)
            if "wherry: job" in line or "wherry.jobs.runner" in line or "worker" in line:
                found.append(process)
    return found


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


async def import_files(site: Site, files: dict[str, bytes], name: str = "m", **wish: object) -> Job:
    upload = await site.upload(files)
    job = site.jobs.submit(site.team_id, ImportWork(upload=upload, name=name, **wish))  # type: ignore[arg-type]
    async with site.running():
        return await site.wait(job.id)


def test_a_recipe_becomes_a_version_that_has_answered(site: Site) -> None:
    pytest.importorskip("sklearn")

    async def story() -> Job:
        job = site.jobs.submit(site.team_id, TrainWork(recipe=IRIS, name="iris"))
        assert job.state == "queued"
        async with site.running():
            return await site.wait(job.id)

    job = asyncio.run(story())
    assert (job.state, job.error) == ("succeeded", "")
    assert job.result["model"] == "iris"
    version = site.registry.describe(site.team_id, "iris@1")
    assert version.digest == job.result["digest"]
    assert version.card.memory_mib > 20
    assert version.card.load_seconds > 0
    assert version.card.sample["row"] == [5.1, 3.5, 1.4, 0.2]
    assert not (site.folder / "jobs" / job.id).exists()
    assert runners() == []


def test_an_upload_becomes_a_version_with_an_alias(site: Site) -> None:
    job = asyncio.run(
        import_files(
            site,
            {"model.py": ECHO, "wherry.toml": ECHO_TOML},
            name="echo",
            alias="champion",
            description="says it again",
        )
    )
    assert (job.state, job.error) == ("succeeded", "")
    resolved = site.registry.version(site.team_id, "echo@champion")
    assert resolved.number == 1
    assert resolved.manifest.description == "says it again"
    assert resolved.manifest.sample == {"X": [0.0]}
    assert [file.path for file in resolved.files] == ["model.py", "wherry.toml"]
    assert list((site.folder / "uploads").iterdir()) == []


def test_what_the_class_said_is_told_and_the_upload_can_be_tried_again(site: Site) -> None:
    broken = (
        b"class Model:\n    def predict(self, batch):\n        raise KeyError('no such word')\n"
    )

    async def story() -> tuple[Job, str]:
        upload = await site.upload({"model.py": broken, "wherry.toml": ECHO_TOML})
        job = site.jobs.submit(site.team_id, ImportWork(upload=upload, name="broken"))
        async with site.running():
            return await site.wait(job.id), upload

    job, upload = asyncio.run(story())
    assert job.state == "failed"
    assert job.result == {"code": "model_failed"}
    assert job.error.endswith("KeyError: 'no such word' (model.py, line 3)")
    assert str(site.folder) not in job.error + job.hint
    assert site.uploads.find(site.team_id, upload).files.keys() == {"model.py", "wherry.toml"}
    assert site.registry.models(site.team_id) == []


def test_a_class_that_does_not_load_says_why(site: Site) -> None:
    code = b"import json\njson.loads('{')\nclass Model:\n    def predict(self, b): return b\n"
    job = asyncio.run(import_files(site, {"model.py": code, "wherry.toml": ECHO_TOML}))
    assert job.state == "failed"
    assert "JSONDecodeError" in job.error
    assert "(model.py, line 2)" in job.error


def test_a_model_that_kills_its_process_fails_its_job(site: Site) -> None:
    code = b"import os\nclass Model:\n    def predict(self, b): os.kill(os.getpid(), 11)\n"
    job = asyncio.run(import_files(site, {"model.py": code, "wherry.toml": ECHO_TOML}))
    assert job.state == "failed"
    assert "SIGSEGV" in job.error


def test_code_is_refused_unless_the_operator_allows_it(make_site: Callable[..., Site]) -> None:
    job = asyncio.run(
        import_files(make_site(), {"model.py": ECHO, "wherry.toml": ECHO_TOML}, name="echo")
    )
    assert job.state == "failed"
    assert job.result == {"code": "code_not_allowed"}
    assert "WHERRY_ALLOW_CODE" in job.hint


def test_a_folder_of_the_servers_machine_is_pulled(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "origin"
    folder.mkdir()
    (folder / "model.py").write_bytes(ECHO)
    (folder / "wherry.toml").write_bytes(ECHO_TOML)

    async def story() -> Job:
        job = site.jobs.submit(site.team_id, PullWork(source=f"file:{folder}", name="echo"))
        async with site.running():
            return await site.wait(job.id)

    job = asyncio.run(story())
    assert (job.state, job.error) == ("succeeded", "")
    assert site.registry.version(site.team_id, "echo").manifest.source == "file:origin"


def test_the_same_files_again_are_the_same_version(site: Site) -> None:
    files = {"model.py": ECHO, "wherry.toml": ECHO_TOML}
    first = asyncio.run(import_files(site, files))
    second = asyncio.run(import_files(site, files))
    assert first.result == second.result


def test_a_cancelled_job_ends_with_its_processes(site: Site) -> None:
    async def story() -> Job:
        upload = await site.upload({"model.py": SLEEPY, "wherry.toml": ECHO_TOML})
        job = site.jobs.submit(site.team_id, ImportWork(upload=upload, name="sleepy"))
        async with site.running() as queue:
            await site.wait(job.id, lambda job: job.progress.stage == "trying one answer")
            site.jobs.cancel(site.team_id, job.id)
            queue.nudge()
            return await site.wait(job.id, seconds=5)

    job = asyncio.run(story())
    assert job.state == "cancelled"
    assert job.finished_at is not None
    psutil.wait_procs(runners(), timeout=2)
    assert runners() == []
    assert not (site.folder / "jobs" / job.id).exists()


def test_a_queued_job_is_cancelled_at_once(site: Site) -> None:
    job = site.jobs.submit(site.team_id, PullWork(source="minilm", name="minilm"))
    assert site.jobs.cancel(site.team_id, job.id).state == "cancelled"
    assert site.jobs.active() == []


def test_a_runner_that_is_killed_fails_its_job(site: Site) -> None:
    async def story() -> Job:
        upload = await site.upload({"model.py": SLEEPY, "wherry.toml": ECHO_TOML})
        job = site.jobs.submit(site.team_id, ImportWork(upload=upload, name="sleepy"))
        async with site.running() as queue:
            await site.wait(job.id, is_running)
            (process,) = queue._running.values()
            os.kill(process._process.pid, signal.SIGKILL)
            return await site.wait(job.id, seconds=5)

    job = asyncio.run(story())
    assert job.state == "failed"
    assert "SIGKILL" in job.error


def test_a_job_runs_again_after_a_restart_of_the_server(make_site: Callable[..., Site]) -> None:
    # the model looks for a mark outside of its bundle, which it could not in the sandbox
    site = make_site(allow_code=True, sandbox="off")
    slow_at_first = (
        b"import time, pathlib\n"
        b"class Model:\n"
        b"    def load(self, folder):\n"
        b"        if not pathlib.Path(MARK).exists(): time.sleep(600)\n"
        b"    def predict(self, batch): return [{'X': each['X']} for each in batch]\n"
    ).replace(b"MARK", repr(str(site.folder / "mark")).encode())

    async def story() -> tuple[Job, Job]:
        upload = await site.upload({"model.py": slow_at_first, "wherry.toml": ECHO_TOML})
        job = site.jobs.submit(site.team_id, ImportWork(upload=upload, name="slow"))
        async with site.running():
            await site.wait(job.id, lambda job: job.progress.stage == "trying one answer")
        interrupted = site.jobs.find(site.team_id, job.id)
        (site.folder / "mark").touch()
        async with site.running():
            return interrupted, await site.wait(job.id)

    interrupted, job = asyncio.run(story())
    assert interrupted.state == "running"
    assert (job.state, job.error) == ("succeeded", "")
    with site.database.read() as connection:
        from wherry.jobs.store import find_job

        row = find_job(connection, job.id)
    assert row is not None
    assert row.attempt == 2


def test_runners_die_with_a_server_that_is_killed(site: Site) -> None:
    upload = asyncio.run(site.upload({"model.py": SLEEPY, "wherry.toml": ECHO_TOML}))
    job = site.jobs.submit(site.team_id, ImportWork(upload=upload, name="sleepy"))
    code = (
        "import asyncio, msgspec, pathlib, sys\n"
        "from wherry.jobs.queue import JobQueue\n"
        "from wherry.settings import Settings\n"
        "from wherry.storage.database import Database\n"
        "settings = Settings(data=sys.argv[1], allow_code=True)\n"
        "database = Database.for_folder(settings.folder)\n"
        "async def main():\n"
        "    await JobQueue(database, settings, pathlib.Path(sys.argv[2])).run()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code, str(site.folder), str(site.run_folder)]
    server = psutil.Popen(command)
    try:
        asyncio.run(site.wait(job.id, lambda job: job.progress.stage == "trying one answer"))
        started = server.children(recursive=True)
        assert len(started) >= 1
    finally:
        server.kill()
        server.wait()
    gone, alive = psutil.wait_procs(started, timeout=5)
    assert (len(gone), alive) == (len(started), [])
    assert site.jobs.find(site.team_id, job.id).state == "running"
