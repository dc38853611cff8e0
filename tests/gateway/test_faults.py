"""What goes wrong between gateway and worker: every request still ends once, rightly, in time."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tests.data_plane import DataPlane, play, write_model
from tests.gateway.test_predict import ECHO, SLOW

from wherry import errors, frames
from wherry.control.placement.placement import WorkerHandle
from wherry.frames import Call, Connection, Frame, Kind, Outcome, Usage
from wherry.gateway import queue as queue_module
from wherry.gateway.exchange import MAX_UNREAD_BYTES
from wherry.gateway.queue import MAX_WAITING
from wherry.worker.spec import WorkerSpec

LARGE = """
import numpy
class Model:
    def predict(self, batch):
        return [{"X": numpy.zeros(int(item["X"][0]))} for item in batch]
"""


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class HostileWorker:
    """A worker that knows its token and says what the test wants."""

    def __init__(self, folder: Path, answer: Any) -> None:
        address = folder / "hostile.sock"
        self.spec = WorkerSpec(
            id="hostile", deployment="default/model", model="model", version=1, digest="",
            files=(), token=b"t" * 32,
        )  # fmt: skip
        self.handle = WorkerHandle("hostile", 1, str(address), os.getpid(), self.spec)
        self.requests = 0
        self.calls: list[Call] = []
        self._answer = answer
        self._hello: frames.Hello
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(address))
        self._listener.listen()
        self._listener.setblocking(False)
        self.connections: list[Connection] = []
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        connected, _ = self._listener.accept()
        self.connections.append(Connection(connected, self._on_frame, lambda: None))

    def _on_frame(self, frame: Frame) -> None:
        connection, token = self.connections[-1], self.spec.token
        if frame.kind == Kind.HELLO:
            hello = msgspec.msgpack.decode(frame.header, type=frames.Hello)
            proof = frames.prove(token, "worker", "hostile", hello.nonce, b"n" * 16)
            challenge = frames.Challenge(frames.VERSION, "hostile", b"n" * 16, proof)
            connection.send(Kind.CHALLENGE, header=challenge)
        elif frame.kind == Kind.PROOF:
            connection.send(Kind.READY, header=frames.Ready(64, 1 << 20))
        elif frame.kind == Kind.PING:
            connection.send(Kind.PONG, header=frames.Pong(1, 0, 0))
        elif frame.kind == Kind.REQUEST:
            self.requests += 1
            self.calls.append(msgspec.msgpack.decode(frame.header, type=Call))
            self._answer(connection, frame.request_id)
        elif frame.kind == Kind.REQUESTS:
            for number, _, _ in msgspec.msgpack.decode(frame.payload, type=list[frames.Piece]):
                self.requests += 1
                self.calls.append(msgspec.msgpack.decode(frame.header, type=Call))
                self._answer(connection, number)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        for connection in self.connections:
            connection.close()


def test_what_a_left_version_had_not_answered_goes_to_the_one_that_is_served(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", SLOW)
        old, new = [await plane.start_worker(bundle) for _ in range(2)]
        plane.route(old)
        running = asyncio.ensure_future(plane.call(0.5, timeout_seconds=5.0))
        await asyncio.sleep(0.1)
        plane.route(new, number=2)
        os.kill(old.pid, signal.SIGKILL)
        assert await running == [0.5]
        (record,) = await plane.records()
        assert (record.version, record.attempts) == (2, 2)

    play(tmp_path, story)


def test_a_request_for_one_version_is_never_moved_to_another(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        worker = await plane.start_worker(write_model(tmp_path / "bundle", ECHO))
        plane.route(state="starting")
        pinned = [
            plane.gateway.predict(plane.inbound(1.0, deployment="model@1")),
            plane.gateway.predict(plane.inbound(1.0, version="1")),
        ]
        plane.route(worker, number=2)
        for exchange in pinned:
            with pytest.raises(errors.ModelNotFound):
                await exchange.answer()

    play(tmp_path, story)


def test_requests_that_wait_when_a_model_is_unloaded_wake_it(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        worker = await plane.start_worker(write_model(tmp_path / "bundle", ECHO))
        forged = msgspec.structs.replace(
            worker, spec=msgspec.structs.replace(worker.spec, token=b"x" * 32)
        )
        plane.route(forged)
        waiting = asyncio.ensure_future(plane.call(1.0, timeout_seconds=10.0))
        await asyncio.sleep(0.05)
        assert plane.woken == []
        plane.route(state="idle")
        assert plane.woken == ["model"]
        plane.woken.clear()
        await asyncio.sleep(1.2)
        assert plane.woken, "a wake that was lost on its way is repeated"
        plane.route(worker)
        assert await waiting == [2.0]

    play(tmp_path, story)


def test_a_worker_that_leaves_before_it_was_reached_leaves_no_connection(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        worker = await plane.start_worker(write_model(tmp_path / "bundle", ECHO))
        plane.route(worker)
        assert await plane.call(1.0) == [2.0]
        plane.route()
        await asyncio.sleep(0.1)
        before = open_descriptors()
        for _ in range(5):
            plane.route(worker)
            plane.route()
            plane.route(worker, state="failing")
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        assert open_descriptors() <= before

    play(tmp_path, story)


def test_a_worker_that_stops_by_itself_is_not_asked_again_and_again(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", SLOW)
        first, second = [await plane.start_worker(bundle) for _ in range(2)]
        plane.route(first)
        running = asyncio.ensure_future(plane.call(0.6))
        await asyncio.sleep(0.2)
        os.kill(first.pid, signal.SIGTERM)
        await asyncio.sleep(0.1)
        late = asyncio.ensure_future(plane.call(0.0))
        assert await running == [0.6]
        plane.route(second)
        assert await late == [0.0]

    play(tmp_path, story)


def test_a_large_answer_leaves_a_draining_worker_whole(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", LARGE, idempotent=False)
        worker = await plane.start_worker(bundle)
        plane.route(worker, idempotent=False)
        calls = [plane.gateway.predict(plane.inbound(400_000.0)) for _ in range(3)]
        await asyncio.sleep(0.05)
        plane.route(idempotent=False)
        removal = asyncio.ensure_future(plane.placement.remove(worker, 10))
        await asyncio.sleep(0)
        time.sleep(1.0)  # the gateway is busy elsewhere: the worker cannot get rid of its answers
        answers = await asyncio.gather(*(call.answer() for call in calls))
        assert {len(answer.body) > 400_000 for answer in answers} == {True}
        await removal

    play(tmp_path, story)


def test_a_garbled_answer_fails_its_request_at_once(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        garbled = [
            (Kind.RESULT, "not an outcome"),
            (Kind.FAILURE, 7),
            (Kind.RESULT, Outcome(Usage(-1_000_000, 0, 1))),
        ]

        def answer(connection: Connection, number: int) -> None:
            connection.send(Kind.STARTED, header=[number], now=True)
            kind, header = garbled.pop()
            connection.send(kind, number, header)

        worker = HostileWorker(tmp_path, answer)
        plane.route(worker.handle, idempotent=False)
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(errors.WorkerLost):
                await plane.call(1.0, timeout_seconds=5.0)
            assert time.monotonic() - begun < 2.0
        worker.close()
        assert {record.input_tokens for record in await plane.records()} == {0}

    play(tmp_path, story)


@pytest.mark.parametrize(
    "payload", [b"no list", [], [[1, [0, 0, 1], -5, b"{}"]], [[1, [-7, 0, 1], 5, b"{}"]]]
)
def test_garbled_answers_of_a_batch_end_no_request_wrongly(tmp_path: Path, payload: Any):
    async def story(plane: DataPlane) -> None:
        def answer(connection: Connection, number: int) -> None:
            connection.send(Kind.STARTED, header=[number], now=True)
            connection.send(Kind.RESULTS, 0, [1], frames.encode(payload))
            if payload == []:  # it answers nobody: then it is gone
                connection.close()

        worker = HostileWorker(tmp_path, answer)
        plane.route(worker.handle, idempotent=False)
        with pytest.raises(errors.WorkerLost):
            await plane.call(1.0, timeout_seconds=5.0, is_direct=True)
        worker.close()
        (record,) = await plane.records()
        assert (record.code, record.input_tokens) == ("worker_lost", 0)

    play(tmp_path, story)


@pytest.mark.parametrize("presumes", [True, False])
def test_without_started_a_request_counts_as_begun_only_where_it_is_presumed(
    tmp_path: Path, presumes: bool
):
    async def story(plane: DataPlane) -> None:
        def answer(connection: Connection, number: int) -> None:
            connection.send(Kind.PRESUME, header=True)
            connection.send(Kind.PRESUME, header=presumes, now=True)
            connection.close()

        worker = HostileWorker(tmp_path, answer)
        plane.route(worker.handle)
        inbound = plane.inbound(1.0, timeout_seconds=3.0, is_direct=True)
        exchange = plane.gateway.predict(inbound)
        for _ in range(200):
            if worker.requests == 3:
                break
            await asyncio.sleep(0.01)
        # the first time only: alone, it would have been told
        assert exchange.crashes == presumes
        assert [call.alone for call in worker.calls[:3]] == [False, presumes, presumes]
        worker.close()
        with pytest.raises(errors.WherryError):
            await exchange.answer()

    play(tmp_path, story)


def test_a_hang_is_found_where_starts_are_presumed(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        told: list[str] = []
        plane.gateway.tell_hung = lambda worker, why: told.append(why)

        def answer(connection: Connection, number: int) -> None:
            connection.send(Kind.PRESUME, header=True)
            if worker.requests == 1:  # the first is quick, the second never ends
                part = (number, Usage(0, 0, 1), 5, b"{}")
                connection.send(Kind.RESULTS, 0, [1000], frames.encode([part]))

        worker = HostileWorker(tmp_path, answer)
        plane.route(worker.handle)
        await plane.gateway.predict(plane.inbound(1.0, is_direct=True)).answer()
        late = plane.inbound(2.0, is_direct=True, timeout_seconds=0.5)
        with pytest.raises(errors.TimedOut):
            await plane.gateway.predict(late).answer()
        assert told == [], "it may be about to end"
        await asyncio.sleep(2.2)
        assert told
        assert "beyond its deadline" in told[0]
        worker.close()

    play(tmp_path, story)


def test_clients_that_leave_while_they_wait_leave_nothing_behind(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        plane.route(state="starting")
        kept = [plane.gateway.predict(plane.inbound(1.0)) for _ in range(3)]
        left = []
        for number in range(MAX_WAITING + 10):
            if number % 1000 == 0:
                await asyncio.sleep(0)  # the journal writes once a tick
            exchange = plane.gateway.predict(plane.inbound(1.0))
            plane.gateway.cancel(exchange)
            left.append(exchange)
        assert plane.gateway.loads()["default/model"][1] == len(kept)
        assert not any(exchange.body for exchange in left), "bodies are let go"
        worker = await plane.start_worker(write_model(tmp_path / "bundle", ECHO))
        plane.route(worker)
        assert [len((await exchange.answer()).body) > 0 for exchange in kept] == [True] * 3

    play(tmp_path, story)


def test_an_idle_time_is_not_taken_for_slowness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", SLOW)
        plane.route(await plane.start_worker(bundle))
        await asyncio.gather(*(plane.call(0.01) for _ in range(10)))
        jumped = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600)
        monkeypatch.setattr(queue_module, "time", jumped)
        calls = [
            asyncio.ensure_future(plane.call(0.05, timeout_seconds=8000.0)) for _ in range(200)
        ]
        longest = 0.0
        while not all(call.done() for call in calls):
            loads = plane.gateway.loads().values()
            longest = max([longest, *(seconds for _, _, seconds in loads)])
            await asyncio.sleep(0.005)
        assert longest < 30

    play(tmp_path, story, request_timeout_seconds=8000.0)


def test_a_gateway_that_stops_ends_and_records_what_it_has(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", SLOW)
        plane.route(await plane.start_worker(bundle))
        running = plane.gateway.predict(plane.inbound(5.0))
        await asyncio.sleep(0.1)
        plane.route(state="starting", number=2)
        waiting = plane.gateway.predict(plane.inbound(1.0))
        plane.gateway.close()
        for exchange in (running, waiting):
            with pytest.raises(errors.WherryError):
                await exchange.answer()
        assert len(await plane.records()) == 2
        assert plane.gateway.guard.running() == {}

    play(tmp_path, story)


def test_a_stream_that_is_read_too_slowly_says_so_at_its_end(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        def answer(connection: Connection, number: int) -> None:
            connection.send(Kind.STARTED, header=[number], now=True)
            for _ in range(MAX_UNREAD_BYTES // 100_000 + 2):
                connection.send(Kind.CHUNK, number, payload=bytes(100_000))

        worker = HostileWorker(tmp_path, answer)
        plane.route(worker.handle)
        exchange = plane.gateway.predict(plane.inbound(1.0, stream=True))
        await exchange.first()
        await asyncio.sleep(0.3)
        with pytest.raises(errors.TooLarge, match="slowly"):
            async for _ in exchange.chunks():
                pass
        worker.close()

    play(tmp_path, story)


def test_a_deleted_deployment_leaves_no_counts_behind(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        worker = await plane.start_worker(write_model(tmp_path / "bundle", ECHO))
        plane.route(worker)
        await plane.call(1.0)
        settler = plane.gateway.settler
        assert settler.counts_of("default/model")[0] == 1
        plane.route(worker, name="another")
        assert settler.last_used == {}
        assert settler.counts_of("default/model") == (0, 0, 0.0)

    play(tmp_path, story)


def test_after_breaking_off_nothing_is_repeated_that_may_run_once_only(tmp_path: Path):
    """What a gateway did not read may have been STARTED: only the end of a stream proves it not."""

    async def story(plane: DataPlane) -> None:
        def answer(connection: Connection, number: int) -> None:
            connection.send(Kind.RESULT, number, "not an outcome")
            connection.send(Kind.STARTED, header=[number], now=True)

        worker = HostileWorker(tmp_path, answer)
        plane.route(worker.handle, idempotent=False)
        with pytest.raises(errors.WorkerLost):
            await plane.call(1.0, timeout_seconds=5.0)
        assert worker.requests == 1
        worker.close()

    play(tmp_path, story)
