"""One gateway as a worker sees it: the hello, requests in, answers out."""

from __future__ import annotations

import hmac
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from wherry import frames
from wherry.frames import Batch, Call, Connection, Frame, Kind, Piece, Table, Usage
from wherry.models.codecs.codec import Codec, Decoded, StreamEncoder
from wherry.worker.rows import Gathered
from wherry.worker.spec import WorkerSpec

CREDIT_BYTES = 4 << 20
HELLO_BYTES = 4 << 10
HELLO_SECONDS = 3.0
"""Who has not proved within this time who it is, is no gateway."""
NOTHING_USED = Usage()

decode_call = msgspec.msgpack.Decoder(Call).decode
decode_hello = msgspec.msgpack.Decoder(frames.Hello).decode
decode_proof = msgspec.msgpack.Decoder(frames.Proof).decode
decode_pieces = msgspec.msgpack.Decoder(list[Piece]).decode


class Work:
    """One request on its way through the worker; what most never need is in the class."""

    started = 0.0
    is_gathered = False
    """Whether it came with others in one frame; so does its answer leave, then."""
    is_cancelled = False
    finished = False
    remaining = 0
    usage = NOTHING_USED
    encoder: StreamEncoder | None = None
    _cancelled: threading.Event | None = None
    codec: Codec
    decoded: Decoded
    outputs: list[Any]

    def __init__(self, peer: Peer, request_id: int, call: Call, now: float, left_ms: int) -> None:
        self.peer = peer
        self.request_id = request_id
        self.call = call
        self.arrived = now
        self.deadline = now + left_ms / 1000

    @property
    def cancelled(self) -> threading.Event:
        """Set when nobody waits any more, for runtimes that look in other threads."""
        if self._cancelled is None:
            self._cancelled = threading.Event()
            if self.is_cancelled:
                self._cancelled.set()
        return self._cancelled

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.is_cancelled = True
        if self._cancelled is not None:
            self._cancelled.set()

    def is_unwanted(self, now: float) -> bool:
        """Whether nobody waits for it any more."""
        return self.finished or self.is_cancelled or now > self.deadline


class Host(Protocol):
    """The worker, as its peers see it."""

    spec: WorkerSpec
    credits: int

    def accept(self, work: Work, body: memoryview) -> None:
        """A request has come."""
        ...

    def answer_at_once(self, peer: Peer, gathered: Sequence[Gathered]) -> Sequence[Gathered]:
        """Answer what takes next to no time together; returns what must go the usual way."""
        ...

    def find_binary(self, call: Call) -> int:
        """At which byte of a request's body numbers begin; 0 if none do."""
        ...

    def run_waiting(self) -> None:
        """All requests that had come are accepted."""
        ...

    def cancel(self, work: Work) -> None:
        """Nobody waits for it any more."""
        ...

    def progress(self) -> frames.Pong:
        """Evidence that it moves."""
        ...

    def forget(self, peer: Peer) -> None:
        """The connection has ended."""
        ...


class Peer:
    """One gateway's connection. Nothing is accepted before the mutual hello."""

    def __init__(self, host: Host, connected: socket.socket) -> None:
        self.works: dict[int, Work] = {}
        self.is_trusted = False
        self.presumes = False
        """Whether it takes every request for begun (see `wherry.frames`)."""
        self.connection = Connection(
            connected, self._on_frame, self._on_close, self._on_read, self._find_binary
        )
        self.connection.max_frame_bytes = HELLO_BYTES
        self._host = host
        self._nonce = b""
        self._theirs = b""
        self._gathered: list[Gathered] = []
        """Small requests of the read that goes on."""
        self._parts: list[Any] = []
        self._batches: list[tuple[int, list[Any]]] = []
        loop = self.connection.loop
        self._timer = loop.call_later(HELLO_SECONDS, self._close_if_stranger)

    def _close_if_stranger(self) -> None:
        if not self.is_trusted:
            self.connection.close()

    # ------------------------------------------------------------------ what comes

    def _on_frame(self, frame: Frame) -> None:
        try:
            if self.is_trusted:
                self._on_trusted_frame(frame)
            else:
                self._on_hello(frame)
        except Exception:  # noqa: BLE001 - a faulty frame costs its connection, not the worker
            self._give_up()

    def _give_up(self) -> None:
        traceback.print_exc(file=sys.stderr)
        self.connection.close()

    def _find_binary(self, header: memoryview) -> int:
        try:
            return self._host.find_binary(decode_call(header))
        except Exception:  # noqa: BLE001 - whatever is wrong is told when the frame is whole
            return 0

    def _on_hello(self, frame: Frame) -> None:
        spec = self._host.spec
        if frame.kind == Kind.HELLO and not self._nonce:
            hello = decode_hello(frame.header)
            if hello.version != frames.VERSION:
                raise ValueError(f"the gateway speaks version {hello.version}")
            self._nonce, self._theirs = secrets.token_bytes(16), hello.nonce
            proof = frames.prove(spec.token, "worker", spec.id, self._theirs, self._nonce)
            challenge = frames.Challenge(frames.VERSION, spec.id, self._nonce, proof)
            self.connection.send(Kind.CHALLENGE, header=challenge)
            return
        proof = frames.prove(spec.token, "gateway", spec.id, self._nonce, self._theirs)
        if frame.kind != Kind.PROOF or not hmac.compare_digest(
            decode_proof(frame.header).proof, proof
        ):
            self.connection.close()
            return
        self.is_trusted = True
        self._timer.cancel()
        self.connection.max_frame_bytes = frames.MAX_FRAME_BYTES
        ready = frames.Ready(self._host.credits, CREDIT_BYTES)
        self.connection.send(Kind.READY, header=ready)

    def _on_trusted_frame(self, frame: Frame) -> None:
        kind, host, works = frame.kind, self._host, self.works
        if kind == Kind.REQUESTS:
            self._gathered.append((decode_call(frame.header), decode_pieces(frame.payload)))
            return
        if self._gathered:
            self._accept_gathered()  # what follows may be about one of them
        if kind == Kind.REQUEST:
            call, number = decode_call(frame.header), frame.request_id
            work = works[number] = Work(self, number, call, time.monotonic(), call.deadline_ms)
            host.accept(work, frame.payload)
        elif kind == Kind.CANCEL:
            found = works.get(frame.request_id)
            if found is not None:
                host.cancel(found)
        elif kind == Kind.PING:
            self.connection.send(Kind.PONG, header=host.progress())

    def _on_read(self) -> None:
        if self._gathered:
            try:
                self._accept_gathered()
            except Exception:  # noqa: BLE001 - as for a frame
                self._give_up()
        self._host.run_waiting()

    def _accept_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        host, now = self._host, time.monotonic()
        for call, pieces in host.answer_at_once(self, gathered):
            for number, left_ms, body in pieces:
                work = self.works[number] = Work(self, number, call, now, left_ms)
                work.is_gathered = True
                host.accept(work, body)

    def _on_close(self) -> None:
        self._host.forget(self)
        for work in list(self.works.values()):
            self._host.cancel(work)

    # ------------------------------------------------------------------ what goes

    def presume(self, presumes: bool) -> None:
        """Let every request count as begun, or not any more; at once if so."""
        if presumes != self.presumes:
            self.presumes = presumes
            self.connection.send(Kind.PRESUME, header=presumes, now=presumes)

    def send_rows(self, run_us: int, rows: Sequence[tuple[int, bytes]]) -> None:
        """Answers of one row each."""
        self.connection.send(Kind.ROWS, 0, Table(run_us), frames.encode(rows), now=True)

    def gather(self, part: tuple[int, Usage, int, bytes | bytearray | memoryview]) -> None:
        """Keep a small answer until `send_gathered`, at the end of its batch."""
        self._parts.append(part)

    def send_gathered(self, run_us: int, *, is_held: bool) -> None:
        """The answers of a batch; held ones leave with the first that are not."""
        if self._parts:
            self._batches.append((run_us, self._parts))
            self._parts = []
        if is_held or not self._batches:
            return
        batches, self._batches = self._batches, []
        left = len(batches)
        for ran_us, parts in batches:
            left -= 1
            encoded = frames.encode(parts)
            self.connection.send(Kind.RESULTS, 0, Batch(ran_us), encoded, now=not left)
