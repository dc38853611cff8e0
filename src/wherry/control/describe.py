"""What people are told of deployments and workers: the structs of the platform API."""

from __future__ import annotations

import msgspec

from wherry.client.schema import Deployment, WorkerInfo
from wherry.control.running import Replica, Running


def describe_deployment(running: Running) -> Deployment:
    """A deployment as it is, without its secrets."""
    desired = running.desired
    state, cause, remedy = running.state()
    total = sum(each.weight for each in running.wanted) or 1
    return Deployment(
        name=desired.spec.name,
        team=desired.team,
        task=running.wanted[0].version.manifest.task if running.wanted else "",
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
        replicas_ready=sum(running.ready_by_version().values()),
        created_at=desired.created_at,
        updated_at=desired.updated_at,
    )


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
        started_at=replica.started_at,
        detail=replica.detail,
    )
