"""What gateway and worker say to each other: frames over a Unix or TCP stream.

A frame is a fixed prefix, a msgpack header and a raw payload that is never copied into the
header:

    u32 bytes that follow the prefix | u8 kind | u8 flags (0) | u16 header bytes | u64 request id

Invariants that both sides rely on:

* Every REQUEST is answered by exactly one final frame (RESULT, END or FAILURE) on the same
  connection, also when it was cancelled. The gateway counts these as returned credits, so a
  slot belongs to the computation, not to the waiter.
* STARTED leaves the worker before the model sees the request. A connection that closes without
  STARTED for a request has not executed it. A worker whose batches take next to no time, and whose
  version may answer twice, spares itself most of these: after PRESUME every request it was sent
  counts as begun, until PRESUME is taken back.
* REQUESTS, RESULTS and ROWS are many small ones in one frame, because what they have in common, and the
  handling of a frame, would cost more than they do. Each counts as if it had come alone.
* Kinds that a side does not know are ignored; VERSION is checked in the hello.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import hmac
import select
import socket
import struct
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

VERSION = 3
PREFIX = struct.Struct("<IBBHQ")
MAX_FRAME_BYTES = 1 << 31
COALESCE_BYTES = 64 << 10
"""Frames up to this size are joined per loop tick; larger ones are sent as they are (joining
large ones is measurably harmful: the copies serialise)."""
READ_BYTES = 64 << 10
SOCKET_BYTES = 4 << 20
"""What the kernel may hold for the peer, as far as it lets us: a tensor leaves in one call."""
ALIGNED_BYTES = 16
"""Where the C library puts a large block, and where any number may be."""
DRAIN_POLL_SECONDS = 0.005

DRAINING = "draining"
"""Code of a FAILURE that is none: the worker is stopping and has not run the request."""

encode = msgspec.msgpack.Encoder().encode

Pieces = tuple[bytes, ...]
"""A large body in the pieces in which it came: joining them would cost a copy."""
Payload = bytes | bytearray | memoryview | Pieces
FindBinary = Callable[[memoryview], int]
"""Told the header of a large frame: at which byte of its payload numbers begin; 0 if none do."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
"""What a worker counts; checked on arrival, since workers are not trusted."""


class Kind(enum.IntEnum):
    """What a frame means."""

    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    READY = 4
    REQUEST = 10
    CANCEL = 11
    STARTED = 12
    RESULT = 13
    CHUNK = 14
    END = 15
    FAILURE = 16
    REQUESTS = 17
    RESULTS = 18
    PRESUME = 19
    PING = 20
    PONG = 21
    ROWS = 22
    # between gateway and controller
    JOIN = 30
    SNAPSHOT = 31
    ACK = 32
    REPORT = 33
    WAKE = 34
    ASK = 35
    ANSWER = 36
    NUDGE = 37
    HUNG = 38
    ENDED = 39
    POISON = 40
    # between a batch's runner and gateways (`wherry.jobs.batches.wire`)
    CALL = 41
    REPLY = 42


class Usage(msgspec.Struct, array_like=True, frozen=True):
    """What one answer cost, in the task's own units."""

    input_tokens: Count = 0
    output_tokens: Count = 0
    rows: Count = 0
    """Texts, pictures or table rows answered."""
    characters: Count = 0
    """Of text that was spoken, translated or the like."""
    audio_ms: Count = 0
    """Milliseconds of sound that were listened to."""

    def __add__(self, other: Usage) -> Usage:
        """Sum of two usages, unit by unit."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.rows + other.rows,
            self.characters + other.characters,
            self.audio_ms + other.audio_ms,
        )


class Call(msgspec.Struct, array_like=True):
    """Header of REQUEST: what the door knows of a request, beside its body."""

    codec: str
    """A name of `wherry.models.codecs.catalog`."""
    request_id: str
    """Empty for a codec that does not tell it."""
    deployment: str
    """The name the client used, for echoing in the answer."""
    version: str
    """Number of the version that serves the request, as text."""
    created: int = 0
    """Unix time, seconds; 0 for a codec that does not tell it."""
    headers: dict[str, str] = {}
    """The few headers the door's row forwards, names in lower case."""
    stream: bool = False
    tenant: str = ""
    """Opaque id; runtimes may keep caches only within one tenant."""
    max_body_bytes: int = 64 << 20
    """Cap for a decompressed body."""
    max_tokens: int = 0
    """The deployment's cap for generated tokens per answer; 0 = the model's own."""
    deadline_ms: int = 120_000
    """Time that remains, not a clock reading."""
    wants_gist: bool = False
    """Another version gets a copy, and the answers are compared."""
    alone: bool = False
    """Run it with no other request: it may be what killed a worker."""


Piece = tuple[int, int, memoryview]
"""One request of REQUESTS, whose header is the `Call` of them all: request id, milliseconds that
remain, body."""


class Outcome(msgspec.Struct, array_like=True):
    """Header of RESULT and END, whose payload is the answer, or what closes a stream."""

    usage: Usage
    content_type: str = "application/json"
    headers: dict[str, str] = {}
    queued_us: int = 0
    """Time between arrival in the worker and start."""
    run_us: int = 0
    gist: bytes = b""
    """What answers are compared by, if it was asked for; see `wherry.models.tasks.gist`."""


class Batch(msgspec.Struct, array_like=True):
    """Header of RESULTS: what the answers of a batch have in common. All are plain JSON."""

    run_us: Count
    """From the start of the batch until all its answers are encoded."""


Part = tuple[int, Usage, Count, memoryview]
"""One answer of RESULTS: request id, usage, microseconds between arrival and start, body."""


class Table(msgspec.Struct, array_like=True):
    """Header of ROWS: answers of one row each, which began as they came and ran together."""

    run_us: Count


Row = tuple[int, memoryview]
"""One answer of ROWS: request id, body. Its usage is one row."""


class Failure(msgspec.Struct, array_like=True):
    """Header of FAILURE: an error of `wherry.errors`, and what was spent all the same."""

    code: str
    message: str
    hint: str = ""
    param: str | None = None
    retry_after_seconds: float = 0.0
    usage: Usage = msgspec.field(default_factory=Usage)


class Hello(msgspec.Struct, array_like=True):
    """Gateway to worker: I ask to talk."""

    version: int
    gateway: str
    nonce: bytes


class Challenge(msgspec.Struct, array_like=True):
    """Worker to gateway: proof of the shared token, and a nonce for yours."""

    version: int
    worker: str
    nonce: bytes
    proof: bytes


class Proof(msgspec.Struct, array_like=True):
    """Gateway to worker: proof of the shared token."""

    proof: bytes


class Ready(msgspec.Struct, array_like=True):
    """Worker to gateway: how much may be in flight on this connection."""

    credits: int
    credit_bytes: int


class Pong(msgspec.Struct, array_like=True):
    """Worker to gateway: whether the executor makes progress."""

    finished: int
    """Batches or streams finished since start."""
    busy_ms: int
    """Age of the batch that runs now; 0 when idle."""
    waiting: int


def prove(token: bytes, role: str, worker: str, theirs: bytes, ours: bytes) -> bytes:
    """HMAC by which one side shows that it holds the worker's token."""
    message = b"|".join((role.encode(), worker.encode(), theirs, ours))
    return hmac.digest(token, message, hashlib.sha256)


def pack(kind: Kind, request_id: int = 0, header: Any = None) -> bytes:
    """Bytes of a frame without payload."""
    head = b"" if header is None else encode(header)
    return PREFIX.pack(len(head), kind, 0, len(head), request_id) + head


def size_of(payload: Payload) -> int:
    """Bytes of a payload."""
    if isinstance(payload, tuple):
        return sum(map(len, payload))
    return payload.nbytes if isinstance(payload, memoryview) else len(payload)


class Frame:
    """One frame as received; `payload` is a view that lives as long as the frame."""

    __slots__ = ("header", "kind", "payload", "request_id")

    def __init__(self, kind: int, request_id: int, header: memoryview, payload: memoryview):
        self.kind = kind
        self.request_id = request_id
        self.header = header
        self.payload = payload


class Connection:
    """A stream socket that carries frames, on the running loop.

    It reads and writes the socket itself instead of through a transport: when the peer has died,
    a transport that fails to write throws away what the kernel still holds for reading, and with
    it STARTED frames and finished answers. Here a failed write only stops writing; reading goes
    on until end of file, and only then `on_close` is called (once, from the loop).
    """

    def __init__(
        self,
        connected: socket.socket,
        on_frame: Callable[[Frame], None],
        on_close: Callable[[], None],
        on_read: Callable[[], None] | None = None,
        find_binary: FindBinary | None = None,
    ) -> None:
        """Read from now on.

        Args:
            connected: the socket, which is ours from now on.
            on_frame: takes each frame.
            on_close: told once that nothing follows.
            on_read: told that all whole frames which had come are taken, for what is done once for
                them all.
            find_binary: lets a large frame lie in memory so that its numbers need not be moved.
        """
        connected.setblocking(False)
        with contextlib.suppress(OSError):  # some systems refuse what they do not have
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._socket = connected
        self.loop = asyncio.get_running_loop()
        self._on_frame = on_frame
        self._on_close = on_close
        self._on_read = on_read
        self._find_binary = find_binary
        self._pending = b""
        self._large: memoryview | None = None
        self._large_filled = 0
        self._out: list[bytes | bytearray | memoryview] = []
        self.unsent_bytes = 0
        self.max_frame_bytes = MAX_FRAME_BYTES
        """Longer frames close the connection; small until the peer is trusted."""
        self._flush_scheduled = False
        self._writer_added = False
        self._write_failed = False
        self.closed = False
        self.reached_end = False
        """Whether everything was read that the peer has ever sent."""
        self.loop.add_reader(connected.fileno(), self._readable)

    # -------------------------------------------------------------------------- sending

    def send(
        self,
        kind: Kind,
        request_id: int = 0,
        header: Any = None,
        payload: Payload = b"",
        *,
        now: bool = False,
    ) -> None:
        """Queue a frame; it leaves at the end of this loop tick, or at once with `now`."""
        if self.closed or self._write_failed:
            return
        head = b"" if header is None else encode(header)
        payload_bytes = len(payload) if payload.__class__ is bytes else size_of(payload)
        self._out.append(
            PREFIX.pack(len(head) + payload_bytes, kind, 0, len(head), request_id) + head
        )
        self.unsent_bytes += PREFIX.size + len(head) + payload_bytes
        if payload_bytes:
            if isinstance(payload, tuple):
                self._out += payload
            else:
                self._out.append(payload)
        if now or payload_bytes > COALESCE_BYTES:
            self.flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush_tick)

    def _flush_tick(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Write what is queued, as far as the kernel takes it."""
        if self._writer_added or self.closed:
            return
        while self._out:
            try:
                sent = self._send_some()
            except (BlockingIOError, InterruptedError):
                self._writer_added = True
                self.loop.add_writer(self._socket.fileno(), self._writable)
                return
            except OSError:
                # the peer is gone; what it sent before is still to be read
                self._write_failed = True
                self._out.clear()
                self.unsent_bytes = 0
                return
            self._drop_sent(sent)

    def _send_some(self) -> int:
        if self.unsent_bytes <= COALESCE_BYTES and len(self._out) > 1:
            self._out = [b"".join(self._out)]
        if len(self._out) == 1:
            return self._socket.send(self._out[0])
        return self._socket.sendmsg(self._out[:256])

    def _drop_sent(self, sent: int) -> None:
        self.unsent_bytes -= sent
        done = 0
        for piece in self._out:
            size = piece.nbytes if isinstance(piece, memoryview) else len(piece)
            if sent < size:
                if sent:
                    self._out[done] = memoryview(piece)[sent:]
                break
            sent -= size
            done += 1
        del self._out[:done]

    def _writable(self) -> None:
        self.loop.remove_writer(self._socket.fileno())
        self._writer_added = False
        self.flush()

    # -------------------------------------------------------------------------- receiving

    def _readable(self) -> None:
        try:
            if self._large is not None:
                self._read_large()
                return
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.reached_end = True
            self.close()
            return
        self._parse(self._pending + data if self._pending else data)

    def _parse(self, data: bytes) -> None:
        view = memoryview(data)
        position, end = 0, len(data)
        while end - position >= PREFIX.size:
            length, kind, _, header_bytes, request_id = PREFIX.unpack_from(data, position)
            if length > self.max_frame_bytes or header_bytes > length:
                self.close()
                return
            start = position + PREFIX.size
            if end - start < length:
                if length > READ_BYTES:
                    self._begin_large(view[position:], PREFIX.size + length, header_bytes)
                    position = end
                break
            header_end = start + header_bytes
            position = start + length
            self._on_frame(
                Frame(kind, request_id, view[start:header_end], view[header_end:position])
            )
            if self.closed:
                return
        self._pending = data[position:] if position < end else b""
        if self._on_read is not None:
            self._on_read()

    def _begin_large(self, begun: memoryview, total_bytes: int, header_bytes: int) -> None:
        # allocate once at the final size, so a 4 MB tensor is copied by the kernel only
        self._pending = b""
        before = PREFIX.size + header_bytes
        lead = 0  # bytes left free at the start, so that the numbers begin where they may
        if self._find_binary is not None and len(begun) >= before:
            numbers_at = before + self._find_binary(begun[PREFIX.size : before])
            lead = -numbers_at % ALIGNED_BYTES
        self._large = memoryview(bytearray(lead + total_bytes))[lead:]
        self._large[: len(begun)] = begun
        self._large_filled = len(begun)

    def _read_large(self) -> None:
        large = self._large
        assert large is not None
        count = self._socket.recv_into(large[self._large_filled :])
        if count == 0:
            self.reached_end = True
            self.close()
            return
        self._large_filled += count
        if self._large_filled < len(large):
            return
        self._large = None
        _, kind, _, header_bytes, request_id = PREFIX.unpack_from(large)
        split = PREFIX.size + header_bytes
        self._on_frame(Frame(kind, request_id, large[PREFIX.size : split], large[split:]))
        if self._on_read is not None and not self.closed:
            self._on_read()

    def close(self) -> None:
        """Stop reading and writing; `on_close` is called once."""
        if self.closed:
            return
        self.closed = True
        self._out.clear()
        self.unsent_bytes = 0
        self.loop.remove_reader(self._socket.fileno())
        if self._writer_added:
            self.loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._on_close()

    def push(self, seconds: float) -> bool:
        """Block the loop until the kernel has all that is queued; False if nothing moves so long."""
        writable = select.poll()
        writable.register(self._socket.fileno(), select.POLLOUT)
        while self.unsent_bytes and not self.closed:
            if not writable.poll(seconds * 1000):
                return False
            if self._writer_added:
                self.loop.remove_writer(self._socket.fileno())
                self._writer_added = False
            self.flush()
        return True

    async def close_when_sent(self) -> None:
        """Close when the peer has taken everything that is queued, or has gone."""
        self.flush()
        while self.unsent_bytes and not self.closed:  # noqa: ASYNC110 - once in a worker's life
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        self.close()
