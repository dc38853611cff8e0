# pyright: standard
"""The busiest rows answered inside the HTTP protocol: no ASGI scope, no task, no coroutine.

A request takes the lane if nothing about it is unusual: a row that hands its body on as it came
(`Row.direct`), HTTP/1.1, a plain target, a length, no header field twice and none that asks for
more, a key that is known, and nothing else in flight on its connection. Every other request, and
every one that would be refused before it is admitted, goes the ordinary way through `Doors`, which
serves the same rows by the same functions. So the lane has no rules of its own.
"""

from __future__ import annotations

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
from wherry.doors.invoke import answer_lines
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
END_OF_HEAD = b"\r\n\r\n"
JOINED_BYTES = 16 << 10
"""Larger bodies of answers are written beside their head rather than copied behind it; a request's
whose pieces are larger stays in pieces."""

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
    """A head that a full parse has let into the lane."""

    __slots__ = ("headers", "length", "passage", "secret", "track")

    def __init__(
        self, passage: Passage, secret: bytes, headers: dict[str, str], length: int
    ) -> None:
        self.passage = passage
        self.secret = secret
        """Digest of the key, by which the authenticator is asked each time."""
        self.headers = headers
        """Those that the codec needs."""
        self.length = length
        """Of the body."""
        self.track: Track | None = None
        """Where the last request with this head went; the next one may, while it is current."""


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
        self._known: dict[bytes, Known] = {}
        self._salt = secrets.token_bytes(32)
        self._date: list[Field] | None = None
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

    def recall(self, head: bytes) -> Known | None:
        """What a head means that was let in before; heads hold keys, so only digests are kept."""
        return self._known.get(sha256(self._salt + head).digest())

    def remember(self, head: bytes, known: Known) -> None:
        """A full parse let this head into the lane."""
        if len(self._known) >= MAX_HEADS:
            self._known.clear()
        self._known[sha256(self._salt + head).digest()] = known

    def find_track(self, known: Known, caller: Principal, number: str) -> Track:
        """Where a request goes.

        Raises:
            WherryError: it cannot be served.
        """
        track = known.track
        if track is not None and self.gateway.is_current(track, caller):
            return track
        passage = known.passage
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

    def find_caller(self, known: Known) -> Principal | None:
        """Who calls, if that is known at once and may call this row."""
        try:
            caller = self.authenticator.find_digest(known.secret)
            track = known.track
            if caller is not None and (track is None or track.principal is not caller):
                check_permission(caller, known.passage.row.permission)
        except errors.WherryError:
            return None
        return caller

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
        self.more_body = False
        lane = self.protocol.lane
        number = self.id = request_id()
        lane.requests.value += 1
        try:
            track = lane.find_track(self.known, self.caller, number)
            self.exchange = lane.gateway.follow(track, number, body, self._on_end)
        except errors.WherryError as refusal:
            self._refuse(refusal)
        except Exception:
            log.exception("unexpected error", request_id=self.id)
            self._refuse(lane.doors.explain_bug())

    def _on_end(self, error: errors.WherryError | None) -> None:
        if self.disconnected or self.response_complete:
            return
        exchange = self.exchange
        if error is not None or exchange is None:
            self._refuse(error or self.protocol.lane.doors.explain_bug())
            return
        self._write(200, answer_lines(exchange), exchange.body, self.keep_alive)

    def _refuse(self, error: errors.WherryError) -> None:
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
        known = self.lane.recall(data[:end])
        if known is not None:
            self._known, self._head = known, data[:end]
        return known

    def _take_known(self, known: Known, data: bytes) -> bool:
        """The parser is between two requests: one that it need not see leaves it there."""
        size = len(self._head)
        if len(data) != size + known.length or self.flow.write_paused:
            return False
        cycle = self.cycle
        if cycle is None or not cycle.response_complete:
            return False
        caller = self.lane.find_caller(known)
        if caller is None:
            return False
        self._messages += 1
        self._received_bytes += len(data)
        self._unset_keepalive_if_required()
        call = LaneCall(self, known, caller)
        self.cycle = self.running = call
        call.submit(data[size:])
        return True

    def _remember(self, data: bytes) -> None:
        cycle = self.cycle
        if cycle.__class__ is not LaneCall or not self._keeps_alive:
            return
        end = data.find(END_OF_HEAD) + len(END_OF_HEAD)
        if len(data) - end == self._body_bytes:
            self._known, self._head = cycle.known, data[:end]
            self.lane.remember(self._head, cycle.known)

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
        secret = lane.find_secret(fields)
        if secret is None:
            return None
        headers = {
            name: fields[raw].decode("latin-1")
            for raw, name in passage.direct.forward_raw
            if raw in fields
        }
        known = Known(passage, secret, headers, int(length))
        caller = lane.find_caller(known)
        if caller is None:
            return None
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
        self._is_receiving = False
        cycle.keep_alive = self._keeps_alive
        pieces, cycle.pieces = cycle.pieces, []
        if len(pieces) == 1:
            cycle.submit(pieces[0])
        elif pieces and self._body_bytes >= len(pieces) * JOINED_BYTES:
            cycle.submit(tuple(pieces))
        else:
            cycle.submit(b"".join(pieces))

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
