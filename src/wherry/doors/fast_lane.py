# pyright: standard
"""The busiest rows answered inside the HTTP protocol: no ASGI scope, no task, no coroutine.

A request takes the lane if nothing about it is unusual: a row that hands its body on as it came
(`Row.direct`), HTTP/1.1, a plain target, a length, no header field twice and none that asks for
more, a key that is known, and nothing else in flight on its connection. Every other request, and
every one that would be refused before it is admitted, goes the ordinary way through `Doors`, which
serves the same rows by the same functions. So the lane has no rules of its own.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from hashlib import sha256
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.doors.http_guard import GuardedProtocol
from wherry.doors.invoke import OWN_LINES, alike_lines, answer_lines
from wherry.doors.route import Direct, Doors, Field, Row, check_permission
from wherry.frames import Payload
from wherry.gateway.admit import Inbound
from wherry.gateway.authenticate import Authenticator, parse_bearer
from wherry.gateway.exchange import Exchange
from wherry.gateway.predict import Gateway
from wherry.gateway.track import Track
from wherry.telemetry import Counter, get_logger, request_id

log = get_logger("fast_lane")

PLAIN_TARGET = re.compile(rb"/[A-Za-z0-9._~@:/-]{1,300}")
MAX_TARGETS = 10_000
MAX_HOSTS = 1_000
MAX_HEADS = 10_000
MAX_HEADER_CHARACTERS = 1024
"""Of the fields that a codec needs, since they are remembered."""
MAX_READ_BYTES = 16 << 10
"""Longest body that is looked through for words of `Direct.read_words`; longer ones take no lane."""
END_OF_HEAD = b"\r\n\r\n"
JOINED_BYTES = 16 << 10
"""Larger bodies of answers are written beside their head rather than copied behind it; a request's
whose pieces are larger stays in pieces."""

ANSWER = OWN_LINES + b"\r\n%b"
"""Of one whose body is not large: its start, its id, its length, its body."""

UNUSUAL = frozenset(
    {
        b"content-encoding",
        b"expect",
        b"prefer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-timeout-seconds",
        b"x-wherry-sticky",
    }
)
"""Fields that ask for more than an answer."""


class Passage(msgspec.Struct, frozen=True):
    """What a target means."""

    row: Row
    direct: Direct
    deployment: str
    version: str


class Known:
    """What heads mean that a full parse has let into the lane, but for the length of their body."""

    __slots__ = ("headers", "passage", "secret", "track", "waiting")

    def __init__(self, passage: Passage, secret: bytes, headers: dict[str, str]) -> None:
        self.passage = passage
        self.secret = secret
        """Digest of the key, by which the authenticator is asked each time."""
        self.headers = headers
        """Those that the codec needs."""
        self.track: Track | None = None
        """Where the last request with such a head went; the next one may, while it is current."""
        self.waiting: list[tuple[LaneCall, bytes]] = []
        """Requests of this tick of the loop, which are admitted together at its end."""


Head = tuple[Known, int]
"""What a head means, and the length of the body that it announces."""


class FastLane:
    """What the connections of one gateway share.

    Args:
        doors: the rows, and the checks that every request passes.
        gateway: the data plane.
        authenticator: knows keys.
        requests: counts those that took the lane.
    """

    def __init__(
        self, doors: Doors, gateway: Gateway, authenticator: Authenticator, requests: Counter
    ) -> None:
        self.doors = doors
        self.gateway = gateway
        self.authenticator = authenticator
        self.requests = requests
        self._passages: dict[bytes, Passage | None] = {}
        self._hosts: set[bytes] = set()
        self._known: dict[tuple[bytes, bytes, tuple[tuple[str, str], ...]], Known] = {}
        self._read: dict[bytes, Head] = {}
        self._waiting: list[Known] = []
        self._salt = secrets.token_bytes(32)
        self._date: list[Field] | None = None
        self._start_date: list[Field] | None = None
        self._alike = self._start = b""
        self._heads: dict[int, bytes] = {}

    def find(self, target: bytes) -> Passage | None:
        """The passage of a POST to this target, if it has one."""
        try:
            return self._passages[target]
        except KeyError:
            if len(self._passages) >= MAX_TARGETS:
                self._passages.clear()
            passage = self._passages[target] = self._resolve(target)
            return passage

    def _resolve(self, target: bytes) -> Passage | None:
        if not PLAIN_TARGET.fullmatch(target):
            return None
        row, params = self.doors.find_row("POST", target.decode())
        if row is None or row.direct is None:
            return None
        return Passage(row, row.direct, params["name"], params.get("version", ""))

    def recall(self, head: bytes) -> Head | None:
        """What a head means that was let in before; heads hold keys, so only digests are kept."""
        return self._read.get(sha256(self._salt + head).digest())

    def remember(self, head: bytes, meaning: Head) -> None:
        """A full parse let this head into the lane."""
        if len(self._read) >= MAX_HEADS:
            self._read.clear()
        self._read[sha256(self._salt + head).digest()] = meaning

    def know(
        self, target: bytes, passage: Passage, secret: bytes, headers: dict[str, str]
    ) -> Known:
        """What requests of a key to a target have in common, whatever the length of their bodies."""
        key = (target, secret, tuple(headers.items()))
        known = self._known.get(key)
        if known is None or known.passage is not passage:
            if len(self._known) >= MAX_HEADS:
                self._known.clear()
            known = self._known[key] = Known(passage, secret, headers)
        return known

    # ------------------------------------------------------------------ requests of one tick

    def submit(self, call: LaneCall, body: Payload) -> None:
        """Let the gateway have a request: now, or with the others that come in this tick."""
        known = call.known
        track = known.track
        if not isinstance(body, bytes) or track is None:
            call.submit(body)
            return
        if not self._waiting:
            if not track.load.running:
                call.submit(body)  # none runs, so probably none comes: it need not wait for them
                return
            asyncio.get_running_loop().call_soon(self._submit_waiting)
        if not known.waiting:
            self._waiting.append(known)
        known.waiting.append((call, body))

    def _submit_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        taken: list[tuple[Known, list[tuple[LaneCall, bytes]]]] = []
        for known in waiting:  # first: whatever fails below, the next tick finds none of these
            taken.append((known, known.waiting))
            known.waiting = []
        for known, asked in taken:
            asked = [(call, body) for call, body in asked if not call.disconnected]
            if len(asked) < 2 or not self._submit_together(known, asked):
                for call, body in asked:
                    call.submit(body)

    def _submit_together(self, known: Known, asked: list[tuple[LaneCall, bytes]]) -> bool:
        """Admit requests at once; False, and none is, if they must be looked at one by one."""
        first, _ = asked[0]
        try:
            track = self.find_track(known, first.caller, request_id())
        except Exception:  # noqa: BLE001 - each will meet it, and tell it, by itself
            return False
        if not track.is_lasting:
            return False
        for call, _ in asked:
            call.id = request_id()
        try:
            exchanges = self.gateway.follow_many(
                track, [(call.id, body, call.on_end) for call, body in asked]
            )
        except Exception:
            log.exception("unexpected error", request_id=first.id)
            for call, _ in asked:  # some may be on their way: their answers will find nobody
                call.refuse(self.doors.explain_bug())
            return True
        if exchanges is None:
            return False
        self.requests.value += len(asked)
        for (call, _), exchange in zip(asked, exchanges, strict=True):
            call.exchange = exchange
        return True

    # ------------------------------------------------------------------ what a request is

    def find_track(self, known: Known, caller: Principal, number: str) -> Track:
        """Where a request goes.

        Raises:
            WherryError: it cannot be served.
        """
        track = known.track
        if track is not None and self.gateway.is_current(track, caller):
            return track
        passage, known.track = known.passage, None
        inbound = Inbound(
            door=passage.direct.door,
            request_id=number,
            principal=caller,
            deployment=passage.deployment,
            version=passage.version,
            codec=passage.direct.codec,
            body=b"",
            headers=known.headers,
            is_direct=True,
        )
        track = self.gateway.find_track(inbound)
        known.track = track if track.is_lasting else None
        return track

    def knows_host(self, host: bytes | None) -> bool:
        """Whether a Host field is one that is served here."""
        if host in self._hosts:
            return True
        try:
            self.doors.check_host((host or b"").decode("latin-1"))
        except errors.WherryError:
            return False
        if host is not None and len(self._hosts) < MAX_HOSTS:
            self._hosts.add(host)
        return True

    def find_secret(self, fields: dict[bytes, bytes]) -> bytes | None:
        """Digest of the one key that a request brings."""
        bearer, secret = fields.get(b"authorization"), fields.get(b"x-api-key")
        if (bearer is None) == (secret is None):
            return None
        try:
            secret = parse_bearer(bearer) if bearer is not None else secret
        except errors.WherryError:
            return None
        return self.authenticator.digest_of(secret or b"")

    def find_caller(
        self, passage: Passage, secret: bytes, track: Track | None = None
    ) -> Principal | None:
        """Who calls, if that is known at once and may call this row.

        Args:
            passage: what the target means.
            secret: digest of the key.
            track: found for the last request like this one: it need not be asked for again what its
                caller may do.
        """
        try:
            caller = self.authenticator.find_digest(secret)
            if caller is not None and (track is None or track.principal is not caller):
                check_permission(caller, passage.row.permission)
                if self.gateway.is_pipeline(caller, passage.deployment):
                    return None
        except errors.WherryError:
            return None
        return caller

    def start_of(self, exchange: Exchange, date: list[Field]) -> bytes:
        """What an answer begins with: the status line, and the fields that those of its batch share."""
        alike = alike_lines(exchange)
        if alike is not self._alike or date is not self._start_date:
            self._start = self.head(200, date) + alike
            self._alike, self._start_date = alike, date
        return self._start

    def head(self, status: int, date: list[Field]) -> bytes:
        """The status line and the fields that uvicorn renews every second."""
        if date is not self._date:
            self._date = date
            self._heads.clear()
        head = self._heads.get(status)
        if head is None:
            line = b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())
            head = self._heads[status] = line + b"".join(b"%b: %b\r\n" % each for each in date)
        return head


class LaneCall:
    """One request in the lane; its protocol holds it as the cycle of uvicorn that it stands for."""

    pieces: list[bytes]
    id = ""
    exchange: Exchange | None = None
    keep_alive = True
    more_body = True
    disconnected = False
    response_started = False
    response_complete = False

    def __init__(self, protocol: FastLaneProtocol, known: Known, caller: Principal) -> None:
        self.protocol = protocol
        self.known = known
        self.caller = caller

    # ------------------------------------------------------------------ as uvicorn sees it

    @property
    def message_event(self) -> LaneCall:
        """Uvicorn sets its cycle's event when something has happened to the connection."""
        return self

    def set(self) -> None:
        """Something has happened: the client may have gone."""
        if self.disconnected and self.exchange is not None:
            self.protocol.lane.gateway.cancel(self.exchange)

    # ------------------------------------------------------------------ the request

    def submit(self, body: Payload) -> None:
        """The body is whole: let the gateway have it."""
        lane = self.protocol.lane
        number = self.id = request_id()
        lane.requests.value += 1
        try:
            track = lane.find_track(self.known, self.caller, number)
            self.exchange = lane.gateway.follow(track, number, body, self.on_end)
        except errors.WherryError as refusal:
            self.refuse(refusal)
        except Exception:
            log.exception("unexpected error", request_id=self.id)
            self.refuse(lane.doors.explain_bug())

    def on_end(self, error: errors.WherryError | None) -> None:
        """It has its answer, or its error."""
        if self.disconnected or self.response_complete:
            return
        exchange = self.exchange
        if error is not None or exchange is None:
            self.refuse(error or self.protocol.lane.doors.explain_bug())
            return
        body = exchange.body
        if not self.keep_alive or len(body) > JOINED_BYTES:
            self._write(200, answer_lines(exchange), body, self.keep_alive)
            return
        protocol = self.protocol
        start = protocol.lane.start_of(exchange, protocol.server_state.default_headers)
        self.response_started = self.response_complete = True
        self.exchange = None  # see `_write`
        protocol.transport.write(ANSWER % (start, self.id.encode(), len(body), body))
        protocol.end_call()

    def refuse(self, error: errors.WherryError) -> None:
        """Answer with an error."""
        response = self.protocol.lane.doors.render_error(
            self.known.passage.row.render, error, self.id, self.caller
        )
        lines = b"".join(b"%b: %b\r\n" % each for each in response.fields)
        closes = (b"connection", b"close") in response.fields
        self._write(response.status, lines, response.body, self.keep_alive and not closes)

    def _write(self, status: int, lines: bytes, body: Any, keeps: bool) -> None:
        protocol = self.protocol
        head = protocol.lane.head(status, protocol.server_state.default_headers)
        end = b"\r\n" if keeps else b"connection: close\r\n\r\n"
        self.response_started = self.response_complete = True
        if len(body) <= JOINED_BYTES:
            protocol.transport.write(b"".join((head, lines, end, body)))
        else:
            protocol.transport.writelines([b"".join((head, lines, end)), body])
        self.exchange = None  # it knows us, too: a circle would wait for the garbage collector
        if not keeps:
            protocol.transport.close()
        protocol.end_call()


class FastLaneProtocol(GuardedProtocol):
    """One connection, with the lane; `lane` is set on a subclass for each gateway."""

    lane: FastLane
    cycle: Any
    """A `LaneCall`, or uvicorn's own."""
    _head = b"\0"
    """That of the last request that took the lane; no request begins like this one."""
    _known: Known | None = None
    """What it means."""
    _length = 0
    """Of the body that it announces."""

    def data_received(self, data: bytes) -> None:
        """Take a whole request whose head is known; parse everything else."""
        if self._is_receiving or self._is_closing or self._is_refused:
            super().data_received(data)
            return
        known = self._known if data.startswith(self._head) else self._recall(data)
        if known is not None and self._take_known(known, data):
            return
        messages = self._messages
        super().data_received(data)
        # what was parsed is one whole request, and it took the lane: its like need no parser
        if self._messages == messages + 1 and not self._is_receiving:
            self._remember(data)

    def _recall(self, data: bytes) -> Known | None:
        """Take the head for this connection's usual one, if it was let into the lane before."""
        end = data.find(END_OF_HEAD) + len(END_OF_HEAD)
        found = self.lane.recall(data[:end])
        if found is None:
            return None
        self._known, self._length = found
        self._head = data[:end]
        return self._known

    def _take_known(self, known: Known, data: bytes) -> bool:
        """The parser is between two requests: one that it need not see leaves it there."""
        size = len(self._head)
        if len(data) != size + self._length or self.flow.write_paused:
            return False
        cycle = self.cycle
        if cycle is None or not cycle.response_complete:
            return False
        if known.passage.direct.read_words and known.passage.direct.may_read(data[size:]):
            return False
        lane = self.lane
        if known.waiting:  # asked in this very tick
            caller = known.waiting[0][0].caller
        else:
            caller = lane.find_caller(known.passage, known.secret, known.track)
        if caller is None:
            return False
        self._messages += 1
        self._received_bytes += len(data)
        self._unset_keepalive_if_required()
        call = LaneCall(self, known, caller)
        self.cycle = self.running = call
        call.more_body = False
        lane.submit(call, data[size:])
        return True

    def _remember(self, data: bytes) -> None:
        cycle = self.cycle
        if cycle.__class__ is not LaneCall or not self._keeps_alive:
            return
        end = data.find(END_OF_HEAD) + len(END_OF_HEAD)
        if len(data) - end == self._body_bytes:
            self._known, self._length, self._head = cycle.known, self._body_bytes, data[:end]
            self.lane.remember(self._head, (cycle.known, self._body_bytes))

    # What most requests do not need is left out of the parser's callbacks; `_take_slowly` makes up
    # for it.

    def on_message_begin(self) -> None:
        """A request begins."""
        self.begin_message()
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; after the body it is a trailer, which nobody reads."""
        if not self._is_in_body:
            self.headers.append((name.lower(), value.strip(b" \t")))

    def take(self) -> None:
        """Answer the request in the lane if nothing about it is unusual."""
        cycle = self.cycle
        if (cycle is None or cycle.response_complete) and not self.flow.write_paused:
            call = self._admit()
            if call is not None:
                self.cycle = call
                return
        self._take_slowly()

    def _admit(self) -> LaneCall | None:
        lane, parser = self.lane, self.parser
        passage = lane.find(self.url)
        if passage is None or parser.get_method() != b"POST":
            return None
        fields = dict(self.headers)
        if (
            len(fields) != len(self.headers)
            or not UNUSUAL.isdisjoint(fields)
            or not lane.knows_host(fields.get(b"host"))
            or parser.get_http_version() != "1.1"
        ):
            return None
        length = fields.get(b"content-length")
        if length is None or not length.isdigit() or int(length) > passage.row.body_limit:
            return None
        if passage.direct.read_words and int(length) > MAX_READ_BYTES:
            return None
        secret = lane.find_secret(fields)
        if secret is None:
            return None
        headers = {
            name: fields[raw].decode("latin-1")
            for raw, name in passage.direct.forward_raw
            if raw in fields
        }
        if sum(map(len, headers.values())) > MAX_HEADER_CHARACTERS:
            return None
        caller = lane.find_caller(passage, secret)
        if caller is None:
            return None
        known = lane.know(self.url, passage, secret, headers)
        call = LaneCall(self, known, caller)
        call.pieces = []
        call.keep_alive = parser.should_keep_alive()
        return call

    def _take_slowly(self) -> None:
        """Let uvicorn have the request, as if nothing had been left out so far."""
        url, fields = self.url, self.headers
        HttpToolsProtocol.on_message_begin(self)
        self.url = url
        self.headers.extend(fields)  # the list that the scope holds
        self.expect_100_continue = self.parser.get_http_version() == "1.1" and any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in fields
        )
        super().take()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        cycle = self.cycle
        if cycle.__class__ is not LaneCall:
            super().on_body(body)
            return
        self._body_bytes += len(body)
        self._overhead_bytes -= len(body)
        cycle.pieces.append(body)

    def on_message_complete(self) -> None:
        """A request has come in."""
        cycle = self.cycle
        if cycle.__class__ is not LaneCall:
            super().on_message_complete()
            return
        pieces, cycle.pieces = cycle.pieces, []
        direct = cycle.known.passage.direct
        if direct.read_words and direct.may_read(b"".join(pieces)):
            self._leave_lane(pieces)
            return
        self._is_receiving = False
        cycle.keep_alive = self._keeps_alive
        cycle.more_body = False
        if len(pieces) == 1:
            self.lane.submit(cycle, pieces[0])
        elif pieces and self._body_bytes >= len(pieces) * JOINED_BYTES:
            self.lane.submit(cycle, tuple(pieces))
        else:
            self.lane.submit(cycle, b"".join(pieces))

    def _leave_lane(self, pieces: list[bytes]) -> None:
        """The row's handler may want to read the body: let uvicorn have the request after all."""
        self.cycle = None  # nothing was in flight when it took the lane
        self._take_slowly()
        self.running = self.cycle
        for piece in pieces:
            HttpToolsProtocol.on_body(self, piece)
        super().on_message_complete()

    def end_call(self) -> None:
        """A request of the lane is answered: what waits behind it has its turn."""
        if self.pipeline or self._refusal is not None:
            self.on_response_complete()
            return
        # as uvicorn does, but for its timer: the guard looks after idle connections
        self.running = None
        self.server_state.total_requests += 1
        if self.flow.read_paused and not self.is_closing():
            self.flow.resume_reading()
