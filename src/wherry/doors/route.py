"""A door is a table of rows; this file turns rows into routes, and holds what all doors share.

A row names method, path, permission, types and handler. Authorisation, OpenAPI and docs come from
it. A row without a permission cannot be made: there is no default. Permission is decided on the
row that matched, never on the text of a URL.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.doors.errors import Renderer, renderer_of
from wherry.gateway.authenticate import Authenticator
from wherry.telemetry import get_logger, request_id

log = get_logger("doors")

Permission = Literal["open", "invoke", "download", "publish", "operate", "admin", "any"]
"""`open` needs no key; `any` needs a key with any scope; the others need that scope."""

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
HOST = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?$")


Field = tuple[bytes, bytes]
"""A header field, its name in lower case."""


class Response(msgspec.Struct):
    """What a handler answers; `body` may be a stream of finished pieces."""

    body: bytes | bytearray | memoryview | AsyncIterator[bytes | bytearray | memoryview] = b""
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = {}
    fields: list[Field] = []
    """All header fields, finished; instead of the two above."""


class Inquiry:
    """One HTTP request as a handler sees it."""

    __slots__ = (
        "_receive",
        "address",
        "body_limit",
        "caller",
        "headers",
        "id",
        "is_background",
        "method",
        "params",
        "scope",
    )

    def __init__(self, scope: Scope, receive: Receive, headers: dict[str, str]) -> None:
        self.scope = scope
        self._receive = receive
        self.headers = headers
        self.id = request_id()
        self.method: str = scope["method"]
        self.params: Mapping[str, str] = scope.get("path_params", {})
        self.caller: Principal | None = None
        """Set by the row's check; None in rows that are open."""
        client = scope.get("client")
        self.address: str = client[0] if client else ""
        self.body_limit = 0
        self.is_background = False
        """It waits until no other request would have to wait for it: a line of a batch."""

    @property
    def query(self) -> dict[str, str]:
        """The query's fields; of one that comes twice the last counts.

        Raises:
            InvalidInput: it is malformed, or has too many fields.
        """
        return _parse_query(self.scope.get("query_string", b""))

    @property
    def principal(self) -> Principal:
        """Who calls; only in rows that need a key."""
        assert self.caller is not None
        return self.caller

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            TooLarge: over the limit; it is not read to its end.
            Cancelled: the client went away.
        """
        pieces = [piece async for piece in self.bounded_stream()]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def bounded_stream(self) -> AsyncIterator[bytes]:
        """As `stream`; raises `TooLarge` when the row's limit is passed."""
        size = 0
        async for piece in self.stream():
            size += len(piece)
            if size > self.body_limit:
                raise _too_large(self.body_limit)
            yield piece

    async def stream(self) -> AsyncIterator[bytes]:
        """The body in pieces, as they come; the caller bounds them."""
        length = self.headers.get("content-length")
        if length is not None and self.body_limit and int(length) > self.body_limit:
            raise _too_large(self.body_limit)
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise errors.Cancelled("the client went away")
            piece = message.get("body", b"")
            if piece:
                yield piece
            if not message.get("more_body", False):
                return

    async def wait_for_disconnect(self) -> None:
        """Return when the client has gone; only after the body was read."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return


Handler = Callable[[Inquiry], Awaitable[Response]]


class Direct(msgspec.Struct, frozen=True):
    """A row that hands its body on as it came: all that its handler does, as data.

    Its path has a parameter `name` (the deployment), and may have `version`.
    """

    door: str
    codec: str
    forward: tuple[str, ...]
    """Header fields that the codec needs, in lower case."""
    read_words: tuple[bytes, ...] = ()
    """Bodies with one of these words the handler reads before it hands them on, if it likes."""

    @property
    def forward_raw(self) -> tuple[tuple[bytes, str], ...]:
        """`forward` with each name as bytes."""
        return _raw_names(self.forward)

    def may_read(self, body: bytes) -> bool:
        """Whether the handler may want to read this body: it must have the request then."""
        return any(word in body for word in self.read_words)


@lru_cache(maxsize=64)
def _raw_names(names: tuple[str, ...]) -> tuple[tuple[bytes, str], ...]:
    return tuple((name.encode(), name) for name in names)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a door's table."""

    method: str
    path: str
    permission: Permission
    handler: Handler
    summary: str
    render: Renderer
    request: Any = None
    """Type of the body, for OpenAPI; None = no body."""
    answer: Any = None
    """Type of the answer, for OpenAPI."""
    tag: str = ""
    body_limit: int = 1 << 20
    content_types: tuple[str, ...] = ()
    """Accepted media types of the body; empty = not checked. An absent one is accepted."""
    status: int = 200
    streams: bool = False
    in_batches: bool = True
    """Whether lines of batches may name it, if it needs the scope `invoke`."""
    stream_type: str = "text/event-stream"
    """Media type of an answer that streams."""
    codec: str = ""
    """What reads its bodies, where models answer them: which tasks the row serves."""
    direct: Direct | None = None
    """Set where the handler only hands the body on; such rows have a fast lane."""
    with_header: str = ""
    """For a path that another door owns: a header field that only this protocol's clients send, in
    lower case. Requests that have it come here, all others to the owner's row."""


class Doors:
    """All rows, as one ASGI application.

    Args:
        rows: of all doors.
        authenticator: decides who calls.
        allowed_hosts: names besides loopback that requests may carry in `Host`; `*` = any.
        limit_headers: what a key has left, for a refusal that is about that.
    """

    def __init__(
        self,
        rows: list[Row],
        authenticator: Authenticator,
        allowed_hosts: frozenset[str],
        limit_headers: Callable[[Principal], dict[str, str]],
    ) -> None:
        self.rows = rows
        self._authenticator = authenticator
        self._limit_headers = limit_headers
        self._hosts = LOOPBACK_NAMES | {host.lower() for host in allowed_hosts}
        self._any_host = "*" in allowed_hosts
        by_path: dict[str, dict[str, Row]] = {}
        guests: dict[str, dict[bytes, dict[str, Row]]] = {}
        for row in rows:
            if row.with_header:
                of_path = guests.setdefault(row.path, {})
                of_path.setdefault(row.with_header.encode(), {})[row.method] = row
            else:
                of_owner = by_path.setdefault(row.path, {})
                assert row.method not in of_owner, f"two rows serve {row.method} {row.path}"
                of_owner[row.method] = row
        self._methods_of = by_path
        self._routes = [
            Route(path, endpoint=_Endpoint(self, methods, guests.pop(path, {})))
            for path, methods in by_path.items()
        ]
        assert not guests, f"nobody owns {list(guests)}"
        self._app = Starlette(routes=self._routes)
        self._app.router.redirect_slashes = False
        self._app.router.default = self._not_found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        await self._app.router(scope, receive, send)

    def find_row(self, method: str, path: str) -> tuple[Row | None, Mapping[str, str]]:
        """The row that serves a path without escapes, and the path's parameters."""
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        for route in self._routes:
            match, found = route.matches(scope)
            if match is not Match.NONE:
                return self._methods_of[route.path].get(method), found["path_params"]
        return None, {}

    async def _not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        inquiry = Inquiry(scope, receive, {})
        error: errors.WherryError = errors.NotFound(
            f"no endpoint {scope['method']} {scope['path'][:200]!r}", hint="GET /docs lists them"
        )
        headers: dict[str, str] = {}
        try:
            headers = _read_headers(scope)
            self.check_host(headers.get("host", ""))
        except errors.WherryError as refusal:
            error = refusal
        render = renderer_of(scope["path"], headers)
        await _send_error(send, inquiry, render, error)

    async def serve(
        self, methods: Mapping[str, Row], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Check host, method and key, call the handler, send what it answers."""
        row = methods.get(scope["method"])
        any_row = row or next(iter(methods.values()))
        inquiry: Inquiry | None = None
        try:
            headers = _read_headers(scope)
            inquiry = Inquiry(scope, receive, headers)
            if row is None and scope["method"] == "HEAD" and "GET" in methods:
                row = methods["GET"]
            self.check_host(headers.get("host", ""))
            if row is None:
                await _send_error(
                    send,
                    inquiry,
                    any_row.render,
                    _method_not_allowed(scope["method"], methods),
                    405,
                    {"allow": ", ".join(sorted(methods))},
                )
                return
            if row.permission != "open":
                inquiry.caller = await self._authenticator.authenticate(
                    scope["headers"], inquiry.address
                )
            response = await self.handle(row, inquiry)
        except (errors.Cancelled, ClientDisconnect):
            return
        except errors.WherryError as error:
            inquiry = inquiry or Inquiry(scope, receive, {})
            response = self.render_error(any_row.render, error, inquiry.id, inquiry.caller)
            await _send_response(send, inquiry, response)
            return
        except Exception:
            inquiry = inquiry or Inquiry(scope, receive, {})
            log.exception("unexpected error", request_id=inquiry.id, path=scope["path"][:200])
            await _send_error(send, inquiry, any_row.render, self.explain_bug())
            return
        await _send_response(send, inquiry, response)

    async def handle(self, row: Row, inquiry: Inquiry) -> Response:
        """What a row answers to a caller that is known.

        Raises:
            WherryError: the caller may not, or the handler refuses or fails.
        """
        inquiry.body_limit = row.body_limit
        if inquiry.caller is not None:
            check_permission(inquiry.caller, row.permission)
        _check_content_type(row, inquiry.headers)
        return await row.handler(inquiry)

    def render_error(
        self, render: Renderer, error: errors.WherryError, number: str, caller: Principal | None
    ) -> Response:
        """An error as the protocol's clients read it, with what the caller's key has left."""
        extra: Mapping[str, str] = {}
        if isinstance(error, errors.QuotaExceeded) and caller is not None:
            extra = self._limit_headers(caller)
        return _render_error(render, error, number, extra)

    def explain_bug(self) -> errors.Internal:
        """What is told of an exception that nobody expected; the log has the rest."""
        return errors.Internal("an unexpected error", hint="give the operator the request id")

    def check_host(self, host: str) -> None:
        """Refuse foreign names, so that a web page cannot rebind its name to us."""
        if not HOST.match(host):
            raise errors.InvalidInput("the Host header is missing or malformed")
        if self._any_host:
            return
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name.lower() not in self._hosts:
            raise errors.NotPermitted(
                f"requests for host {name[:100]!r} are not served here",
                hint="the operator can list it in allowed_hosts (WHERRY_ALLOWED_HOSTS)",
            )


class _Endpoint:
    """One path: an ASGI application, so that Starlette adds nothing around it.

    Args:
        doors: serve a request by its row.
        methods: rows of the path's owner.
        guests: rows of others, by the header field that leads to them.
    """

    def __init__(
        self,
        doors: Doors,
        methods: Mapping[str, Row],
        guests: Mapping[bytes, Mapping[str, Row]],
    ) -> None:
        self._doors = doors
        self._methods = methods
        self._guests = guests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = self._choose(scope) if self._guests else self._methods
        await self._doors.serve(methods, scope, receive, send)

    def _choose(self, scope: Scope) -> Mapping[str, Row]:
        """The rows of who speaks; the owner's for methods that a guest does not have."""
        for name, _ in scope["headers"]:
            if name in self._guests:
                return {**self._methods, **self._guests[name]}
        return self._methods


# ------------------------------------------------------------------------------ checks


def _read_headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1")
        if key in headers and key in ("host", "content-length", "content-type"):
            raise errors.InvalidInput(f"the header {key!r} occurs twice")
        headers[key] = value.decode("latin-1")
    length = headers.get("content-length")
    if length is not None and not (length.isascii() and length.isdigit()):
        raise errors.InvalidInput("the Content-Length header is malformed")
    return headers


def check_permission(principal: Principal, permission: Permission) -> None:
    """Pass who may call a row; `NotPermitted` says which scope is missing."""
    if permission != "any" and permission != "open":
        principal.require(permission)


def _check_content_type(row: Row, headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity" and row.tag != "inference":
        raise errors.InvalidInput("compressed bodies are not accepted here", hint="send it plain")
    if not row.content_types:
        return
    given = headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if given and given not in row.content_types:
        raise errors.InvalidInput(
            f"content type {given[:100]!r} is not understood here",
            hint="send " + " or ".join(row.content_types),
        )


def _method_not_allowed(method: str, methods: Mapping[str, Row]) -> errors.WherryError:
    return errors.InvalidInput(
        f"method {method[:20]!r} is not allowed here", hint="allowed: " + ", ".join(sorted(methods))
    )


def _too_large(limit: int) -> errors.TooLarge:
    return errors.TooLarge(f"the body is larger than {limit} bytes", hint="send less at once")


def _parse_query(text: bytes) -> dict[str, str]:
    if not text:
        return {}
    from urllib.parse import parse_qsl

    try:
        return dict(parse_qsl(text.decode("ascii"), keep_blank_values=True, max_num_fields=50))
    except (ValueError, UnicodeDecodeError) as error:
        raise errors.InvalidInput("the query string is malformed") from error


# ------------------------------------------------------------------------------ answers


def all_fields(number: str, content_type: str, extra: Mapping[str, str]) -> list[Field]:
    """The fields of an answer, but for its length."""
    fields = [
        (b"content-type", header_value(content_type)),
        (b"x-request-id", number.encode("latin-1")),
        (b"x-content-type-options", b"nosniff"),
    ]
    for name, value in extra.items():
        fields.append((name.encode("latin-1"), header_value(value)))
    return fields


def header_value(text: str) -> bytes:
    """Some values come from workers, which are not trusted: none may begin another header."""
    if not text.isprintable():
        text = "".join(each if each.isprintable() else " " for each in text)
    return text.encode("latin-1", "replace")


async def _send_error(
    send: Send,
    inquiry: Inquiry,
    render: Renderer,
    error: errors.WherryError,
    status: int | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    response = _render_error(render, error, inquiry.id, extra or {})
    response.status = status or response.status
    await _send_response(send, inquiry, response)


def _render_error(
    render: Renderer, error: errors.WherryError, number: str, extra: Mapping[str, str]
) -> Response:
    status, body, headers = render(error, number)
    headers |= extra
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="wherry"'
    if status == 413:
        headers["connection"] = "close"
    fields = all_fields(number, "application/json", headers)
    fields.append((b"content-length", b"%d" % len(body)))
    return Response(body, status, fields=fields)


async def _send_response(send: Send, inquiry: Inquiry, response: Response) -> None:
    body = response.body
    fields = response.fields or all_fields(inquiry.id, response.content_type, response.headers)
    start = {"type": "http.response.start", "status": response.status, "headers": fields}
    if not isinstance(body, (bytes, bytearray, memoryview)):
        await send(start)
        try:
            async for piece in body:
                await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
        except errors.WherryError:
            return  # not completed, so that the server cuts the connection and the client sees it
        await send({"type": "http.response.body", "body": b""})
        return
    if not response.fields:
        fields.append((b"content-length", b"%d" % len(body)))
    await send(start)
    if inquiry.method == "HEAD":
        body = b""
    elif isinstance(body, memoryview):
        body = bytes(body)
    await send({"type": "http.response.body", "body": body})


encode_json = msgspec.json.Encoder().encode


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer struct as JSON."""
    return Response(encode_json(value), status, headers=headers or {})
