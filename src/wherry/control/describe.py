"""What people are told of deployments and workers: the structs of the platform API."""

from __future__ import annotations

import time

import msgspec

from wherry.client.schema import Deployment, LoadInfo, RolloutInfo, WorkerInfo
from wherry.control.running import Replica, Running
from wherry.control.versions import share_of
from wherry.gateway.settle import PIPELINE


def describe_deployment(running: Running) -> Deployment:
    """A deployment as it is, without its secrets."""
    desired = running.desired
    state, cause, remedy = running.state()
    total = sum(each.weight for each in running.wanted) or 1
    idle = {*running.warm, *running.shadow_shares} - {each.key for each in running.wanted}
    idle -= set(running.routed)
    return Deployment(
        name=desired.spec.name,
        team=desired.team,
        task=_task_of(running),
        state=state,  # type: ignore[arg-type]
        cause=cause,
        remedy=remedy,
        spec=msgspec.structs.replace(
            desired.spec, secrets=dict.fromkeys(desired.spec.secrets, "***")
        ),
        versions={
            f"{each.version.model}@{each.version.number}": each.weight * 100 // total
            for each in running.wanted
        },
        replicas_ready=sum(
            count for key, count in running.ready_by_version().items() if key not in idle
        ),
        rollout=_describe_rollout(running),
        load=LoadInfo(
            running=max(0, running.in_flight - sum(running.waiting.values())),
            waiting=sum(running.waiting.values()),
            wait_seconds=round(running.wait_seconds, 3),
        ),
        created_at=desired.created_at,
        updated_at=desired.updated_at,
    )


def _task_of(running: Running) -> str:
    if running.desired.spec.steps:
        return PIPELINE
    return running.wanted[0].version.manifest.task if running.wanted else ""


def _describe_rollout(running: Running) -> RolloutInfo:
    versions = running.versions
    info = RolloutInfo(
        serving=[each.name for each in versions.serving],
        previous=[each.name for each in versions.previous],
        warm_seconds=round(max(0.0, running.warm_until - time.monotonic()), 1),
        reason=versions.reason,
        at=versions.at,
    )
    canary = versions.canary
    if canary is not None:
        info.phase = "canary"
        info.candidate = canary.candidate.name
        info.share = share_of(canary, running.rules)
        info.requests = canary.trial.new.requests
        info.reason = running.canary_words
        info.at = canary.begun_at
    elif versions.refused and running.picks == versions.refused:
        info.phase = "rolled_back"
    elif versions.serving and running.picks != versions.serving:
        info.phase = "changing"
    return info


def describe_worker(running: Running, replica: Replica) -> WorkerInfo:
    """A worker as it is."""
    return WorkerInfo(
        id=replica.handle.id,
        deployment=running.desired.spec.name,
        model=replica.wanted.version.model,
        version=replica.wanted.version.number,
        pid=replica.handle.pid,
        state=replica.state,  # type: ignore[arg-type]
        memory_mib=replica.memory_mib,
        in_flight=replica.in_flight,
        busy=round(replica.busy_share, 3),
        started_at=replica.started_at,
        detail=replica.detail,
        sandbox=replica.sandbox.parts if replica.sandbox else {},
        sandbox_missing=replica.sandbox.missing if replica.sandbox else {},
    )
