"""Deployments: names that clients call."""

from __future__ import annotations

import time
from collections.abc import Sequence

from wherry import errors
from wherry.client.calls.jobs import OnProgress
from wherry.client.schema import (
    ApplyAnswer,
    ApplyRequest,
    Deployment,
    DeploymentSpec,
    Limits,
    LogLine,
    Progress,
    Replicas,
    Rollout,
    ScaleRequest,
)
from wherry.client.wire import (
    Call,
    Emit,
    EventReader,
    LinkError,
    Pause,
    Stream,
    ask,
    ask_for_all,
    decode,
    listen,
    platform,
)

DEPLOY_TIMEOUT_SECONDS = 600.0
STALE_SECONDS = 1.0
"""How long after a change a state may still be that of before."""
LONGEST_POLL_SECONDS = 1.0


def list_deployments() -> Call[list[Deployment]]:
    """Every deployment that you may see."""
    return (yield from ask_for_all(platform("GET", "deployments"), Deployment))


def get_deployment(name: str) -> Call[Deployment]:
    """A deployment as it is now."""
    return (yield from ask(platform("GET", "deployments", name), Deployment))


def apply_specs(
    specs: DeploymentSpec | Sequence[DeploymentSpec], *, dry_run: bool = False
) -> Call[ApplyAnswer]:
    """Make deployments as the specs say; gives what changed, or would."""
    deployments = [specs] if isinstance(specs, DeploymentSpec) else list(specs)
    body = ApplyRequest(deployments=deployments, dry_run=dry_run)
    return (yield from ask(platform("POST", "deployments", verb="apply", body=body), ApplyAnswer))


def deploy(
    model: str,
    name: str | None = None,
    *,
    replicas: int | Replicas = 1,
    limits: Limits | None = None,
    idle_seconds: float = 0.0,
    device: str = "cpu",
    rollout: Rollout | None = None,
    pinned: bool = False,
    wait: bool = True,
    timeout: float = DEPLOY_TIMEOUT_SECONDS,
    on_progress: OnProgress | None = None,
) -> Call[Deployment]:
    """Serve a model under a name.

    Args:
        model: `model`, `model@3` or `model@alias`.
        name: name that clients call; default: the model's.
        replicas: how many workers, or how many at least and at most; with `idle_seconds` a
            number is the most, and the least is 0.
        limits: bounds of the deployment.
        idle_seconds: unload after so long without a request; 0 = never.
        device: where it runs, e.g. `cpu`.
        rollout: how a new version takes over; `Rollout(strategy="canary")` tries it first.
        pinned: never unloaded to make room for others.
        wait: return when it answers.
        timeout: seconds to wait for that.
        on_progress: called while waiting.
    """
    spec = DeploymentSpec(
        name=name or model.partition("@")[0],
        model=model,
        replicas=_as_replicas(replicas, may_idle=idle_seconds > 0),
        limits=limits or Limits(),
        idle_seconds=idle_seconds,
        device=device,
        rollout=rollout or Rollout(),
        pinned=pinned,
    )
    answer = yield from apply_specs(spec)
    if not wait:
        return (yield from get_deployment(spec.name))
    changed = any(change.action != "none" for change in answer.changes)
    return (
        yield from wait_until_ready(
            spec.name, timeout=timeout, on_progress=on_progress, just_changed=changed
        )
    )


def _as_replicas(replicas: int | Replicas, *, may_idle: bool) -> Replicas:
    if isinstance(replicas, Replicas):
        return replicas
    return Replicas(min=0 if may_idle else replicas, max=max(replicas, 1))


def wait_until_ready(
    name: str,
    *,
    timeout: float = DEPLOY_TIMEOUT_SECONDS,
    on_progress: OnProgress | None = None,
    just_changed: bool = False,
) -> Call[Deployment]:
    """Wait until a deployment answers; raises why it does not.

    Args:
        name: the deployment.
        timeout: seconds.
        on_progress: called with each state seen.
        just_changed: its state may, for a moment, still be that of before the change.
    """
    started = time.monotonic()
    pause_seconds = 0.05
    while True:
        deployment = yield from get_deployment(name)
        if on_progress is not None:
            on_progress(Progress(stage=deployment.cause or deployment.state))
        waited_seconds = time.monotonic() - started
        is_stale = just_changed and waited_seconds < STALE_SECONDS
        if deployment.state in ("ready", "degraded", "idle"):
            return deployment
        if deployment.state in ("failing", "stopped") and not is_stale:
            raise errors.NotReady(
                f"deployment {name!r} is {deployment.state}: {deployment.cause or 'no cause told'}",
                hint=deployment.remedy,
            )
        if waited_seconds > timeout:
            raise errors.TimedOut(
                f"deployment {name!r} is still {deployment.state} after {timeout:g} s",
                hint=f"wherry logs {name}",
            )
        yield Pause(pause_seconds)
        pause_seconds = min(pause_seconds * 1.5, LONGEST_POLL_SECONDS)


def scale_deployment(
    name: str, min: int, max: int | None = None, *, dry_run: bool = False
) -> Call[Deployment]:
    """Change how many workers run."""
    body = ScaleRequest(min=min, max=max, dry_run=dry_run)
    return (
        yield from ask(platform("POST", "deployments", name, verb="scale", body=body), Deployment)
    )


def start_deployment(name: str) -> Call[Deployment]:
    """Load a stopped deployment again."""
    return (yield from ask(platform("POST", "deployments", name, verb="start"), Deployment))


def stop_deployment(name: str) -> Call[Deployment]:
    """Unload a deployment and keep its spec."""
    return (yield from ask(platform("POST", "deployments", name, verb="stop"), Deployment))


def roll_back(name: str) -> Call[Deployment]:
    """Serve the version before again, or end a canary; at once while that is still loaded."""
    return (yield from ask(platform("POST", "deployments", name, verb="rollback"), Deployment))


def promote(name: str) -> Call[Deployment]:
    """Let a canary, or a version that was rolled back, take over without further proof."""
    return (yield from ask(platform("POST", "deployments", name, verb="promote"), Deployment))


def remove_deployment(name: str, *, dry_run: bool = False) -> Call[ApplyAnswer]:
    """Remove a deployment; its model stays."""
    request = platform("DELETE", "deployments", name, query={"dry_run": dry_run})
    return (yield from ask(request, ApplyAnswer))


def read_logs(name: str, *, lines: int = 100, follow: bool = False) -> Stream[LogLine]:
    """The last lines that a deployment's workers wrote; with `follow`, also those to come."""
    query = {"lines": lines, "follow": follow}
    request = platform("GET", "deployments", name, "logs", query=query)
    if not follow:
        for line in (yield from ask_for_all(request, LogLine)):
            yield Emit(line)
        return
    yield from listen(request)
    reader = EventReader()
    try:
        while (event := (yield from reader.next())) is not None:
            yield Emit(decode(event.data, LogLine))
    except LinkError as error:
        raise error.explain(repeatable=True) from error
