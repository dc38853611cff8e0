"""What `wherry.doors.route` is for HTTP, for gRPC: a door's methods in a table, and their server.

A method names its permission; there is no default. Every method is served as a stream, which looks
the same on the wire: so the caller is known before a byte of the message is read, and gRPC's flow
control holds back the message of a stranger. Messages pass as bytes; nothing here knows protobuf.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
import msgspec

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.doors.errors import grpc_status_of, retry_headers
from wherry.doors.route import Permission, check_permission
from wherry.gateway.authenticate import Authenticator
from wherry.settings import Settings
from wherry.telemetry import get_logger, request_id

log = get_logger("grpc")

MESSAGE_SLACK_BYTES = 64 << 10
"""What a message may be larger than a body: names and shapes beside the tensors."""
MAX_METADATA_BYTES = 16 << 10
MAX_STREAMS = 1024
"""Calls at once on one connection."""
MIN_PING_SECONDS = 10
"""Clients that ping more often without a call are cut off."""
SLOWEST_BYTES_PER_SECOND = 128 << 10
"""A large message may take longer than `client_stall_seconds`, but not for ever."""
MAX_DETAILS = 1000
"""Characters of an error's text: clients take a few KiB of metadata, and some count nine bytes each."""

Trailers = list[tuple[str, str]]


class GrpcCall:
    """One call as a handler sees it."""

    __slots__ = ("_context", "_server", "caller", "id", "message", "metadata", "method", "trailers")

    def __init__(self, server: GrpcServer, method: Method, context: Any) -> None:
        self._server = server
        self._context = context
        self.method = method
        self.id = request_id()
        self.metadata: dict[str, str] = {}
        """Names in lower case; without binary values."""
        self.caller: Principal | None = None
        """Set by the table's check; None in methods that are open."""
        self.message = b""
        """The request of a unary method."""
        self.trailers: Trailers = []
        """Metadata that follows the answer."""

    @property
    def principal(self) -> Principal:
        """Who calls; only in methods that need a key."""
        assert self.caller is not None
        return self.caller

    @property
    def seconds_left(self) -> float | None:
        """Until the client's deadline; None if it has none."""
        return self._context.time_remaining()

    async def read(self) -> bytes | None:
        """The next message; None after the last.

        Raises:
            NotAuthenticated: the key was revoked meanwhile.
        """
        found = await self._context.read()
        if not isinstance(found, bytes):  # grpc.aio.EOF
            return None
        self._server.check_key(self.principal)
        return found

    async def write(self, message: bytes) -> None:
        """Send a message.

        Raises:
            TimedOut: the client does not read.
        """
        try:
            async with asyncio.timeout(self._server.patience(len(message))):
                await self._context.write(message)
        except TimeoutError as error:
            raise errors.TimedOut("the client does not read its answer") from error


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a service's table."""

    path: str
    """`/package.Service/Method`."""
    permission: Permission
    handler: Callable[[GrpcCall], Awaitable[bytes | None]]
    """Gives the answer; None if it has written what there is."""
    message_bytes: int = 0
    """Most bytes of the request; 0 = it holds nothing, and is not read."""
    reads_many: bool = False
    """Whether the handler reads the client's messages itself."""


class GrpcServer:
    """The methods of all doors on a port.

    Args:
        methods: of all doors.
        authenticator: decides who calls.
        settings: host, port, TLS and limits, as for HTTP.
        limit_headers: what a key has left, for a refusal that is about that.
        end_streams: lets streams end after what they have read.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        authenticator: Authenticator,
        settings: Settings,
        limit_headers: Callable[[Principal], dict[str, str]],
        end_streams: Callable[[], None],
    ) -> None:
        self._authenticator = authenticator
        self._settings = settings
        self._limit_headers = limit_headers
        self._end_streams = end_streams
        self._server = grpc.aio.server(
            handlers=[_Table(self, {method.path: method for method in methods})],
            options=_options(settings),
            maximum_concurrent_rpcs=settings.max_connections,
        )

    # ------------------------------------------------------------------ start and end

    async def start(self) -> None:
        """Listen, beside the other gateways of this server."""
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        if settings.tls_cert:
            self._server.add_secure_port(address, read_credentials(settings))
        else:
            self._server.add_insecure_port(address)
        await self._server.start()

    async def stop(self, grace_seconds: float) -> None:
        """Take no more calls, and let those in flight end; streams end after what they have read."""
        self._end_streams()
        await self._server.stop(grace_seconds)

    # ------------------------------------------------------------------ a call

    async def serve(self, method: Method, context: Any) -> None:
        """Check the key, read the request, call the handler, send what it answers."""
        call = GrpcCall(self, method, context)
        try:
            await self._admit(call, context)
            answer = await method.handler(call)
            context.set_trailing_metadata(call.trailers)
            if answer is not None:
                await call.write(answer)
        except errors.WherryError as error:
            await self._refuse(call, context, error)
        except grpc.aio.BaseError:
            return  # the client is gone
        except Exception:
            if context.done():
                return
            log.exception("unexpected error", request_id=call.id, method=method.path)
            error = errors.Internal("an unexpected error", hint="give the operator the request id")
            await self._refuse(call, context, error)

    async def _admit(self, call: GrpcCall, context: Any) -> None:
        method = call.method
        metadata: Any = context.invocation_metadata() or ()
        call.metadata = {name: value for name, value in metadata if isinstance(value, str)}
        if method.permission != "open":
            headers = [
                (name.encode(), value.encode() if isinstance(value, str) else value)
                for name, value in metadata
            ]
            address = address_of(context.peer())
            call.caller = await self._authenticator.authenticate(headers, address)
            check_permission(call.caller, method.permission)
        await context.send_initial_metadata((("x-request-id", call.id),))
        if method.message_bytes and not method.reads_many:
            call.message = await self._read(method, context)

    async def _read(self, method: Method, context: Any) -> bytes:
        try:
            async with asyncio.timeout(self.patience(method.message_bytes)):
                message = await context.read()
        except TimeoutError as error:
            raise errors.TimedOut("the request did not come to its end in time") from error
        if not isinstance(message, bytes):  # grpc.aio.EOF
            raise errors.InvalidInput("the call has no message")
        if len(message) > method.message_bytes:
            raise errors.TooLarge(f"the message is larger than {method.message_bytes} bytes")
        return message

    async def _refuse(self, call: GrpcCall, context: Any, error: errors.WherryError) -> None:
        fields: Mapping[str, str] = retry_headers(error)
        if isinstance(error, errors.QuotaExceeded) and call.caller is not None:
            fields = {**fields, **self._limit_headers(call.caller)}
        trailers = (("x-request-id", call.id), ("x-wherry-code", error.code), *fields.items())
        status = grpc.StatusCode[grpc_status_of(error)]
        await context.abort(status, error.text[:MAX_DETAILS], trailers)

    # ------------------------------------------------------------------ for calls

    def check_key(self, principal: Principal) -> None:
        """Pass while a key still holds: streams may last longer than keys.

        Raises:
            NotAuthenticated: it was revoked, or has expired.
        """
        if not self._authenticator.is_current(principal):
            raise errors.NotAuthenticated("this key was revoked, or has expired")

    def patience(self, size: int) -> float:
        """Seconds that a client may take for a message of so many bytes."""
        return self._settings.client_stall_seconds + size / SLOWEST_BYTES_PER_SECOND


class _Table(grpc.GenericRpcHandler):
    """Finds the method of a call."""

    def __init__(self, server: GrpcServer, methods: Mapping[str, Method]) -> None:
        self._server = server
        self._methods = methods

    def service(self, handler_call_details: Any) -> Any:
        """How a call is served; None if it has no method here, which is UNIMPLEMENTED."""
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None

        async def serve(_: Any, context: Any) -> None:
            await self._server.serve(method, context)

        return grpc.stream_stream_rpc_method_handler(serve)


def _options(settings: Settings) -> list[tuple[str, int]]:
    milliseconds = 1000
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.max_body_bytes + MESSAGE_SLACK_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_connection_idle_ms", int(settings.keep_alive_seconds * milliseconds)),
        ("grpc.keepalive_time_ms", int(settings.keep_alive_seconds * milliseconds)),
        ("grpc.keepalive_timeout_ms", int(settings.client_stall_seconds * milliseconds)),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_SECONDS * milliseconds),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_SECONDS * milliseconds),
        ("grpc.server_handshake_timeout_ms", int(settings.client_stall_seconds * milliseconds)),
    ]


def read_credentials(settings: Settings) -> grpc.ServerCredentials:
    """Key and certificate, the same as for HTTP."""
    key, chain = Path(settings.tls_key).read_bytes(), Path(settings.tls_cert).read_bytes()
    return grpc.ssl_server_credentials([(key, chain)])


def address_of(peer: str) -> str:
    """The address in `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`."""
    host, _, _ = peer.partition(":")[2].rpartition(":")
    return unquote(host).strip("[]")
