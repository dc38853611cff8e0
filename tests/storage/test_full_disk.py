"""A real server on a real small disk that gets full, under load: closed, clear, and back by itself."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.conftest import LiveServer, run_server
from tests.data_plane import write_model

from wherry import Client
from wherry.storage.segment import OutcomeRecord, list_segments, read_segment

ECHO = """
class Model:
    def predict(self, batch):
        return [{"X": item["X"] + 1} for item in batch]
"""
DISK_MIB = 320
"""More than the 256 MiB that uploads leave free."""


@contextmanager
def small_disk(mount: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own, mounted on a folder."""
    mount.mkdir(parents=True, mode=0o700)
    options = f"size={mebibytes}m,mode=700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(mount)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"only root may mount a small disk here: {mounted.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left, to the last page."""
    filler = disk / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for size in (1 << 20, 4096, 1):
        try:
            while True:
                os.write(descriptor, b"x" * size)
        except OSError:
            continue
    os.close(descriptor)
    return filler


class Load:
    """Calls by several clients, without pause; keeps every answer."""

    def __init__(self, server: LiveServer, clients: int = 4) -> None:
        self._server = server
        self._stop = threading.Event()
        self.answers: list[tuple[str, int, str]] = []
        """Request id, status, body of what was refused."""
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        headers = {"authorization": f"Bearer {self._server.key}"}
        with httpx.Client(base_url=self._server.url, headers=headers, timeout=30) as http:
            while not self._stop.is_set():
                reply = http.post("/predict/echo", json={"X": [1.0]})
                refusal = "" if reply.status_code == 200 else reply.text
                self.answers.append((reply.headers["x-request-id"], reply.status_code, refusal))

    def wait_for(self, status: int, seconds: float) -> None:
        """Return when a call that began from now on ends with this status."""
        deadline = time.monotonic() + seconds
        seen = len(self.answers)
        while time.monotonic() < deadline:
            if any(each[1] == status for each in self.answers[seen:]):
                return
            time.sleep(0.02)
        raise AssertionError(f"no {status} in {seconds} s, but {self.answers[-3:]}")


def deploy_echo(server: LiveServer, folder: Path) -> None:
    with Client(server.url, server.key) as client:
        client.models.import_model(write_model(folder, ECHO), name="echo")
        client.deployments.deploy("echo")
        assert client.predict("echo", X=[1.0])["X"] == [2.0]


def records_of(data: Path) -> list[OutcomeRecord]:
    return [record for path in list_segments(data / "journal") for record, _ in read_segment(path)]


@pytest.mark.slow
def test_a_full_disk_closes_the_data_plane_and_opens_it_again(tmp_path: Path):
    with small_disk(tmp_path / "small", DISK_MIB) as disk:
        with run_server(disk, "--allow-code") as server:
            answers = fill_and_free(server, disk)
        check_records(answers, records_of(server.data))


def fill_and_free(server: LiveServer, disk: Path) -> list[tuple[str, int, str]]:
    """Under load; tells what the clients were told."""
    deploy_echo(server, disk / "echo")
    with Load(server) as load:
        load.wait_for(200, 10)
        filler = fill(server.data)
        load.wait_for(503, 20)
        refused = next(body for _, status, body in load.answers if status == 503)
        assert "journal cannot be written" in refused
        assert "disk full" in refused
        assert server.http.get("/readyz").status_code == 503
        assert server.http.get("/livez").status_code == 200
        for path, body in (("uploads", {}), ("keys", {"name": "while it is full"})):
            told = server.http.post(f"/platform/v1/{path}", json=body)
            # the database may still have room inside its own files
            assert told.status_code < 300 or told.status_code == 503, told.text
            assert told.status_code < 300 or "full" in told.text
        filler.unlink()
        load.wait_for(200, 10)
    answers = load.answers
    deadline = time.monotonic() + 10
    while server.http.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline, "it does not become ready again"
        time.sleep(0.05)
    with Client(server.url, server.key) as client:  # the control plane is back, too
        client.keys.create("after")
    return answers


def check_records(answers: list[tuple[str, int, str]], records: list[OutcomeRecord]) -> None:
    """Every answer that was given has its record, once."""
    assert {status for _, status, _ in answers} == {200, 503}
    written = [record.request_id for record in records]
    assert len(written) == len(set(written)), "a record is there twice"
    given = {request_id for request_id, status, _ in answers if status == 200}
    assert given <= set(written), "an answer was given without its record"
    answered = {record.request_id for record in records if record.status == 200}
    unseen = answered - given
    # the first call of the deployment, and answers that were recorded while the reply failed
    assert len(unseen) <= 1 + 4


@pytest.mark.slow
def test_a_disk_that_is_full_for_blobs_alone_leaves_inference_alone(tmp_path: Path):
    with (
        small_disk(tmp_path / "data" / "blobs", 32) as disk,
        run_server(tmp_path, "--allow-code") as server,
    ):
        deploy_echo(server, tmp_path / "echo")
        other = write_model(tmp_path / "other", ECHO + "# another\n")
        (other / "weights.bin").write_bytes(os.urandom(1 << 20))
        with Load(server) as load, Client(server.url, server.key) as client:
            load.wait_for(200, 10)
            filler = fill(disk)
            begun = len(load.answers)
            with pytest.raises(Exception, match="disk") as refused:
                client.models.import_model(other, name="other")
            assert "full" in str(refused.value)
            assert [model.name for model in client.models.list()] == ["echo"]
            leftovers = [path.name for path in (disk / "temporary").iterdir()]
            assert leftovers == []
            load.wait_for(200, 10)
            filler.unlink()
            client.models.import_model(other, name="other")
            assert {status for _, status, _ in load.answers[begun:]} == {200}
        with Client(server.url, server.key) as client:
            assert sorted(model.name for model in client.models.list()) == ["echo", "other"]


@pytest.mark.slow
def test_a_damaged_new_version_is_refused_and_the_old_one_serves(tmp_path: Path):
    with run_server(tmp_path, "--allow-code") as server:
        deploy_echo(server, tmp_path / "echo")
        with Client(server.url, server.key) as client:
            new = write_model(tmp_path / "new", ECHO.replace("+ 1", "+ 2"))
            before = set((server.data / "blobs" / "sha256").glob("??/*"))
            client.models.import_model(new, name="echo")
            made = set((server.data / "blobs" / "sha256").glob("??/*")) - before
            for path in made:
                path.chmod(0o600)
                path.write_bytes(path.read_bytes()[:-2] + b"#\n")
            with Load(server) as load:
                load.wait_for(200, 10)
                client.deployments.deploy("echo@2", name="echo", wait=False)
                deadline = time.monotonic() + 30
                while not any("damaged" in each.cause for each in client.overview().problems):
                    assert time.monotonic() < deadline, client.overview().problems
                    time.sleep(0.1)
                load.wait_for(200, 10)
            assert {status for _, status, _ in load.answers} == {200}
            assert client.predict("echo", X=[1.0])["X"] == [2.0], "the old version answers"
