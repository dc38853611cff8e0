"""`wherry batch …` and `client.batches`: files of requests, sent, watched and read back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import LiveServer, run_server

from wherry import AsyncClient, Client, errors
from wherry.client.calls import files

SLEEPER = """
import time
class Model:
    def predict(self, batch):
        time.sleep(sum(float(item["X"][0]) for item in batch))
        return batch
"""
SECONDS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("batches")
    (folder / "slow").mkdir()
    (folder / "slow" / "model.py").write_text(SLEEPER)
    with run_server(folder, "--allow-code") as live:
        with Client(live.url, live.key) as client:
            client.models.import_model(folder / "slow", name="slow")
            client.deployments.deploy("slow")
        yield live


@pytest.fixture
def client(server: LiveServer) -> Iterator[Client]:
    with Client(server.url, server.key) as client:
        yield client


def write(path: Path, *bodies: Any, url: str = "/predict/slow") -> Path:
    lines = [
        {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body}
        for number, body in enumerate(bodies)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path: str | None) -> dict[str, Any]:
    assert path is not None
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return {line["custom_id"]: line["response"] for line in lines}


def test_a_file_goes_in_and_answers_and_errors_come_out(server: LiveServer, tmp_path: Path):
    lines = write(tmp_path / "rows.jsonl", {"X": [0.25]}, {"Y": "none"}, {"X": [0.5]})
    told = server.run_cli("batch", "create", str(lines), "--to", str(tmp_path))
    assert "completed" in told.stdout
    assert "3 of 3" in told.stdout
    assert "in progress" in told.stderr, "how far it is, on a pipe a line a stage"
    answers = read(str(tmp_path / "rows.output.jsonl"))
    assert [answers[name]["body"]["X"] for name in ("line-0", "line-2")] == [[0.25], [0.5]]
    refused = read(str(tmp_path / "rows.errors.jsonl"))
    assert refused["line-1"]["status_code"] == 400


def test_results_that_are_there_are_never_written_over(server: LiveServer, tmp_path: Path):
    lines = write(tmp_path / "rows.jsonl", {"X": [0.0]})
    (tmp_path / "rows.errors.jsonl").write_text("mine")
    before = server.http.get("/v1/batches").json()["data"]
    told = server.run_cli("batch", "create", str(lines), "--to", str(tmp_path), check=False)
    assert (told.returncode, "is there already" in told.stderr) == (1, True)
    assert (tmp_path / "rows.errors.jsonl").read_text() == "mine"
    assert server.http.get("/v1/batches").json()["data"] == before, "nothing was sent"


def test_a_dry_run_counts_the_requests_and_sends_nothing(server: LiveServer, tmp_path: Path):
    lines = write(tmp_path / "rows.jsonl", {"X": [0.0]}, {"X": [1.0]})
    plan = server.run_cli("batch", "create", str(lines), "--dry-run", "-o", "json")
    assert json.loads(plan.stdout)["requests"] == {"/predict/slow": 2}
    assert "/predict/slow" in server.run_cli("batch", "create", str(lines), "--dry-run").stdout
    lines.write_text(lines.read_text() + "{}\n")
    told = server.run_cli("batch", "create", str(lines), "--dry-run", check=False)
    assert (told.returncode, "line 3" in told.stderr) == (1, True)


def test_a_wrong_file_fails_with_the_number_of_its_line(server: LiveServer, tmp_path: Path):
    lines = write(tmp_path / "rows.jsonl", {"X": [0.0]})
    lines.write_text(lines.read_text() * 2)
    told = server.run_cli("batch", "create", str(lines), "--to", str(tmp_path), check=False)
    assert told.returncode == 1
    assert "error: line 2: custom_id 'line-0' has come before" in told.stderr
    assert sorted(tmp_path.glob("*.jsonl")) == [lines], "there are no results"


def test_a_batch_is_left_alone_shown_later_and_cancelled(server: LiveServer, tmp_path: Path):
    lines = write(tmp_path / "rows.jsonl", {"X": [0.0]}, *[{"X": [8.0]}] * 3)
    made = json.loads(
        server.run_cli("batch", "create", str(lines), "--no-wait", "-o", "json").stdout
    )["batch"]
    assert made["id"] in server.run_cli("batch", "list").stdout
    listed = json.loads(server.run_cli("batch", "list", "-o", "json").stdout)
    assert made["id"] in [each["id"] for each in listed]
    early = server.run_cli("batch", "show", made["id"], "--to", str(tmp_path), check=False)
    assert (early.returncode, "wait for its end" in early.stderr) == (1, True)
    assert "would cancel" in server.run_cli("batch", "cancel", made["id"], "--dry-run").stdout
    assert made["id"] in server.run_cli("batch", "cancel", made["id"]).stdout
    ended = server.run_cli(
        *("batch", "show", made["id"], "--wait", "--to", str(tmp_path), "-o", "json"), check=False
    )
    assert ended.returncode == 1, "it did not complete"
    done = json.loads(ended.stdout)
    assert done["batch"]["status"] == "cancelled"
    assert done["saved"]["errors"] == str(tmp_path / f"{made['id']}.errors.jsonl")
    assert len(read(done["saved"]["errors"])) >= 3


def test_a_file_of_several_parts_arrives_whole(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "PART_BYTES", 1000)
    lines = write(tmp_path / "rows.jsonl", *({"X": [0.0], "note": "é" * 100} for _ in range(20)))
    told = []
    batch = client.batches.create(lines, metadata={"of": "parts"}, on_progress=told.append)
    assert told[-1].done == told[-1].total == lines.stat().st_size
    assert len(told) > 4
    kept = tmp_path / "kept.jsonl"
    client.transport.run(files.fetch_file(batch.input_file_id, kept))
    assert kept.read_bytes() == lines.read_bytes(), "the server keeps what the file has"
    assert client.batches.wait(batch.id, timeout=SECONDS).status == "completed"
    assert client.batches.get(batch.id).metadata == {"of": "parts"}
    assert batch.id in [each.id for each in client.batches.list()]


def test_an_event_loop_has_the_same_calls(server: LiveServer, tmp_path: Path):
    lines = write(tmp_path / "rows.jsonl", {"X": [0.0]})

    async def story() -> None:
        async with AsyncClient(server.url, server.key) as client:
            batch = await client.batches.create(lines, endpoint="/predict/slow", window="5m")
            with pytest.raises(errors.Conflict):
                await client.batches.save(batch.id, tmp_path)
            await client.batches.wait(batch.id, timeout=SECONDS)
            saved = await client.batches.save(batch.id, tmp_path)
            assert saved.errors is None
            assert read(saved.output)["line-0"]["body"]["X"] == [0.0]

    asyncio.run(story())


def test_what_cannot_be_a_batch_is_refused_before_anything_is_sent(
    client: Client, server: LiveServer, tmp_path: Path
):
    (tmp_path / "empty.jsonl").touch()
    for name in ("none.jsonl", "empty.jsonl"):
        with pytest.raises(errors.InvalidInput):
            client.batches.create(tmp_path / name)
    with pytest.raises(errors.InvalidInput):
        client.batches.create(write(tmp_path / "a.jsonl", {}), window="2d")
    with pytest.raises(errors.NotFound):
        client.batches.get("batch_00000000000000000000000000")
    missing = str(tmp_path / "no-folder")
    told = server.run_cli("batch", "create", "lines.jsonl", "--to", missing, check=False)
    assert (told.returncode, "there is no folder" in told.stderr) == (2, True)
