"""Where a server listens, and by which addresses its clients reach it."""

from __future__ import annotations

import importlib.util
import ipaddress
import socket

from wherry import errors
from wherry.settings import Settings

BACKLOG = 2048


def check_exposure(settings: Settings) -> None:
    """Refuse to listen beyond this machine without TLS or a proxy."""
    has_tls = bool(settings.tls_cert and settings.tls_key)
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise errors.InvalidInput("tls_cert and tls_key belong together")
    if is_loopback(settings.host) or has_tls or settings.behind_proxy:
        return
    raise errors.InvalidInput(
        f"listening on {settings.host!r} without TLS would show keys to the network",
        hint="give --tls-cert and --tls-key, or --behind-proxy if one terminates TLS",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(settings: Settings) -> socket.socket:
    """The socket all gateways share."""
    listener = bind(settings.host, settings.port, "--port")
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener


def reserve_grpc_port(settings: Settings) -> socket.socket | None:
    """A socket that keeps the gRPC port for our gateways; None if there is no such door.

    gRPC takes no socket that is open already: each gateway binds its own to the port, which the
    kernel allows from now on to processes of this user, and to no other server before.

    Raises:
        MissingExtra: its package is not installed.
    """
    if settings.grpc_port is None:
        return None
    if importlib.util.find_spec("grpc") is None:
        raise errors.MissingExtra(
            "the gRPC door needs the package 'grpcio'", hint="pip install 'wherry[grpc]'"
        )
    reserved = bind(settings.host, settings.grpc_port, "--grpc-port")
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return reserved


def bind(host: str, port: int, flag: str) -> socket.socket:
    """A socket at an address; a taken port is said plainly, with a free one for the flag."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise errors.Conflict(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint=f"wherry serve {flag} {next_free_port(host, port)}",
        ) from error
    return bound


def next_free_port(host: str, port: int) -> int:
    """The first free port above one that is taken; 0 if none of the next 100 is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port + 1, min(port + 101, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return candidate
    return 0


def url_of(settings: Settings) -> str:
    """Where clients of this machine reach the server."""
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{near_host(settings)}:{settings.port}"


def grpc_address(settings: Settings) -> str:
    """The same for gRPC, whose clients want no scheme; empty if there is no such door."""
    return "" if settings.grpc_port is None else f"{near_host(settings)}:{settings.grpc_port}"


def near_host(settings: Settings) -> str:
    """The host by which this machine's clients reach the server, as addresses have it."""
    host = settings.host
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"[{host}]" if ":" in host else host
