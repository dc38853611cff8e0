"""What gateways are told of a deployment: the routes of a snapshot."""

from __future__ import annotations

import time

from wherry.control.rollout import Wanted
from wherry.control.running import Running
from wherry.gateway.route import DeploymentRoute, VersionRoute, WorkerRoute, describe_tensors


def route_of(running: Running) -> DeploymentRoute:
    """A deployment's route: its ready workers, by version."""
    desired, spec = running.desired, running.desired.spec
    state, cause, _ = running.state()
    keys = running.routed or [each.key for each in running.wanted]
    limits = spec.limits
    return DeploymentRoute(
        team_id=desired.team_id,
        team=desired.team,
        name=spec.name,
        state=state,  # type: ignore[arg-type]
        cause=cause,
        retry_after_seconds=estimate_load_seconds(running),
        created_at=desired.created_at,
        versions=tuple(_version_route(running, running.known[key]) for key in keys),
        concurrency=limits.concurrency,
        queue_seconds=limits.queue_seconds,
        body_bytes=limits.body_bytes,
        tokens=limits.tokens,
        timeout_seconds=limits.timeout_seconds,
    )


def _version_route(running: Running, wanted: Wanted) -> VersionRoute:
    version = wanted.version
    signature = version.manifest.signature
    workers = tuple(
        WorkerRoute(
            replica.handle.id,
            replica.handle.generation,
            replica.handle.address,
            replica.handle.spec.token,
        )
        for replica in running.replicas.values()
        if replica.wanted.key == wanted.key and replica.state == "ready"
    )
    return VersionRoute(
        version.model,
        version.number,
        version.digest,
        version.manifest.task,
        version.manifest.runtime,
        wanted.weight,
        version.manifest.idempotent,
        workers,
        describe_tensors(signature.inputs),
        describe_tensors(signature.outputs),
    )


def estimate_load_seconds(running: Running) -> float:
    """How long until a worker that is not loaded would answer: as measured, and its back-off."""
    now = time.monotonic()
    measured = [each.version.load_seconds for each in running.wanted]
    waits = [running.failures_of(each.key).not_before - now for each in running.wanted]
    return round(max([1.0, *measured]) + max([0.0, *waits]))
