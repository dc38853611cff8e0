"""Whether a request may enter: name, rights, sizes, load. Cheapest checks first."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.gateway.route import DeploymentRoute, Routes, split_name


class Inbound(msgspec.Struct, kw_only=True):
    """A request as its door's row understood it: the envelope, and the body as it came."""

    door: str
    """For the journal: `openai`, `inference`, `predict` …"""
    request_id: str
    principal: Principal
    deployment: str
    """As the client wrote it: `name`, `name@version` or `team/name`."""
    version: str = ""
    codec: str
    body: bytes
    headers: dict[str, str] = {}
    """Those the codec needs, in lower case."""
    stream: bool = False
    tokens_bound: int = 0
    """Most tokens it can cost; the key's limit reserves so many."""
    timeout_seconds: float | None = None
    sticky: str = ""
    """The client's own word for who asks: the same word gets the same version (`x-wherry-sticky`).
    Empty = the key."""
    wait_seconds: float | None = None
    """How long the client waits for a model that is not loaded (`Prefer: wait=…`)."""
    is_background: bool = False
    """A line of a batch: see `Gateway.wait_for_spare_room`."""
    is_direct: bool = False
    """Its codec tells nothing of the single request, neither its id nor the time: those with the
    same head differ in their bodies only."""


def find_deployment(routes: Routes, principal: Principal, name: str) -> tuple[DeploymentRoute, str]:
    """The deployment and the version that a name means to this key.

    Raises:
        ModelNotFound: no such deployment in the key's team.
        NotPermitted: the key is restricted to other deployments.
    """
    bare, version = split_name(name)
    found = routes.find(principal.team_id, principal.team, bare)
    if found is None:
        raise errors.ModelNotFound(
            f"no deployment {bare[:200]!r}", hint="GET /v1/models lists those you may call"
        )
    if not principal.can_call(found.name):
        raise errors.NotPermitted(
            f"this key may not call deployment {found.name!r}",
            hint="ask an admin for a key that lists it",
        )
    return found, version


def callable_deployments(routes: Routes, principal: Principal) -> list[DeploymentRoute]:
    """The deployments of the key's team that it may call, by name."""
    deployments = routes.of_team(principal.team_id)
    return [each for each in deployments if principal.can_call(each.name)]


class DeploymentLoad:
    """Requests of one deployment that one gateway has in flight."""

    __slots__ = ("running",)

    def __init__(self) -> None:
        self.running = 0


class LoadGuard:
    """What one gateway holds at once: bytes of bodies, and requests per deployment.

    Args:
        max_bytes: of all bodies together.
        share: this gateway's part of a deployment's concurrency (1 / number of gateways).
    """

    def __init__(self, max_bytes: int, share: float) -> None:
        self._max_bytes = max_bytes
        self._share = share
        self.held_bytes = 0
        self._loads: dict[str, DeploymentLoad] = {}

    def load_of(self, name: str) -> DeploymentLoad:
        """Of a deployment (`team/name`)."""
        found = self._loads.get(name)
        if found is None:
            found = self._loads[name] = DeploymentLoad()
        return found

    def keep(self, names: Collection[str]) -> None:
        """Forget all other deployments (`team/name`) that have nothing in flight."""
        for name in [name for name in self._loads if name not in names]:
            if not self._loads[name].running:
                del self._loads[name]

    def enter(self, load: DeploymentLoad, deployment: DeploymentRoute, size: int) -> None:
        """Count a request in, or raise `TooLarge` or `Overloaded`."""
        if deployment.body_bytes and size > deployment.body_bytes:
            raise errors.TooLarge(
                f"the body has {size} bytes, deployment {deployment.name!r} takes "
                f"{deployment.body_bytes}"
            )
        self._check_bytes(size)
        if deployment.concurrency:
            allowed = self._allowed(deployment)
            if load.running >= allowed:
                raise errors.Overloaded(
                    f"deployment {deployment.name!r} has its {allowed} requests in flight",
                    hint="repeat in a moment",
                )
        load.running += 1
        self.held_bytes += size

    def hold(self, size: int) -> None:
        """Count bytes that a request holds until it leaves beside its body, or raise `Overloaded`."""
        self._check_bytes(size)
        self.held_bytes += size

    def _check_bytes(self, size: int) -> None:
        if self.held_bytes + size > self._max_bytes and self.held_bytes:
            raise errors.Overloaded(
                f"requests in flight hold {self.held_bytes >> 20} MiB already",
                hint="repeat in a moment",
            )

    def has_room(
        self, load: DeploymentLoad, deployment: DeploymentRoute, requests: int, size: int
    ) -> bool:
        """Whether so many requests, of so many bytes together, would all be let in."""
        if self.held_bytes + size > self._max_bytes:
            return False
        if deployment.body_bytes and size > deployment.body_bytes:
            return False  # one of them may be too large
        if not deployment.concurrency:
            return True
        return load.running + requests <= self._allowed(deployment)

    def _allowed(self, deployment: DeploymentRoute) -> int:
        """This gateway's part of the deployment's concurrency."""
        return max(1, int(deployment.concurrency * self._share))

    def enter_many(self, load: DeploymentLoad, requests: int, size: int) -> None:
        """Count them in."""
        load.running += requests
        self.held_bytes += size

    def leave(self, load: DeploymentLoad, size: int, requests: int = 1) -> None:
        """Count it out, or several of so many bytes together."""
        load.running -= requests
        self.held_bytes -= size

    def running(self) -> dict[str, int]:
        """Requests in flight by `team/name`."""
        return {name: load.running for name, load in self._loads.items() if load.running}


def timeout_of(inbound: Inbound, deployment: DeploymentRoute, default: Any) -> float:
    """Seconds until the deadline: the client's wish within the deployment's bound."""
    bound = deployment.timeout_seconds or (
        default.stream_timeout_seconds if inbound.stream else default.request_timeout_seconds
    )
    if inbound.timeout_seconds is None:
        return bound
    return min(inbound.timeout_seconds, bound)
