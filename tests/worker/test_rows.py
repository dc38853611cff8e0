"""Small requests that come together are answered as one table: with what each gets by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skops")

import skops.io
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from tests.worker.linked import load_worker, trusted_socket

from wherry import frames
from wherry.frames import Call, Connection, Frame, Kind
from wherry.models.bundle import Manifest, encode_manifest
from wherry.models.tasks.task import Signature, TensorSpec
from wherry.worker.executor import QUICK_RUNS
from wherry.worker.loop import Worker
from wherry.worker.rows import MAX_REST, Habit

CALL = Call("inference", "", 'the "100% model"', "1")
ALL_OUTPUTS = Signature(
    (TensorSpec("input", "FP64", (-1, 4)),),
    (
        TensorSpec("label", "BYTES", (-1,)),
        TensorSpec("class", "INT64", (-1,)),
        TensorSpec("probabilities", "FP32", (-1, 3)),
    ),
)


def body(values: Sequence[float], *, datatype: str = "FP64", rows: int = 1, **more: Any) -> bytes:
    shape = [rows, len(values) // rows]
    tensor = {"name": "input", "datatype": datatype, "shape": shape, "data": list(values)}
    return msgspec.json.encode({"inputs": [tensor], **more})


def write_bundle(
    folder: Path,
    *,
    signature: Signature | None = None,
    task: str = "tabular-classification",
    idempotent: bool = True,
    max_batch_rows: int = 0,
    classes: int = 3,
) -> Path:
    folder.mkdir()
    rows, species = load_iris(return_X_y=True)
    species = np.arange(len(rows)) % classes if classes != 3 else species
    if task == "tabular-classification":
        model = LogisticRegression(max_iter=500).fit(rows, species)
    else:
        model = LinearRegression().fit(rows, species)
    skops.io.dump(model, folder / "model.skops")
    manifest = Manifest(
        task=task,
        runtime="sklearn",
        files=("model.skops",),
        signature=signature or Signature(),
        idempotent=idempotent,
        max_batch_rows=max_batch_rows,
    )
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    return folder


class Gateway:
    """A gateway's side of a connection to a worker in this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.kinds: list[Kind] = []
        self.answers: dict[int, bytes] = {}
        self.failures: dict[int, str] = {}
        self._ended = asyncio.Event()
        self._connection = Connection(trusted_socket(worker), self._on_frame, self._close)

    def _close(self) -> None:
        self._ended.set()

    def _on_frame(self, frame: Frame) -> None:
        kind = Kind(frame.kind)
        self.kinds.append(kind)
        if kind == Kind.ROWS:
            for number, text in msgspec.msgpack.decode(frame.payload, type=list[frames.Row]):
                self.answers[number] = bytes(text)
        elif kind == Kind.RESULTS:
            parts = msgspec.msgpack.decode(frame.payload, type=list[frames.Part])
            for number, _, _, text in parts:
                self.answers[number] = bytes(text)
        elif kind == Kind.RESULT:
            self.answers[frame.request_id] = bytes(frame.payload)
        elif kind == Kind.FAILURE:
            failure = msgspec.msgpack.decode(frame.header, type=frames.Failure)
            self.failures[frame.request_id] = failure.code
        self._ended.set()

    async def ask(self, bodies: Sequence[bytes], call: Call = CALL) -> list[Any]:
        """Requests in one frame; the answer of each, or the code of its error."""
        self.kinds.clear()
        self.answers.clear()
        self.failures.clear()
        pieces = [(number, 10_000, each) for number, each in enumerate(bodies)]
        self._connection.send(Kind.REQUESTS, 0, call, frames.encode(pieces))
        async with asyncio.timeout(10):
            while len(self.answers) + len(self.failures) < len(bodies):
                self._ended.clear()
                await self._ended.wait()
        return [self.answers.get(each) or self.failures[each] for each in range(len(bodies))]

    async def ask_for_table(self, bodies: Sequence[bytes], expected: Any = None) -> list[Any]:
        """Ask again and again, until the worker has learned that tables take next to no time."""
        for _ in range(20 * QUICK_RUNS):  # more often than it takes: the machine may be busy
            answers = await self.ask(bodies)
            assert expected is None or answers == expected
            if self.kinds[-1] == Kind.ROWS:
                return answers
        raise AssertionError("no table is made")

    async def close(self) -> None:
        self._connection.close()
        await asyncio.sleep(0.01)  # the worker closes its end


def play(bundle: Path, story: Any) -> None:
    async def run() -> None:
        gateway = Gateway(await load_worker(bundle))
        try:
            await story(gateway)
        finally:
            await gateway.close()

    asyncio.run(run())


def count_runs(worker: Worker) -> list[int]:
    """Rows of each run of the model from now on."""
    runtime = worker._batch
    assert runtime is not None
    run, sizes = runtime.run, list[int]()

    def counted(batch: Any) -> Any:
        sizes.append(sum(each.rows for each in batch))
        return run(batch)

    runtime.run = counted
    return sizes


def many_bodies(count: int, **more: Any) -> list[bytes]:
    draw = np.random.default_rng(0)
    return [body(row, **more) for row in (draw.random((count, 4)) * 7).tolist()]


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize(
    ("task", "signature"),
    [
        ("tabular-classification", Signature()),
        ("tabular-classification", ALL_OUTPUTS),
        ("tabular-regression", Signature()),
        (
            "tabular-regression",
            Signature((TensorSpec("input", "", ()),), (TensorSpec("prediction", "FP32", (-1, 1)),)),
        ),
    ],
)
def test_a_table_gives_each_request_what_its_batch_gives_it(
    tmp_path: Path, task: str, signature: Signature, datatype: str
):
    if signature.inputs:
        inputs = (TensorSpec("input", datatype, (-1, 4)),)
        signature = msgspec.structs.replace(signature, inputs=inputs)
    elif datatype == "FP64":
        signature = Signature((TensorSpec("input", "FP64", (-1, -1)),))
    bundle = write_bundle(tmp_path / "bundle", task=task, signature=signature)

    async def story(gateway: Gateway) -> None:
        bodies = many_bodies(50, datatype=datatype)
        # also in one batch, but not as one table
        usual = await gateway.ask(bodies, msgspec.structs.replace(CALL, wants_gist=True))
        assert Kind.ROWS not in gateway.kinds
        assert all(isinstance(each, bytes) for each in usual)
        together = await gateway.ask_for_table(bodies, usual)
        assert len(set(together)) > 1
        (one,) = await gateway.ask_for_table(bodies[:1])
        (other,) = await gateway.ask(bodies[:1], msgspec.structs.replace(CALL, wants_gist=True))
        assert Kind.ROWS not in gateway.kinds
        assert one == other

    play(bundle, story)


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        (body([5, 3, 1, 0.2, 4], datatype="FP32"), "invalid_input"),
        (body([5, 3, 1, 0.2], datatype="FP32", id="mine"), b'"id":"mine"'),
        (body([5, 3, 1, 0.2, 6, 3, 5, 2], datatype="FP32", rows=2), b'"shape":[2]'),
        (body([5, 3, 1, 1e39], datatype="FP32"), "invalid_input"),
        (body([5, 3, 1, 0.2], datatype="FP64"), "invalid_input"),
        (b"not json", "invalid_input"),
        (b"", "invalid_input"),
    ],
)
def test_one_request_that_is_not_like_the_others_costs_them_nothing(
    tmp_path: Path, odd: bytes, expected: str | bytes
):
    async def story(gateway: Gateway) -> None:
        bodies = many_bodies(8, datatype="FP32")
        plain = await gateway.ask(bodies)
        await gateway.ask_for_table(bodies, plain)
        for position in (0, 3, 8):
            answers = await gateway.ask([*bodies[:position], odd, *bodies[position:]])
            assert Kind.ROWS not in gateway.kinds
            found = answers.pop(position)
            assert answers == plain
            if isinstance(expected, bytes):
                assert expected in found
            else:
                assert found == expected
        await gateway.ask_for_table(bodies, plain)

    play(write_bundle(tmp_path / "bundle"), story)


def test_more_rows_than_the_model_takes_at_once_are_all_answered(tmp_path: Path):
    async def story(gateway: Gateway) -> None:
        bodies = many_bodies(300, datatype="FP32")
        first = await gateway.ask(bodies)
        for _ in range(QUICK_RUNS):
            assert await gateway.ask(bodies) == first

    play(write_bundle(tmp_path / "bundle"), story)


@pytest.mark.parametrize("most", [1, 5])
def test_a_table_has_no_more_rows_than_the_bundle_allows(tmp_path: Path, most: int):
    async def story(gateway: Gateway) -> None:
        sizes = count_runs(gateway.worker)
        bodies = many_bodies(12, datatype="FP32")
        if most > 1:
            await gateway.ask_for_table(bodies)
            assert gateway.kinds.count(Kind.ROWS) == 3
        else:
            for _ in range(3 * QUICK_RUNS):
                await gateway.ask(bodies)
                assert Kind.ROWS not in gateway.kinds
        assert max(sizes) == most

    play(write_bundle(tmp_path / "bundle", max_batch_rows=most), story)


def test_a_model_whose_answers_are_not_cut_from_tables_soon_runs_once_for_each(tmp_path: Path):
    async def story(gateway: Gateway) -> None:
        sizes = count_runs(gateway.worker)
        bodies = many_bodies(4, datatype="FP32")
        for _ in range(400):
            await gateway.ask(bodies)
            assert Kind.ROWS not in gateway.kinds
        assert 1600 <= sum(sizes) <= 1650 + 4 * 20  # tried some times, and more and more seldom

    play(write_bundle(tmp_path / "bundle", classes=40), story)


def test_tables_are_tried_again_after_one_that_came_to_nothing():
    habit = Habit()
    assert habit.may_try()
    habit.note(is_answered=False)
    assert [habit.may_try() for _ in range(2)] == [False, True]
    habit.note(is_answered=False)
    assert [habit.may_try() for _ in range(3)] == [False, False, True]
    habit.note(is_answered=True)
    habit.note(is_answered=False)
    assert [habit.may_try() for _ in range(2)] == [False, True]
    for _ in range(20):
        habit.note(is_answered=False)
    assert [habit.may_try() for _ in range(MAX_REST + 1)] == [False] * MAX_REST + [True]


def test_a_version_that_may_not_answer_twice_says_when_each_begins(tmp_path: Path):
    async def story(gateway: Gateway) -> None:
        bodies = many_bodies(4, datatype="FP32")
        for _ in range(3 * QUICK_RUNS):
            await gateway.ask(bodies)
            assert gateway.kinds == [Kind.STARTED, Kind.RESULTS]

    play(write_bundle(tmp_path / "bundle", idempotent=False), story)


def test_a_model_that_gives_what_json_has_not_fails_only_those_requests(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle", task="tabular-regression")

    async def story(gateway: Gateway) -> None:
        runtime = gateway.worker._batch
        assert runtime is not None
        await gateway.ask(many_bodies(1, datatype="FP32"))
        adapter = runtime.adapter  # type: ignore[attr-defined]
        predict = adapter.predict

        def wild(matrix: np.ndarray) -> np.ndarray:
            return np.where(matrix[:, 0] > 1000, np.inf, predict(matrix))

        adapter.predict = wild
        good = many_bodies(5, datatype="FP32")
        bad = body([2000, 1, 1, 1], datatype="FP32")
        answers = await gateway.ask_for_table(good)
        found = await gateway.ask([*good[:2], bad, *good[2:]])
        assert found.pop(2) == "invalid_input"
        assert found == answers

    play(folder, story)
