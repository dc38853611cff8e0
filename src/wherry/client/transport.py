"""Carries calls out with httpx, blocking or in an event loop; httpx loads on the first request."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from wherry import __version__
from wherry.client.failures import Reply
from wherry.client.local import Address
from wherry.client.wire import (
    Call,
    Emit,
    Exchange,
    Finished,
    LinkError,
    Listen,
    Pause,
    Read,
    Request,
    Retry,
    Step,
    Stream,
    Work,
    advance,
)

if TYPE_CHECKING:
    import httpx

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., object])

DEFAULT_MAX_RETRIES = 2
CONNECT_TIMEOUT_SECONDS = 10.0
DEFAULT_TIMEOUT_SECONDS = 130.0
"""A little more than a server's own deadline, so that the server tells what was late."""


class Transport:
    """What both transports share: address, patience, and how a request looks in httpx."""

    def __init__(self, address: Address, *, timeout: float, max_retries: int) -> None:
        self.address = address
        self._timeout_seconds = timeout
        self._max_retries = max_retries

    def _options(self) -> dict[str, Any]:
        import httpx

        headers = {"user-agent": f"wherry-python/{__version__}"}
        if self.address.key:
            headers["authorization"] = f"Bearer {self.address.key}"
        connect_seconds = min(CONNECT_TIMEOUT_SECONDS, self._timeout_seconds)
        return {
            "base_url": self.address.url,
            "headers": headers,
            "timeout": httpx.Timeout(self._timeout_seconds, connect=connect_seconds),
            # Reading the certificates of the system takes longer than most calls.
            "verify": self.address.url.startswith("https:"),
            # HTTP_PROXY is for the world outside, not for this machine.
            "mounts": {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")},
        }

    def _may_retry(self, step: Retry) -> bool:
        return step.attempt <= self._max_retries

    def _link_error(self, error: httpx.HTTPError) -> LinkError:
        import httpx

        unsent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
        detail = str(error) or type(error).__name__
        is_late = isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout)
        return LinkError(
            self.address.url, detail, may_have_run=not isinstance(error, unsent), late=is_late
        )


class BlockingTransport(Transport):
    """Carries calls out in the calling thread; safe to share between threads."""

    _http: httpx.Client | None = None

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def __del__(self) -> None:
        # Who works in a notebook closes nothing; at exit, httpx may be half gone already.
        with contextlib.suppress(Exception):
            self.close()

    def run(self, call: Call[T]) -> T:
        """The answer of a call."""
        steps = self._carry_out(call)
        try:
            while True:
                next(steps)
        except StopIteration as stop:
            return stop.value

    def iterate(self, stream: Stream[T]) -> Iterator[T]:
        """The items of a stream; closing the iterator closes the connection."""
        yield from self._carry_out(stream)

    def _carry_out(self, call: Generator[Step | Emit[T], Any, Any]) -> Generator[T, None, Any]:
        connection = _BlockingConnection(self._client())
        outcome: Any = None
        try:
            while not isinstance(step := advance(call, outcome), Finished):
                outcome = None
                if isinstance(step, Emit):
                    yield step.item
                else:
                    outcome = self._take_step(step, connection)
            return step.answer
        finally:
            call.close()
            connection.close()

    def _take_step(self, step: Step, connection: _BlockingConnection) -> Any:
        import httpx

        try:
            match step:
                case Exchange(request):
                    return connection.exchange(request)
                case Listen(request):
                    return connection.listen(request)
                case Read():
                    return connection.read()
                case Pause(seconds):
                    return time.sleep(seconds)
                case Retry(_, seconds):
                    if self._may_retry(step):
                        time.sleep(seconds)
                    return self._may_retry(step)
                case Work(function):
                    return function()
        except httpx.HTTPError as error:
            return self._link_error(error)

    def _client(self) -> httpx.Client:
        import httpx

        if self._http is None:
            self._http = httpx.Client(**self._options())
        return self._http


class AsyncTransport(Transport):
    """Carries calls out in the running event loop."""

    _http: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def run(self, call: Call[T]) -> T:
        """The answer of a call."""
        connection = _AsyncConnection(self._client())
        outcome: Any = None
        try:
            while not isinstance(step := advance(call, outcome), Finished):
                outcome = await self._take_step(step, connection)
            return step.answer
        finally:
            call.close()
            await connection.close()

    async def iterate(self, stream: Stream[T]) -> AsyncIterator[T]:
        """The items of a stream; closing the iterator closes the connection."""
        connection = _AsyncConnection(self._client())
        outcome: Any = None
        try:
            while not isinstance(step := advance(stream, outcome), Finished):
                outcome = None
                if isinstance(step, Emit):
                    yield step.item
                else:
                    outcome = await self._take_step(step, connection)
        finally:
            stream.close()
            await connection.close()

    async def _take_step(self, step: Step, connection: _AsyncConnection) -> Any:
        import asyncio

        import httpx

        try:
            match step:
                case Exchange(request):
                    return await connection.exchange(request)
                case Listen(request):
                    return await connection.listen(request)
                case Read():
                    return await connection.read()
                case Pause(seconds):
                    return await asyncio.sleep(seconds)
                case Retry(_, seconds):
                    if self._may_retry(step):
                        await asyncio.sleep(seconds)
                    return self._may_retry(step)
                case Work(function):
                    return await asyncio.to_thread(function)
        except httpx.HTTPError as error:
            return self._link_error(error)

    def _client(self) -> httpx.AsyncClient:
        import httpx

        if self._http is None:
            self._http = httpx.AsyncClient(**self._options())
        return self._http


class _BlockingConnection:
    """At most one open stream of a call."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def exchange(self, request: Request) -> Reply:
        return _as_reply(self._http.send(_build(self._http, request)))

    def listen(self, request: Request) -> Reply:
        self.close()
        self._response = response = self._http.send(_build(self._http, request), stream=True)
        if response.status_code >= 300:
            response.read()
            return _as_reply(response)
        self._chunks = response.iter_bytes()
        return Reply(response.status_code, _lower(response))

    def read(self) -> bytes | None:
        return next(self._chunks, None)

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


class _AsyncConnection:
    """At most one open stream of a call."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def exchange(self, request: Request) -> Reply:
        return _as_reply(await self._http.send(_build(self._http, request)))

    async def listen(self, request: Request) -> Reply:
        await self.close()
        response = await self._http.send(_build(self._http, request), stream=True)
        self._response = response
        if response.status_code >= 300:
            await response.aread()
            return _as_reply(response)
        self._chunks = response.aiter_bytes()
        return Reply(response.status_code, _lower(response))

    async def read(self) -> bytes | None:
        return None if self._chunks is None else await anext(self._chunks, None)

    async def close(self) -> None:
        if self._response is not None:
            await self._response.aclose()
            self._response = None


def _build(http: httpx.Client | httpx.AsyncClient, request: Request) -> httpx.Request:
    headers = dict(request.headers)
    if request.content_type:
        headers["content-type"] = request.content_type
    return http.build_request(
        request.method,
        request.path,
        params=dict(request.query) or None,
        content=request.content or None,
        headers=headers,
    )


def _as_reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, _lower(response), response.content)


def _lower(response: httpx.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


# ------------------------------------------------------------ calls as methods of resources


class BlockingResource:
    """A part of `Client`, e.g. `client.models`."""

    def __init__(self, transport: BlockingTransport) -> None:
        self.transport = transport


class AsyncResource:
    """A part of `AsyncClient`, e.g. `client.models`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.transport = transport


def blocking(call: Callable[P, Call[T]]) -> Callable[Concatenate[BlockingResource, P], T]:
    """A call as a method that returns its answer."""

    def method(self: BlockingResource, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.transport.run(call(*args, **kwargs))

    return _describe(method, call)


def blocking_stream(
    call: Callable[P, Stream[T]],
) -> Callable[Concatenate[BlockingResource, P], Iterator[T]]:
    """A stream as a method that returns an iterator."""

    def method(self: BlockingResource, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self.transport.iterate(call(*args, **kwargs))

    return _describe(method, call, "Iterator[{}]")


def awaited(
    call: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncResource, P], Coroutine[Any, Any, T]]:
    """A call as a coroutine method."""

    async def method(self: AsyncResource, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.transport.run(call(*args, **kwargs))

    return _describe(method, call)


def awaited_stream(
    call: Callable[P, Stream[T]],
) -> Callable[Concatenate[AsyncResource, P], AsyncIterator[T]]:
    """A stream as a method that returns an asynchronous iterator."""

    def method(self: AsyncResource, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self.transport.iterate(call(*args, **kwargs))

    return _describe(method, call, "AsyncIterator[{}]")


def _describe(method: M, call: Callable[..., object], returns: str = "{}") -> M:
    """Give a method the name, signature and words of its call, as `help` shows them."""
    written = inspect.signature(call)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    answer = str(written.return_annotation).partition("[")[2].removesuffix("]")
    vars(method)["__signature__"] = written.replace(
        parameters=[itself, *written.parameters.values()],
        return_annotation=returns.format(answer),
    )
    method.__name__ = method.__qualname__ = call.__name__
    method.__doc__ = call.__doc__
    return method
