"""What every placement must do: idempotent starts, honest events, no survivors."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.data_plane import DataPlane, data_plane, write_model

from wherry.worker.spec import FileEntry, WorkerSpec

ECHO = """
class Model:
    def predict(self, batch):
        return batch
"""
BROKEN = """
class Model:
    def load(self, folder):
        raise OSError("no such weights")
    def predict(self, batch):
        return batch
"""
STUBBORN = """
import signal, time
class Model:
    def predict(self, batch):
        time.sleep(60)
        return batch
"""

Story = Callable[[DataPlane], Coroutine[Any, Any, None]]


def play(folder: Path, story: Story) -> None:
    async def run() -> None:
        async with data_plane(folder) as plane:
            await story(plane)

    asyncio.run(run())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_placing_twice_gives_the_same_worker(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        worker = await plane.start_worker(write_model(tmp_path / "bundle", ECHO))
        again = await plane.placement.place(worker.spec)
        assert again == worker

    play(tmp_path, story)


def test_a_bundle_on_another_disk_behind_a_link_is_served(tmp_path: Path):
    disk, data = tmp_path / "disk", tmp_path / "data"
    write_model(disk / "bundle", ECHO)
    data.mkdir(mode=0o700)
    (data / "bundles").symlink_to(disk)

    async def story(plane: DataPlane) -> None:
        plane.route(await plane.start_worker(data / "bundles" / "bundle"))
        assert await plane.call(3.0) == [3.0]

    play(tmp_path, story)


def test_events_tell_a_workers_life_in_order(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        worker = await plane.start_worker(write_model(tmp_path / "bundle", ECHO))
        ready = await plane.wait_for(worker, "ready")
        assert ready.report is not None
        assert ready.report.load_seconds > 0
        assert ready.report.memory_mib > 5
        await plane.placement.remove(worker, 5)
        exited = await plane.wait_for(worker, "exited")
        assert exited.status == 0
        kinds = [event.kind for event in plane.events if event.id == worker.id]
        assert kinds[0] == "starting"
        assert kinds.index("ready") < kinds.index("exited")
        assert not Path(worker.address).exists()

    play(tmp_path, story)


def test_a_killed_worker_is_proved_dead(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        worker = await plane.start_worker(write_model(tmp_path / "bundle", ECHO))
        os.kill(worker.pid, signal.SIGKILL)
        assert (await plane.wait_for(worker, "exited")).status == -signal.SIGKILL

    play(tmp_path, story)


def test_a_model_that_does_not_load_says_why(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        with pytest.raises(AssertionError, match="no such weights"):
            await plane.start_worker(write_model(tmp_path / "bundle", BROKEN))
        reports = [event.report for event in plane.events if event.report is not None]
        assert reports[-1].state == "failed"
        assert "OSError" in reports[-1].detail or "model" in reports[-1].detail

    play(tmp_path, story)


def test_a_worker_that_does_not_stop_in_time_is_killed(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        worker = await plane.start_worker(write_model(tmp_path / "bundle", STUBBORN))
        plane.route(worker)
        plane.gateway.predict(plane.inbound(1.0))
        await asyncio.sleep(0.2)
        await plane.placement.remove(worker, 0.3)
        assert not is_running(worker.pid)

    play(tmp_path, story)


def test_a_stranger_on_the_socket_gets_nothing(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        worker = await plane.start_worker(write_model(tmp_path / "bundle", ECHO))
        assert Path(worker.address).stat().st_mode & 0o077 == 0
        for data in (b"\0" * 64, b"GET / HTTP/1.1\r\n\r\n", os.urandom(200)):
            reader, writer = await asyncio.open_unix_connection(worker.address)
            writer.write(data)
            answer = await asyncio.wait_for(reader.read(100), 5) if len(data) != 18 else b""
            assert answer == b""
            writer.close()
        # a token that differs by one byte proves nothing
        forged = msgspec.structs.replace(
            worker, spec=msgspec.structs.replace(worker.spec, token=b"x" * 32)
        )
        plane.route(forged)
        with pytest.raises(Exception, match="in time"):
            await plane.call(1.0, timeout_seconds=0.5)
        plane.route(worker)
        assert await plane.call(1.0) == [1.0]

    play(tmp_path, story)


def test_a_bundle_of_very_many_files_is_no_obstacle(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        worker = await plane.start_worker(write_model(tmp_path / "bundle", ECHO))
        files = tuple(FileEntry(f"folder/{index:06}", 1, "0" * 64) for index in range(20_000))
        spec = msgspec.structs.replace(worker.spec, id="many", files=files)
        await plane.wait_for(await plane.placement.place(spec), "ready")

    play(tmp_path, story)


def test_a_start_that_fails_leaves_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def story(plane: DataPlane) -> None:
        worker = await plane.start_worker(write_model(tmp_path / "bundle", ECHO))
        before = sum(1 for _ in Path("/proc/self/fd").iterdir())
        monkeypatch.setattr("sys.executable", "/nothing/here")
        for number in range(5):
            spec = msgspec.structs.replace(worker.spec, id=f"none-{number}")
            with pytest.raises(OSError, match="nothing"):
                await plane.placement.place(spec)
        assert sum(1 for _ in Path("/proc/self/fd").iterdir()) <= before
        folder = Path(worker.address).parent
        assert [each.name for each in folder.glob("*.sock")] == [Path(worker.address).name]
        assert len(list((folder / "scratch").iterdir())) == 1, "no folder is left either"

    play(tmp_path, story)


def test_what_a_worker_started_ends_with_it(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        pids = tmp_path / "pids"
        source = f"""
import pathlib, subprocess
class Model:
    def load(self, folder):
        child = subprocess.Popen(["sleep", "60"])
        pathlib.Path({str(pids)!r}).write_text(str(child.pid))
    def predict(self, batch):
        return batch
"""
        bundle = write_model(tmp_path / "bundle", source)
        worker = await plane.start_worker(bundle, sandbox="off")  # in it, none is started
        os.kill(worker.pid, signal.SIGKILL)
        await plane.wait_for(worker, "exited")
        for _ in range(100):
            if not is_running(int(pids.read_text())):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("a child of the worker outlived it")

    play(tmp_path, story)


def test_a_worker_that_loads_stops_at_once(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        source = ECHO + "    def load(self, folder):\n        import time\n        time.sleep(60)\n"
        loading = asyncio.ensure_future(
            plane.start_worker(write_model(tmp_path / "bundle", source))
        )
        while not any(each.report and each.report.state == "loading" for each in plane.events):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        (worker,) = {each.id for each in plane.events}
        begun = time.monotonic()
        handle = await plane.placement.place(
            WorkerSpec(id=worker, deployment="", model="", version=1, digest="", files=())
        )
        await plane.placement.remove(handle, 30)
        assert time.monotonic() - begun < 2
        loading.cancel()

    play(tmp_path, story)


def test_the_last_words_of_a_worker_are_kept_though_no_line_ends_them(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        source = ECHO + "    def load(self, folder):\n        print('last words', end='')\n"
        worker = await plane.start_worker(write_model(tmp_path / "bundle", source))
        await plane.placement.remove(worker, 5)
        await plane.wait_for(worker, "exited")
        assert b"".join(plane.output).endswith(b"last words\n")

    play(tmp_path, story)


def test_workers_die_with_the_process_that_placed_them(tmp_path: Path):
    script = f"""
import asyncio, sys
from pathlib import Path
from tests.data_plane import data_plane, write_model
async def main():
    async with data_plane(Path({str(tmp_path)!r})) as plane:
        worker = await plane.start_worker(write_model(Path({str(tmp_path / "bundle")!r}), {ECHO!r}))
        print(worker.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""

    async def run() -> None:
        import sys

        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert process.stdout is not None
        pid = int(await process.stdout.readline())
        assert is_running(pid)
        process.kill()
        await process.wait()
        for _ in range(100):
            if not is_running(pid):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the worker outlived its placement")

    asyncio.run(run())
