"""What gateways are told of a deployment: the routes of a snapshot."""

from __future__ import annotations

import time

from wherry.control.rollout import Wanted
from wherry.control.running import Running
from wherry.gateway.route import (
    DeploymentRoute,
    ShadowRoute,
    VersionRoute,
    WorkerRoute,
    describe_tensors,
)


def route_of(running: Running) -> DeploymentRoute:
    """A deployment's route: its ready workers, by version."""
    desired, spec = running.desired, running.desired.spec
    state, cause, _ = running.state()
    keys = running.routed or [each.key for each in running.wanted]
    ready = running.ready_by_version()
    # loaded, but for no client's requests: ready to take over, or asked for by number
    idle = [each for each in (*running.warm, *running.shadow_shares) if each not in keys]
    versions = [_version_route(running, key, running.known[key].weight) for key in keys]
    versions += [_version_route(running, key, 0) for key in dict.fromkeys(idle) if ready.get(key)]
    limits = spec.limits
    return DeploymentRoute(
        team_id=desired.team_id,
        team=desired.team,
        name=spec.name,
        state=state,  # type: ignore[arg-type]
        cause=cause if state not in ("idle", "starting") else "",
        retry_after_seconds=estimate_load_seconds(running),
        created_at=desired.created_at,
        versions=tuple(versions),
        concurrency=limits.concurrency,
        queue_seconds=limits.queue_seconds,
        body_bytes=limits.body_bytes,
        tokens=limits.tokens,
        timeout_seconds=limits.timeout_seconds,
        split="request" if running.candidate else "key",
        shadows=tuple(
            _shadow_route(running.known[key], share)
            for key, share in running.shadow_shares.items()
            if ready.get(key)
        ),
        steps=tuple(spec.steps),
        answer=spec.answer,
    )


def _shadow_route(wanted: Wanted, share: float) -> ShadowRoute:
    version = wanted.version
    return ShadowRoute(version.model, version.number, version.digest, share)


def _version_route(running: Running, key: str, weight: int) -> VersionRoute:
    version = running.known[key].version
    signature = version.manifest.signature
    workers = tuple(
        WorkerRoute(
            replica.handle.id,
            replica.handle.generation,
            replica.handle.address,
            replica.handle.spec.token,
        )
        for replica in running.replicas.values()
        if replica.wanted.key == key and replica.state == "ready"
    )
    return VersionRoute(
        version.model,
        version.number,
        version.digest,
        version.manifest.task,
        version.manifest.runtime,
        weight,
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
