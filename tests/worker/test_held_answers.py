"""Answers of short batches may wait for one another; each request still gets its own, soon."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.data_plane import write_model
from tests.worker.linked import load_worker, trusted_socket

from wherry import frames
from wherry.frames import Call, Connection, Frame, Kind
from wherry.worker.loop import HELD_SECONDS, Worker

COUNT = 40
MODEL = """
import time

class Model:
    task = "tensor"

    def predict(self, batch):
        assert len(batch) == 1
        value = batch[0]["X"][0]
        time.sleep(0.5 if value == 30 else 0.002)
        if value == 13:
            raise ValueError("unlucky")
        return [{"X": each["X"] * 2} for each in batch]
"""


class Gateway:
    """Keeps what comes, in order."""

    def __init__(self, worker: Worker) -> None:
        self.connection = Connection(trusted_socket(worker), self._on_frame, lambda: None)
        self.answers: dict[int, Any] = {}
        self.came_at: dict[int, float] = {}
        self.ends: list[int] = []
        self.said: list[tuple[str, int]] = []
        self.done = asyncio.Event()

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind == Kind.STARTED:
            numbers = msgspec.msgpack.decode(frame.header, type=list[int])
            self.said += [("started", number) for number in numbers]
        elif frame.kind == Kind.RESULTS:
            for number, _, _, body in msgspec.msgpack.decode(frame.payload, type=list[frames.Part]):
                self._end(number, msgspec.json.decode(body)["outputs"][0]["data"])
        elif frame.kind == Kind.RESULT:
            data = msgspec.json.decode(frame.payload)["outputs"][0]["data"]
            self._end(frame.request_id, data)
        elif frame.kind == Kind.FAILURE:
            failure = msgspec.msgpack.decode(frame.header, type=frames.Failure)
            self._end(frame.request_id, failure.code)

    def _end(self, number: int, answer: Any) -> None:
        self.answers[number] = answer
        self.came_at[number] = time.monotonic()
        self.ends.append(number)
        self.said.append(("answered", number))
        if len(self.ends) == COUNT:
            self.done.set()


def body_of(number: int) -> bytes:
    tensor = {"name": "X", "datatype": "FP64", "shape": [1], "data": [float(number)]}
    return msgspec.json.encode({"inputs": [tensor]})


async def load(folder: Path, *, idempotent: bool) -> Worker:
    bundle = write_model(folder, MODEL, idempotent=idempotent)
    manifest = bundle / "wherry.toml"
    manifest.write_text(f"max_batch_rows = 1\n{manifest.read_text()}")
    return await load_worker(bundle)


@pytest.mark.parametrize("idempotent", [True, False])
def test_held_or_not_each_request_gets_its_own_answer_soon(tmp_path: Path, idempotent: bool):
    async def story() -> None:
        worker = await load(tmp_path / "bundle", idempotent=idempotent)
        gateway = Gateway(worker)
        pieces = [(number, 60_000, body_of(number)) for number in range(COUNT)]
        call = Call("inference", "", "model", "1")
        gateway.connection.send(Kind.REQUESTS, 0, call, frames.encode(pieces))
        async with asyncio.timeout(30):
            await gateway.done.wait()
        assert sorted(gateway.ends) == list(range(COUNT)), "each ends once"
        for number, answer in gateway.answers.items():
            assert answer == ("model_failed" if number == 13 else [2.0 * number])
        order = gateway.said.index
        held = [
            number
            for number in range(5, 20)
            if order(("answered", number)) > order(("started", number + 3))
        ]
        assert bool(held) is idempotent
        # what is held behind a batch that takes long leaves without it
        assert gateway.came_at[30] - gateway.came_at[29] > 0.5 - 10 * HELD_SECONDS
        gateway.connection.close()
        await asyncio.sleep(0.01)  # the worker closes its end

    asyncio.run(story())


def test_a_header_that_no_number_can_be_read_from_costs_its_request_only(tmp_path: Path):
    async def story() -> None:
        worker = await load(tmp_path / "bundle", idempotent=True)
        gateway = Gateway(worker)
        for number, length in enumerate(("9" * 5000, "x", "-1", "", "99999999999")):
            headers = {"inference-header-content-length": length}
            call = Call("inference", "", "model", "1", headers=headers)
            gateway.connection.send(Kind.REQUEST, number, call, bytes(100_000))
        async with asyncio.timeout(10):
            while len(gateway.ends) < 5:
                await asyncio.sleep(0.01)
        assert set(gateway.answers.values()) == {"invalid_input"}
        assert not gateway.connection.closed
        gateway.connection.close()
        await asyncio.sleep(0.01)  # the worker closes its end

    asyncio.run(story())
