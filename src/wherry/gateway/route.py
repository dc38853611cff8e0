"""Which worker may answer: immutable snapshots that the controller sends, and their look-up."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from wherry import errors
from wherry.client.schema import Step

SERVABLE = frozenset({"ready", "degraded", "starting", "idle"})


class WorkerRoute(msgspec.Struct, frozen=True, array_like=True):
    """A worker that is ready."""

    id: str
    generation: int
    address: str
    token: bytes


class VersionRoute(msgspec.Struct, frozen=True, array_like=True):
    """A version that a deployment serves now."""

    model: str
    number: int
    digest: str
    task: str
    runtime: str
    weight: int
    idempotent: bool
    workers: tuple[WorkerRoute, ...]
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Name, datatype, shape; as Open Inference metadata shows them."""
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    context_tokens: int = 0
    key: str = ""
    """`model@number`; made here, once, as every answer tells it."""

    def __post_init__(self) -> None:
        """Fill in what follows from the rest."""
        msgspec.structs.force_setattr(self, "key", f"{self.model}@{self.number}")


class ShadowRoute(msgspec.Struct, frozen=True, array_like=True):
    """A version that gets copies of requests; nobody sees what it answers."""

    model: str
    number: int
    digest: str
    share: float
    """0 to 1, of the requests that other versions answer."""


class DeploymentRoute(msgspec.Struct, frozen=True, array_like=True):
    """A deployment as a gateway needs it."""

    team_id: str
    team: str
    name: str
    state: Literal["ready", "starting", "stopped", "idle", "failing", "degraded"]
    cause: str
    retry_after_seconds: float
    """A real estimate (measured load time), for those who do not want to wait."""
    created_at: float
    versions: tuple[VersionRoute, ...]
    """Those of weight 0 are loaded, and answer only who asks for them by number."""
    concurrency: int = 0
    queue_seconds: float = 0.0
    body_bytes: int = 0
    tokens: int = 0
    timeout_seconds: float = 0.0
    split: Literal["key", "request"] = "key"
    """Who always meets the same version: each key, or (while a canary is judged) nobody but those
    who send `x-wherry-sticky`."""
    shadows: tuple[ShadowRoute, ...] = ()
    steps: tuple[Step, ...] = ()
    """Of a pipeline, which has no versions."""
    answer: Any = None
    """A pipeline's; None: that of its last step."""
    full_name: str = ""
    """`team/name`; made here, once, as every request asks for it."""

    def __post_init__(self) -> None:
        """Fill in what follows from the rest."""
        msgspec.structs.force_setattr(self, "full_name", f"{self.team}/{self.name}")

    @property
    def is_servable(self) -> bool:
        """Whether a request may be sent or may wait for it."""
        return self.state in SERVABLE


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """All routes at one epoch."""

    epoch: int
    deployments: tuple[DeploymentRoute, ...]


EMPTY = Snapshot(0, ())


class Routes:
    """Look-up in the newest snapshot; replaced as a whole."""

    def __init__(self) -> None:
        self.snapshot = EMPTY
        self._by_team: Mapping[str, Mapping[str, DeploymentRoute]] = {}

    def replace(self, snapshot: Snapshot) -> None:
        """Take a newer snapshot."""
        by_team: dict[str, dict[str, DeploymentRoute]] = {}
        for deployment in snapshot.deployments:
            by_team.setdefault(deployment.team_id, {})[deployment.name] = deployment
        self.snapshot, self._by_team = snapshot, by_team

    def of_team(self, team_id: str) -> list[DeploymentRoute]:
        """A team's deployments, by name."""
        return sorted(self._by_team.get(team_id, {}).values(), key=lambda each: each.name)

    def find(self, team_id: str, team: str, name: str) -> DeploymentRoute | None:
        """By bare name, or by `team/name` if it is the caller's own team."""
        own = self._by_team.get(team_id, {})
        found = own.get(name)
        if found is None and name.startswith(team + "/"):
            found = own.get(name.removeprefix(team + "/"))
        return found


def split_name(name: str) -> tuple[str, str]:
    """`chat@3` → (`chat`, `3`); without a version behind an `@` the name stays whole."""
    deployment, _, version = name.partition("@")
    return (deployment, version) if version else (name, "")


def sticky_of(
    deployment: DeploymentRoute, word: str, team_id: str, key_id: str, request_id: str
) -> str:
    """By what a request is given to one of several versions.

    A client's own word counts within its team only: nobody can steer another team's callers.
    """
    if word:
        return f"{team_id}/{word}"
    return key_id if deployment.split == "key" else request_id


def choose_version(deployment: DeploymentRoute, version: str, sticky: str) -> VersionRoute:
    """The version asked for, else one by weight, the same for the same `sticky` key.

    Raises:
        ModelNotFound: the version is not served now.
        NotReady: nothing is served now.
    """
    versions = deployment.versions
    if version:
        for route in versions:
            if str(route.number) == version:
                return route
        raise errors.ModelNotFound(
            f"deployment {deployment.name!r} does not serve version {version!r} now",
            hint="served: " + (", ".join(str(each.number) for each in versions) or "none"),
        )
    if not versions:
        raise not_ready(deployment)
    if len(versions) == 1:
        return versions[0]
    live = [route for route in versions if route.weight]
    if len(live) == 1:
        return live[0]
    return max(live or versions, key=lambda route: _attraction(route, deployment, sticky))


def _attraction(route: VersionRoute, deployment: DeploymentRoute, sticky: str) -> float:
    """Weighted rendezvous hashing: the highest wins, with a chance as its share of the weights.

    A version's number depends on its own weight only, so when a weight changes, sticky keys move
    to or from that version and between no others (Schindelhauer and Schomaker, "Weighted distributed
    hash tables", SPAA 2005).
    """
    text = f"{deployment.full_name}\n{route.key}\n{sticky}"
    drawn = int.from_bytes(hashlib.blake2s(text.encode(), digest_size=8).digest(), "big")
    # strictly between 0 and 1, also after rounding
    return -route.weight / math.log((drawn + 1) / (2.0**64 + 2.0**12))


def not_ready(deployment: DeploymentRoute) -> errors.NotReady:
    """Why a deployment cannot answer, and what to do."""
    hint = {
        "stopped": f"wherry scale {deployment.name} 1",
        "failing": f"wherry logs {deployment.name}",
    }.get(deployment.state, "repeat in a moment")
    cause = f": {deployment.cause}" if deployment.cause else ""
    return errors.NotReady(
        f"deployment {deployment.name!r} is {deployment.state}{cause}",
        hint=hint,
        retry_after_seconds=max(1.0, deployment.retry_after_seconds),
    )


def describe_tensors(specs: Any) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Tensor specs of a signature in the form a route carries.

    Clients cannot read "anything" (an empty datatype); they are shown one form that is accepted.
    """
    return tuple(
        (spec.name, spec.datatype or "FP32", tuple(spec.shape) if spec.datatype else (-1,))
        for spec in specs
    )
