"""A gateway that dies at each byte of what it says, or does not listen: the worker goes on rightly."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.data_plane import write_model
from tests.gateway.forge import forge

from wherry import frames
from wherry.control.placement.placement import WorkerHandle
from wherry.frames import PREFIX, Call, Kind
from wherry.worker.loop import Worker
from wherry.worker.spec import WorkerConfig, WorkerSpec

MANY = 3_000_000
"""Numbers of an answer of 12 MB: more than a socket keeps for who does not read."""
MODEL = """
import numpy, os
class Model:
    def predict(self, batch):
        for item in batch:
            ledger = os.open({ledger!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(ledger, f"{{int(item['X'][0])}}\\n".encode())
            os.close(ledger)
        return [{{"X": numpy.ones(int(item["X"][1])) * item["X"][0]}} for item in batch]
"""
TOKEN = b"t" * 32


def executed(ledger: Path) -> list[int]:
    return [int(line) for line in ledger.read_text().split()] if ledger.exists() else []


class RawGateway:
    """A gateway's side of a connection, in bytes; it blocks, and reads only when asked to."""

    def __init__(self, address: str, worker: str, token: bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(address)
        self._worker, self._token = worker, token
        self._data = b""

    def shake_hands(self) -> None:
        for part in self.words_of_hello():
            self.socket.sendall(part)

    def words_of_hello(self) -> Iterator[bytes]:
        """HELLO, then PROOF when the challenge has come; reads READY at last."""
        nonce = b"n" * 16
        yield frames.pack(Kind.HELLO, header=frames.Hello(frames.VERSION, "raw", nonce))
        kind, _, header, _ = next(self.read())
        assert kind == Kind.CHALLENGE
        challenge = msgspec.msgpack.decode(header, type=frames.Challenge)
        proof = frames.prove(self._token, "gateway", self._worker, challenge.nonce, nonce)
        yield frames.pack(Kind.PROOF, header=frames.Proof(proof))
        assert next(self.read())[0] == Kind.READY

    def read(self) -> Iterator[tuple[int, int, bytes, bytes]]:
        """Frames, until the other end is gone."""
        while True:
            while len(self._data) < PREFIX.size:
                if not self._fill():
                    return
            length, kind, _, header_bytes, number = PREFIX.unpack_from(self._data)
            while len(self._data) < PREFIX.size + length:
                if not self._fill():
                    return
            start = PREFIX.size + header_bytes
            header, payload = (
                self._data[PREFIX.size : start],
                self._data[start:][: length - header_bytes],
            )
            self._data = self._data[PREFIX.size + length :]
            yield kind, number, header, payload

    def _fill(self) -> bool:
        try:
            more = self.socket.recv(1 << 20)
        except ConnectionResetError:
            return False
        self._data += more
        return bool(more)


def request(number: int, size: int = 1) -> bytes:
    """A REQUEST whose answer is `size` times its number."""
    body = {"inputs": [{"name": "X", "shape": [2], "datatype": "FP64", "data": [number, size]}]}
    call = Call("inference", f"req-{number}", "model", "1", 0)
    header, payload = frames.encode(call), msgspec.json.encode(body)
    length = len(header) + len(payload)
    return PREFIX.pack(length, Kind.REQUEST, 0, len(header), number) + header + payload


def final_frames(gateway: RawGateway, numbers: list[int]) -> dict[int, int]:
    """Read until each request has its final frame; fails if one gets two."""
    ends: dict[int, int] = {}
    for kind, number, _, payload in gateway.read():
        if kind in (Kind.RESULT, Kind.END, Kind.FAILURE):
            assert number not in ends, "a credit comes back twice"
            ends[number] = kind
            if kind == Kind.RESULT:
                data = msgspec.json.decode(payload)["outputs"][0]["data"]
                assert set(data) == {number}, "another request's answer"
        if set(ends) >= set(numbers):
            break
    return ends


# ------------------------------------------------------------------ what arrives is cut short


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.campaign)])
def test_a_gateway_that_dies_at_any_byte_costs_only_its_own_requests(tmp_path: Path, every: int):
    ledger = tmp_path / "ledger"
    bundle = write_model(tmp_path / "bundle", MODEL.format(ledger=str(ledger)), idempotent=False)
    says = [request(1), request(2), frames.pack(Kind.CANCEL, 2), request(3)]
    boundaries = [sum(map(len, says[:count])) for count in range(len(says) + 1)]
    cuts = sorted({*boundaries, *range(0, boundaries[-1], every)})

    async def story() -> None:
        spec = WorkerSpec(
            id="w", deployment="default/model", model="model", version=1, digest="", files=(),
            token=TOKEN,
        )  # fmt: skip
        worker = Worker(WorkerConfig(spec=spec, bundle_folder=str(bundle)))
        await worker.load()
        steady = Linked(worker)
        await asyncio.to_thread(steady.shake_hands)
        for index, size in enumerate(cuts):
            before = len(executed(ledger))
            dying = Linked(worker)
            await asyncio.to_thread(dying.shake_hands)
            dying.socket.sendall(b"".join(says)[:size])
            if index % 2:
                await asyncio.sleep(0.005)  # else it dies before the worker has read it
            dying.socket.close()
            number = 1000 + index
            steady.socket.sendall(request(number))
            ends = await asyncio.to_thread(final_frames, steady, [number])
            assert ends == {number: Kind.RESULT}
            for _ in range(1000):
                if len(worker.peers) == 1 and not worker.in_flight and not len(worker._batcher):
                    break
                await asyncio.sleep(0.002)
            assert (len(worker.peers), worker.in_flight, len(worker._batcher)) == (1, 0, 0)
            done = executed(ledger)[before:]
            whole = [
                each for each, end in zip([1, 2, 0, 3], boundaries[1:], strict=True) if end <= size
            ]
            assert done.count(number) == 1
            assert len(done) == len(set(done)), "a request was executed twice"
            assert set(done) - {number} <= set(whole), "a request was executed that was not whole"
        steady.socket.close()

    asyncio.run(story())


class Linked(RawGateway):
    """A raw gateway that a worker in this process has accepted."""

    def __init__(self, worker: Worker) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        worker.connect(theirs)
        self.socket = ours
        self.socket.settimeout(20)
        self._worker, self._token, self._data = "w", TOKEN, b""


# ------------------------------------------------------------------ nobody reads what it says


def play_with_worker(folder: Path, story: Any) -> None:
    """Run a story, in a thread, with a forged worker whose model may run once."""
    ledger = folder / "ledger"
    bundle = write_model(folder / "bundle", MODEL.format(ledger=str(ledger)), idempotent=False)

    async def run() -> None:
        async with forge() as maker:
            worker = await maker.start(bundle)
            await asyncio.to_thread(story, worker, ledger)

    asyncio.run(run())


def wait_for(ledger: Path, count: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while len(executed(ledger)) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_what_is_executed_was_started_for_a_gateway_that_does_not_read(tmp_path: Path):
    """STARTED must be with the kernel: what waits in the worker's memory dies with the worker."""

    def story(worker: WorkerHandle, ledger: Path) -> None:
        gateway = RawGateway(worker.address, worker.id, worker.spec.token)
        gateway.shake_hands()
        # the first answer is far more than a socket holds, the second request has begun by then
        gateway.socket.sendall(request(1, MANY) + request(2) + request(3))
        wait_for(ledger, 3, 0.7)
        os.kill(worker.pid, signal.SIGKILL)
        started = {
            number
            for kind, _, header, _ in gateway.read()
            if kind == Kind.STARTED
            for number in msgspec.msgpack.decode(header, type=list[int])
        }
        gateway.socket.close()
        assert 1 in executed(ledger)
        assert set(executed(ledger)) <= started

    play_with_worker(tmp_path, story)


def test_a_gateway_that_does_not_read_holds_up_the_others_for_a_moment_only(tmp_path: Path):
    def story(worker: WorkerHandle, ledger: Path) -> None:
        deaf = RawGateway(worker.address, worker.id, worker.spec.token)
        good = RawGateway(worker.address, worker.id, worker.spec.token)
        deaf.shake_hands()
        good.shake_hands()
        deaf.socket.sendall(request(1, MANY) + request(2) + request(3))
        wait_for(ledger, 2, 10)
        good.socket.sendall(request(7))
        assert final_frames(good, [7]) == {7: Kind.RESULT}
        assert 3 not in executed(ledger)
        deaf.socket.close()
        good.socket.close()

    play_with_worker(tmp_path, story)


def test_a_gateway_that_reads_slowly_gets_everything(tmp_path: Path):
    def story(worker: WorkerHandle, ledger: Path) -> None:
        slow = RawGateway(worker.address, worker.id, worker.spec.token)
        slow.shake_hands()
        slow.socket.sendall(request(1, MANY) + request(2) + request(3))
        wait_for(ledger, 1, 10)
        time.sleep(0.3)
        assert final_frames(slow, [1, 2, 3]) == dict.fromkeys((1, 2, 3), Kind.RESULT)
        assert executed(ledger) == [1, 2, 3]
        slow.socket.close()

    play_with_worker(tmp_path, story)
