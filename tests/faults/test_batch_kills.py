"""Whatever dies while a batch works, each line is answered once in the output, and billed once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from tests.conftest import LiveServer, run_server
from tests.faults.checker import read_ledger
from tests.faults.house import House, kill
from tests.faults.oracle import Command, expected_answer

from wherry import Client

URL = "/v2/models/oracle/infer"
LINES = 400
MILLISECONDS = 25
GATEWAYS = 2
ENDED = ("completed", "failed", "expired", "cancelled")


def input_file() -> bytes:
    """Each line asks an oracle with a nonce of its own; every tenth is wrong."""
    lines = []
    for number in range(LINES):
        data = [number, int(Command.SLEEP), MILLISECONDS]
        tensor = {
            "name": "X",
            "shape": [3 if number % 10 else 4],
            "datatype": "INT64",
            "data": data,
        }
        lines.append(
            {"custom_id": f"r{number}", "method": "POST", "url": URL, "body": {"inputs": [tensor]}}
        )
    return "\n".join(map(json.dumps, lines)).encode()


class Story:
    """One server's batch, asked for again and again while processes die."""

    def __init__(self, server: LiveServer) -> None:
        self.sdk = openai.OpenAI(
            base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=10
        )

    def start(self) -> str:
        file = self.sdk.files.create(file=("in.jsonl", input_file()), purpose="batch")
        endpoint: Any = URL
        return self.sdk.batches.create(
            input_file_id=file.id, endpoint=endpoint, completion_window="24h"
        ).id

    def wait(self, batch_id: str, until: Callable[[Any], bool], seconds: float = 90) -> Any:
        deadline, batch = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            try:
                batch = self.sdk.batches.retrieve(batch_id)
                if until(batch):
                    return batch
            except (openai.APIConnectionError, openai.InternalServerError, httpx.TransportError):
                pass  # its gateway was killed
            time.sleep(0.02)
        raise AssertionError(f"the batch did not get there: {batch}")

    def wait_for_some(self, batch_id: str, count: int) -> None:
        self.wait(batch_id, lambda b: b.request_counts.completed >= count or b.status in ENDED)

    def has_ended(self, batch_id: str) -> bool:
        return self.wait(batch_id, lambda _: True).status in ENDED

    def read(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id is not None
        text = self.sdk.files.content(file_id).text
        return [json.loads(each) for each in text.splitlines()]

    def check(self, batch_id: str) -> list[dict[str, Any]]:
        """Every line is there once, in order, and right."""
        batch = self.wait(batch_id, lambda b: b.status in ENDED)
        assert batch.status == "completed", batch
        output, refused = self.read(batch.output_file_id), self.read(batch.error_file_id)
        wrong = [number for number in range(LINES) if not number % 10]
        right = [number for number in range(LINES) if number % 10]
        assert [each["custom_id"] for each in output] == [f"r{number}" for number in right]
        assert [each["custom_id"] for each in refused] == [f"r{number}" for number in wrong]
        for number, each in zip(right, output, strict=True):
            (found,) = each["response"]["body"]["outputs"]
            assert found["data"] == [expected_answer(number, 1), 1], each
        assert {each["response"]["status_code"] for each in refused} == {400}
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (
            LINES, len(output), len(refused)
        )  # fmt: skip
        files = [each.id for each in self.sdk.files.list(purpose="batch_output")]  # type: ignore[arg-type]
        assert sorted(files) == sorted([batch.output_file_id, batch.error_file_id])
        return output


def check_bill(output: list[dict[str, Any]], data: Path) -> None:
    """The ledger of a server that has stopped has a paid row for each answer, and no other."""
    paid = {number for number, (status, _) in read_ledger(data).items() if status == 200}
    assert paid == {each["response"]["request_id"] for each in output}


def add_oracle(folder: Path, server: LiveServer, client: Client) -> House:
    house = House(folder, server, client)
    house.add_oracle(rows=4)
    house.deploy()
    return house


@pytest.mark.slow
@pytest.mark.parametrize("title", ["gateway 0", "job batch", "worker oracle"])
def test_a_batch_goes_on_when_a_process_is_killed_again_and_again(tmp_path: Path, title: str):
    arguments = ("--allow-code", "--gateways", str(GATEWAYS))
    with run_server(tmp_path, *arguments) as server, Client(server.url, server.key) as client:
        house = add_oracle(tmp_path, server, client)
        story = Story(server)
        batch_id = story.start()
        kills = 0
        for count in range(30, LINES - 100, 60):
            story.wait_for_some(batch_id, count)
            # on a busy machine the last one may not have started again yet
            house.wait_for(lambda: house.processes(title) or story.has_ended(batch_id))
            for process in house.processes(title):
                kill(process)
                kills += 1
        assert kills >= 3
        output = story.check(batch_id)
    check_bill(output, server.data)


@pytest.mark.slow
def test_a_batch_goes_on_when_the_whole_server_is_killed(tmp_path: Path):
    arguments = ("--allow-code", "--gateways", str(GATEWAYS))
    with run_server(tmp_path, *arguments) as server:
        with Client(server.url, server.key) as client:
            add_oracle(tmp_path, server, client)
        story = Story(server)
        batch_id = story.start()
        story.wait_for_some(batch_id, 60)
        children = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        server.process.wait()
        assert psutil.wait_procs(children, timeout=10)[1] == [], "no orphan"
        for file in (server.home / ".wherry" / "servers").glob("*.json"):
            file.unlink()
        with run_server(tmp_path, *arguments) as again:
            output = Story(again).check(batch_id)
            done = server.data / "batches"
            assert not list(done.iterdir())
        server.process = again.process
    check_bill(output, server.data)


@pytest.mark.slow
def test_a_batch_goes_on_after_an_ordinary_restart(tmp_path: Path):
    with run_server(tmp_path, "--allow-code") as server:
        with Client(server.url, server.key) as client:
            add_oracle(tmp_path, server, client)
        story = Story(server)
        batch_id = story.start()
        story.wait_for_some(batch_id, 60)
    with run_server(tmp_path, "--allow-code") as again:
        output = Story(again).check(batch_id)
    check_bill(output, again.data)
