"""A worker and its gateway in one process: presumed starts, and what comes with others in a frame."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skops")

import skops.io
from sklearn.datasets import load_iris
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tests.worker.linked import load_worker, trusted_socket

from wherry import frames
from wherry.frames import Call, Connection, Frame, Kind
from wherry.models.bundle import Manifest, encode_manifest
from wherry.worker.executor import QUICK_RUNS
from wherry.worker.loop import Worker

BODY = msgspec.json.encode(
    {
        "inputs": [
            {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [5.1, 3.5, 1.4, 0.2]}
        ]
    }
)
CALL = Call("inference", "", "model", "1")


class Gateway:
    """A gateway's side of a connection to a worker in this process."""

    def __init__(self, worker: Worker) -> None:
        self.said: list[tuple[Kind, object]] = []
        self.answers: list[Any] = []
        self._socket = trusted_socket(worker)
        self._answered = asyncio.Event()
        self._connection = Connection(self._socket, self._on_frame, lambda: None)

    def _on_frame(self, frame: Frame) -> None:
        kind = Kind(frame.kind)
        if kind in (Kind.STARTED, Kind.PRESUME):
            self.said.append((kind, msgspec.msgpack.decode(frame.header)))
        else:
            assert kind in (Kind.RESULT, Kind.RESULTS, Kind.ROWS)
            bodies = [frame.payload]
            if kind == Kind.ROWS:
                rows = msgspec.msgpack.decode(frame.payload, type=list[frames.Row])
                bodies = [body for _, body in rows]
            if kind == Kind.RESULTS:
                parts = msgspec.msgpack.decode(frame.payload, type=list[frames.Part])
                bodies = [body for *_, body in parts]
            self.answers = [msgspec.json.decode(body) for body in bodies]
            self._answered.set()

    def close(self) -> None:
        self._connection.close()

    def send_raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self._answered.clear()
        self._socket.send(data)

    async def wait(self) -> None:
        """Until something is answered."""
        await self._answered.wait()

    async def ask(self, *, alone: bool = False, body: bytes = BODY) -> list[tuple[Kind, object]]:
        """One request; what the worker said before its answer."""
        self.said.clear()
        self._answered.clear()
        if alone:
            call = msgspec.structs.replace(CALL, alone=True)
            self._connection.send(Kind.REQUEST, 7, call, body)
        else:
            pieces = frames.encode([(7, 10_000, body)])
            self._connection.send(Kind.REQUESTS, 0, CALL, pieces)
        await self._answered.wait()
        return list(self.said)


def write_bundle(
    folder: Path,
    *,
    idempotent: bool = True,
    model: Any = None,
    task: str = "tabular-classification",
) -> Path:
    folder.mkdir()
    if model is None:
        rows, species = load_iris(return_X_y=True)
        model = LogisticRegression(max_iter=500).fit(rows, species)
    skops.io.dump(model, folder / "model.skops")
    manifest = Manifest(task=task, runtime="sklearn", files=("model.skops",), idempotent=idempotent)
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    return folder


def test_starts_are_presumed_once_batches_are_quick_and_never_of_one_that_runs_alone(
    tmp_path: Path,
):
    async def story() -> None:
        worker = await load_worker(write_bundle(tmp_path / "bundle", idempotent=True))
        gateway = Gateway(worker)
        assert await gateway.ask() == [(Kind.STARTED, [7])]
        for _ in range(10 * QUICK_RUNS):
            if (Kind.PRESUME, True) in await gateway.ask():
                break
        assert await gateway.ask() == []
        assert await gateway.ask(alone=True) == [(Kind.STARTED, [7])]
        worker._pace.note(1.0)  # a slow one
        assert await gateway.ask() == [(Kind.PRESUME, False), (Kind.STARTED, [7])]
        gateway.close()
        await asyncio.sleep(0.01)  # the worker closes its end

    asyncio.run(story())


def test_a_request_of_no_items_is_answered_with_none(tmp_path: Path):
    texts = ["good", "bad", "good", "bad"]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [1, 0, 1, 0])
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [0], "data": []}]}

    async def story() -> None:
        worker = await load_worker(
            write_bundle(tmp_path / "bundle", model=model, task="text-classification")
        )
        gateway = Gateway(worker)
        await gateway.ask(body=msgspec.json.encode(body))
        (answer,) = gateway.answers
        assert {each["shape"][0] for each in answer["outputs"]} == {0}
        gateway.close()
        await asyncio.sleep(0.01)  # the worker closes its end

    asyncio.run(story())


def test_small_requests_do_not_wait_for_a_large_one_to_come_in_whole(tmp_path: Path):
    async def story() -> None:
        worker = await load_worker(write_bundle(tmp_path / "bundle"))
        gateway = Gateway(worker)
        large = frames.PREFIX.pack(1 << 20, Kind.REQUEST, 0, 0, 9) + b"its beginning"
        pieces = frames.encode([(7, 10_000, BODY)])
        head = frames.encode(CALL)
        small = frames.PREFIX.pack(len(head) + len(pieces), Kind.REQUESTS, 0, len(head), 0)
        gateway.send_raw(small + head + pieces + large)
        async with asyncio.timeout(5):
            await gateway.wait()
        gateway.close()
        await asyncio.sleep(0.01)  # the worker closes its end

    asyncio.run(story())


def test_nothing_is_presumed_of_a_version_that_may_not_answer_twice(tmp_path: Path):
    async def story() -> None:
        worker = await load_worker(write_bundle(tmp_path / "bundle", idempotent=False))
        gateway = Gateway(worker)
        for _ in range(3 * QUICK_RUNS):
            assert await gateway.ask() == [(Kind.STARTED, [7])]
        gateway.close()
        await asyncio.sleep(0.01)  # the worker closes its end

    asyncio.run(story())
