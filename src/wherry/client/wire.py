"""What a call does, as steps without any I/O: written once, carried out by two transports.

A call is a generator. It yields steps (`Exchange`, `Listen`, `Read` …), receives what each step
gave, and returns its answer. `transport.py` carries the steps out, blocking or in an event loop.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from wherry import errors
from wherry.client.failures import Reply, read_error
from wherry.client.sse import EventParser, ServerEvent

T = TypeVar("T")

PLATFORM = "/platform/v1"
LONGEST_RETRY_SECONDS = 10.0
"""A refusal that asks to wait longer is told to the caller at once."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request; `path` is quoted already."""

    method: str
    path: str
    query: Mapping[str, str] = {}
    content: bytes = b""
    content_type: str = ""
    headers: Mapping[str, str] = {}


class LinkError(Exception):
    """The connection failed. `may_have_run` is false when the request surely was not sent."""

    def __init__(self, url: str, detail: str, *, may_have_run: bool, late: bool = False) -> None:
        super().__init__(detail)
        self.url = url
        self.detail = detail
        self.may_have_run = may_have_run
        self.late = late

    def explain(self, *, repeatable: bool) -> errors.WherryError:
        """The error a caller reads."""
        if self.late:
            return errors.TimedOut(
                f"no answer from {self.url!r} in time: {self.detail}",
                hint="raise `timeout`, or look at `wherry status`",
            )
        if not self.may_have_run:
            return errors.Unavailable(
                f"no server answers at {self.url!r}: {self.detail}",
                hint="start one with `wherry serve`, or set WHERRY_URL",
            )
        message = f"the connection to {self.url!r} broke: {self.detail}"
        if repeatable:
            return errors.Unavailable(message, hint="look at `wherry status`")
        return errors.WorkerLost(message, hint="the request may have run: check, then repeat it")


# ------------------------------------------------------------------------------ steps


class Exchange(msgspec.Struct, frozen=True):
    """Send a request; gives a `Reply`."""

    request: Request


class Listen(msgspec.Struct, frozen=True):
    """Open a stream; gives a `Reply` whose content is empty unless it is an error."""

    request: Request


class Read(msgspec.Struct, frozen=True):
    """The next bytes of the open stream, or None at its end."""


class Pause(msgspec.Struct, frozen=True):
    """Wait."""

    seconds: float


class Retry(msgspec.Struct, frozen=True):
    """Ask whether an attempt (1 = the first repetition) is allowed; if so, wait first."""

    attempt: int
    seconds: float


class Work(msgspec.Struct, frozen=True):
    """Run a function that blocks (disk, packing); gives what it returns."""

    function: Callable[[], Any]


class Emit(msgspec.Struct, Generic[T], frozen=True):
    """Hand one item of a stream to the caller."""

    item: T


Step = Exchange | Listen | Read | Pause | Retry | Work
Call = Generator[Step, Any, T]
"""A call that ends with one answer."""
Stream = Generator[Step | Emit[T], Any, None]
"""A call that gives items until it ends."""


class Finished(msgspec.Struct, Generic[T], frozen=True):
    """A call has returned."""

    answer: T


def advance(call: Generator[Any, Any, T], outcome: Any) -> Any:
    """The next step after `outcome` (a value, or a `LinkError` to throw), or `Finished`."""
    try:
        return call.throw(outcome) if isinstance(outcome, LinkError) else call.send(outcome)
    except StopIteration as stop:
        return Finished(stop.value)


def consume(stream: Stream[T], take: Callable[[T], object]) -> Call[None]:
    """Carry out a stream inside a call, handing each item to `take`."""
    outcome: Any = None
    while True:
        step = advance(stream, outcome)
        outcome = None
        if isinstance(step, Finished):
            return
        if isinstance(step, Emit):
            take(step.item)
            continue
        try:
            outcome = yield step
        except LinkError as error:
            outcome = error


# ------------------------------------------------------------------------------ exchanges


def exchange(request: Request) -> Call[Reply]:
    """Send a request, again where that is safe; raises the server's error.

    Safe are a GET whose connection failed, and whatever the server refused without running it.
    """
    repeatable = request.method in ("GET", "HEAD")
    attempt = 0
    while True:
        attempt += 1
        delay = 0.1 * 2**attempt * random.uniform(0.5, 1.0)  # noqa: S311  # spreads retries
        try:
            reply: Reply = yield Exchange(request)
        except LinkError as error:
            broke = error.may_have_run and not error.late
            if not (repeatable and broke and (yield Retry(attempt, delay))):
                raise error.explain(repeatable=repeatable) from error
            continue
        if reply.status < 300:
            return reply
        failure = read_error(reply)
        if not _was_refused(reply, failure, repeatable=repeatable):
            raise failure
        if isinstance(failure, errors.TryLater):
            delay = max(delay, failure.retry_after_seconds)
        if delay > LONGEST_RETRY_SECONDS or not (yield Retry(attempt, delay)):
            raise failure


def listen(request: Request) -> Call[Reply]:
    """Open a stream; raises the server's error, or that no server answers."""
    try:
        reply: Reply = yield Listen(request)
    except LinkError as error:
        raise error.explain(repeatable=request.method == "GET") from error
    if reply.status >= 300:
        raise read_error(reply)
    return reply


def _was_refused(reply: Reply, failure: errors.WherryError, *, repeatable: bool) -> bool:
    """Whether the server says to try later and surely did not run the request.

    A proxy's bare 503 may hide a request that ran, so a POST also needs the header that goes
    with a refusal.
    """
    if reply.status not in (429, 503) or not isinstance(failure, errors.TryLater):
        return False
    return repeatable or "retry-after" in reply.headers


def ask(request: Request, kind: type[T]) -> Call[T]:
    """Send a request; gives its answer as `kind`."""
    reply = yield from exchange(request)
    return decode(reply.content, kind)


def ask_for_all(request: Request, kind: type[T]) -> Call[list[T]]:
    """Follow the pages of a list to its end."""
    items: list[T] = []
    cursors: set[str] = set()
    while True:
        page = yield from ask(request, Items[kind])
        items += page.items
        if page.next is None or page.next in cursors:
            return items
        cursors.add(page.next)
        request = msgspec.structs.replace(request, query={**request.query, "cursor": page.next})


class Items(msgspec.Struct, Generic[T]):
    """`schema.Page` with typed items."""

    items: list[T]
    next: str | None = None


class EventReader:
    """Pulls the events of the stream that `listen` opened."""

    def __init__(self) -> None:
        self._parser = EventParser()
        self._ready: deque[ServerEvent] = deque()

    @property
    def last_id(self) -> str:
        """Id to continue after, for `Last-Event-ID`."""
        return self._parser.last_id

    def next(self) -> Call[ServerEvent | None]:
        """The next event, or None at the end; raises `LinkError` when the stream breaks."""
        while not self._ready:
            chunk: bytes | None = yield Read()
            if chunk is None:
                return None
            self._ready.extend(self._parser.feed(chunk))
        return self._ready.popleft()


# ------------------------------------------------------------------------------ requests


def platform(
    method: str,
    *segments: str,
    verb: str = "",
    body: msgspec.Struct | None = None,
    query: Mapping[str, Any] | None = None,
) -> Request:
    """A request of the platform API: `platform("POST", "deployments", name, verb="scale")`."""
    path = "/".join([PLATFORM, *map(quote_segment, segments)]) + (f":{verb}" if verb else "")
    return Request(
        method=method,
        path=path,
        query=_as_query(query or {}),
        content=b"" if body is None else msgspec.json.encode(body),
        content_type="" if body is None else "application/json",
    )


def post(path: str, content: bytes) -> Request:
    """A request with a body in JSON, to any door."""
    return Request(method="POST", path=path, content=content, content_type="application/json")


def quote_segment(name: str) -> str:
    """A name or relative path as part of a URL; `team/name` keeps its slash."""
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise errors.InvalidInput(f"{name!r} is not a name")
    return quote(name, safe="/@:")


def decode(content: bytes, kind: type[T]) -> T:
    """An answer's body as `kind`."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.Internal(
            f"the server's answer is not what this client expects: {error}",
            hint="is it a Wherry server, and of this version? see `wherry version`",
        ) from error


def _as_query(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as text; None and False are left out."""
    return {
        name: "true" if value is True else str(value)
        for name, value in values.items()
        if value is not None and value is not False
    }
