"""Frames survive any split of the stream, and what a dead peer sent is still read."""

from __future__ import annotations

import asyncio
import ctypes
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.frames import (
    ALIGNED_BYTES,
    COALESCE_BYTES,
    PREFIX,
    Connection,
    Frame,
    Kind,
    pack,
    prove,
    size_of,
)


class Receiver:
    """Keeps what a connection delivers."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, int, bytes, bytes]] = []
        self.closes = 0

    def on_frame(self, frame: Frame) -> None:
        self.frames.append(
            (frame.kind, frame.request_id, bytes(frame.header), bytes(frame.payload))
        )

    def on_close(self) -> None:
        self.closes += 1


async def settle(receiver: Receiver, count: int) -> None:
    for _ in range(500):
        if len(receiver.frames) >= count or receiver.closes:
            return
        await asyncio.sleep(0.005)


async def exchange(payloads: list[bytes]) -> Receiver:
    left, right = socket.socketpair()
    receiver, sender = Receiver(), Receiver()
    reading = Connection(right, receiver.on_frame, receiver.on_close)
    writing = Connection(left, sender.on_frame, sender.on_close)
    for number, payload in enumerate(payloads):
        writing.send(Kind.REQUEST, number, {"n": number}, payload)
    await settle(receiver, len(payloads))
    writing.close()
    reading.close()
    return receiver


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 100, 5_000, COALESCE_BYTES, 200_000]), max_size=8))
def test_frames_arrive_whole_and_in_order_whatever_their_sizes(sizes: list[int]):
    payloads = [bytes([index % 251]) * size for index, size in enumerate(sizes)]
    receiver = asyncio.run(exchange(payloads))
    assert [frame[3] for frame in receiver.frames] == payloads
    assert [frame[1] for frame in receiver.frames] == list(range(len(payloads)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=60))
def test_a_stream_cut_anywhere_is_read_the_same(cuts: list[int]):
    data = b"".join(pack(Kind.CHUNK, number, [number] * 3) for number in range(20))

    async def run() -> Receiver:
        left, right = socket.socketpair()
        receiver = Receiver()
        connection = Connection(right, receiver.on_frame, receiver.on_close)
        position = 0
        for cut in [*cuts, len(data)]:
            left.sendall(data[position : position + cut])
            position = min(len(data), position + cut)
            await asyncio.sleep(0)
        await settle(receiver, 20)
        left.close()
        connection.close()
        return receiver

    receiver = asyncio.run(run())
    assert [frame[1] for frame in receiver.frames] == list(range(20))


def test_what_a_peer_sent_before_it_died_is_delivered_though_writing_to_it_fails():
    async def run() -> Receiver:
        left, right = socket.socketpair()
        receiver = Receiver()
        left.sendall(pack(Kind.STARTED, 0, [1, 2, 3]))
        left.sendall(pack(Kind.RESULT, 1, None))
        left.close()
        connection = Connection(right, receiver.on_frame, receiver.on_close)
        connection.send(Kind.REQUEST, 9, payload=b"x" * 10, now=True)
        connection.send(Kind.REQUEST, 10, payload=b"x" * 10, now=True)
        await settle(receiver, 3)
        return receiver

    receiver = asyncio.run(run())
    assert [frame[0] for frame in receiver.frames] == [Kind.STARTED, Kind.RESULT]
    assert receiver.closes == 1


@pytest.mark.parametrize(
    "prefix",
    [PREFIX.pack(1 << 31 | 1, Kind.RESULT, 0, 0, 1), PREFIX.pack(4, Kind.RESULT, 0, 9, 1)],
    ids=["too long", "header longer than the frame"],
)
def test_an_impossible_frame_closes_the_connection(prefix: bytes):
    async def run() -> Receiver:
        left, right = socket.socketpair()
        receiver = Receiver()
        Connection(right, receiver.on_frame, receiver.on_close)
        left.sendall(prefix + b"\0" * 16)
        await settle(receiver, 1)
        left.close()
        return receiver

    receiver = asyncio.run(run())
    assert receiver.closes == 1
    assert receiver.frames == []


def test_a_slow_reader_gets_everything_in_the_end():
    async def run() -> Receiver:
        left, right = socket.socketpair()
        receiver, sender = Receiver(), Receiver()
        writing = Connection(left, sender.on_frame, sender.on_close)
        for number in range(150):  # more than a kernel keeps for us
            writing.send(Kind.CHUNK, number, payload=bytes(100_000))
        assert writing.unsent_bytes > 1_000_000
        reading = Connection(right, receiver.on_frame, receiver.on_close)
        await settle(receiver, 150)
        writing.close()
        reading.close()
        return receiver

    receiver = asyncio.run(run())
    assert [frame[1] for frame in receiver.frames] == list(range(150))


def test_a_body_in_pieces_arrives_as_one():
    async def run() -> Receiver:
        left, right = socket.socketpair()
        receiver, sender = Receiver(), Receiver()
        reading = Connection(right, receiver.on_frame, receiver.on_close)
        writing = Connection(left, sender.on_frame, sender.on_close)
        pieces = tuple(bytes([number]) * 50_000 for number in range(100))
        assert size_of(pieces) == 5_000_000
        writing.send(Kind.REQUEST, 1, payload=pieces)
        writing.send(Kind.REQUEST, 2, payload=(b"a", b"", b"b"))
        writing.send(Kind.REQUEST, 3)
        await settle(receiver, 3)
        assert writing.unsent_bytes == 0
        writing.close()
        reading.close()
        return receiver

    receiver = asyncio.run(run())
    assert [frame[1] for frame in receiver.frames] == [1, 2, 3]
    assert [frame[3] for frame in receiver.frames] == [
        b"".join(bytes([number]) * 50_000 for number in range(100)),
        b"ab",
        b"",
    ]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 70), st.binary(max_size=90))
def test_the_numbers_of_a_large_frame_lie_where_numbers_may_be(at: int, header: bytes):
    addresses: list[int] = []
    payload = bytes(range(70)) + bytes(200_000)

    async def run() -> Receiver:
        left, right = socket.socketpair()
        receiver, sender = Receiver(), Receiver()

        def take(frame: Frame) -> None:
            receiver.on_frame(frame)
            addresses.append(ctypes.addressof(ctypes.c_char.from_buffer(frame.payload, at)))

        reading = Connection(right, take, receiver.on_close, None, lambda _: at)
        writing = Connection(left, sender.on_frame, sender.on_close)
        writing.send(Kind.REQUEST, 1, header, payload)
        await settle(receiver, 1)
        writing.close()
        reading.close()
        return receiver

    receiver = asyncio.run(run())
    assert receiver.frames[0][3] == payload
    assert addresses[0] % ALIGNED_BYTES == 0


def test_a_proof_depends_on_role_worker_and_both_nonces():
    parts = [(b"t", "worker", "w", b"a", b"b"), (b"t", "gateway", "w", b"a", b"b")]
    parts += [(b"t", "worker", "v", b"a", b"b"), (b"t", "worker", "w", b"b", b"a")]
    parts += [(b"u", "worker", "w", b"a", b"b")]
    assert len({prove(*each) for each in parts}) == len(parts)
