"""Commands about deployments: deploy undeploy ps scale start stop rollback promote logs apply."""

# ruff: noqa: D417  # what every command has is described once, in command.py

from __future__ import annotations

import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from wherry import errors
from wherry.cli.command import DEFAULT, DEPLOYMENTS, Common, DryRun, command
from wherry.cli.output import (
    UsageError,
    confirm,
    format_age,
    note,
    parse_duration,
    print_json_line,
    print_table,
    progress,
    show,
    visible,
)
from wherry.client.schema import (
    ApplyAnswer,
    Change,
    Deployment,
    DeploymentSpec,
    LogLine,
    Replicas,
    Rollout,
    WorkerInfo,
)

if TYPE_CHECKING:
    from wherry.client import Client


@command(
    "deploy",
    group=DEPLOYMENTS,
    examples=[
        "wherry deploy smollm2",
        "wherry deploy mood@champion --name mood --replicas 2",
        "wherry deploy mood@4 --name mood --canary",
    ],
)
def deploy(
    model: str,
    /,
    *,
    name: str | None = None,
    replicas: int | None = None,
    min_replicas: Annotated[int | None, Parameter(name="--min")] = None,
    max_replicas: Annotated[int | None, Parameter(name="--max")] = None,
    idle: str = "0",
    device: str = "cpu",
    canary: bool = False,
    pinned: bool = False,
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
    dry_run: DryRun = False,
    common: Common = DEFAULT,
) -> None:
    """Serve a model under a name, and wait until it answers.

    Args:
        model: MODEL, MODEL@NUMBER or MODEL@ALIAS.
        name: Name that clients call; default: the model's.
        replicas: How many workers run.
        min_replicas: At least so many; 0 lets an idle one be unloaded.
        max_replicas: At most so many.
        idle: Unload after so long without a request, e.g. 15m; 0 = never.
        device: Where it runs.
        canary: Try a new version on some requests first; it takes over, or not, by itself.
        pinned: Never unload it to make room for others.
        wait: Return when it answers.
    """
    idle_seconds = parse_duration(idle)
    if min_replicas is None and replicas is None and idle_seconds:
        min_replicas = 0
    spec = DeploymentSpec(
        name=name or model.partition("@")[0],
        model=model,
        replicas=_replicas_of(replicas, min_replicas, max_replicas),
        idle_seconds=idle_seconds,
        device=device,
        rollout=Rollout(strategy="canary" if canary else "surge"),
        pinned=pinned,
    )
    with common.connect() as client, progress(f"deploy {spec.name}") as report:
        if dry_run:
            answer = client.deployments.apply(spec, dry_run=True)
            show(common, answer, lambda: print_changes(answer))
            return
        answer = client.deployments.apply(spec)
        changed = any(change.action != "none" for change in answer.changes)
        deployment = (
            client.deployments.wait(spec.name, on_progress=report, just_changed=changed)
            if wait
            else client.deployments.get(spec.name)
        )
    show(common, deployment, lambda: print(f"{deployment.name} is {deployment.state}"))


def _replicas_of(replicas: int | None, least: int | None, most: int | None) -> Replicas:
    if replicas is not None and (least is not None or most is not None):
        raise UsageError("--replicas goes without --min and --max")
    least = replicas if replicas is not None else 1 if least is None else least
    return Replicas(min=least, max=max(least, 1) if most is None else most)


@command("undeploy", group=DEPLOYMENTS, examples=["wherry undeploy mood", "wherry undeploy a b"])
def undeploy(name: str, /, *names: str, dry_run: DryRun = False, common: Common = DEFAULT) -> None:
    """Remove deployments; their models stay.

    Args:
        name: The deployment.
        names: More of them.
    """
    changes: list[Change] = []
    with common.connect() as client:
        for each in (name, *names):
            changes += client.deployments.remove(each, dry_run=dry_run).changes
    answer = ApplyAnswer(changes=changes, dry_run=dry_run)
    show(common, answer, lambda: print_changes(answer))


@command(
    "ps", group=DEPLOYMENTS, examples=["wherry ps", "wherry ps --workers", "wherry ps -o json"]
)
def list_deployments(*, workers: bool = False, common: Common = DEFAULT) -> None:
    """List the deployments and how they are.

    Args:
        workers: List the processes instead.
    """
    with common.connect() as client:
        if workers:
            found = client.workers()
            show(common, found, lambda: _print_workers(found))
            return
        deployments = client.deployments.list()
    show(common, deployments, lambda: print_deployments(deployments))


def print_deployments(deployments: list[Deployment]) -> None:
    """The table of `ps`."""
    columns = ("NAME", "STATE", "TASK", "VERSIONS", "REPLICAS", "AGE", "CAUSE")
    rows = [
        (
            each.name,
            each.state,
            each.task,
            ", ".join(
                ref if len(each.versions) == 1 else f"{ref} ({weight})"
                for ref, weight in each.versions.items()
            ),
            f"{each.replicas_ready} of {each.spec.replicas.min}..{each.spec.replicas.max}",
            format_age(each.created_at),
            "; ".join(filter(None, (_trouble_of(each), describe_rollout(each)))),
        )
        for each in deployments
    ]
    print_table(columns, rows)


def _trouble_of(deployment: Deployment) -> str:
    cause, remedy = deployment.cause, deployment.remedy
    return f"{cause}: {remedy}" if remedy else cause


def describe_rollout(deployment: Deployment) -> str:
    """How far a change of versions is, in a line; empty when nothing changes."""
    rollout = deployment.rollout
    if rollout.phase == "canary":
        return f"canary {rollout.candidate} at {rollout.share:g} %: {rollout.reason}"
    if rollout.phase == "rolled_back":
        return f"rolled back to {', '.join(rollout.serving)}: {rollout.reason}"
    if rollout.phase == "changing":
        return f"changing from {', '.join(rollout.serving)}"
    return ""


def _print_workers(workers: list[WorkerInfo]) -> None:
    columns = (
        "ID", "DEPLOYMENT", "MODEL", "STATE", "PID", "MEMORY", "BUSY", "AGE", "SANDBOX", "DETAIL",
    )  # fmt: skip
    rows = [
        (
            each.id,
            each.deployment,
            f"{each.model}@{each.version}",
            each.state,
            each.pid,
            f"{each.memory_mib} MiB",
            each.in_flight,
            format_age(each.started_at),
            " ".join(each.sandbox) or "none",
            each.detail,
        )
        for each in workers
    ]
    print_table(columns, rows)


@command("scale", group=DEPLOYMENTS, examples=["wherry scale mood 2", "wherry scale mood 0 4"])
def scale(
    name: str,
    least: int,
    most: int | None = None,
    /,
    *,
    dry_run: DryRun = False,
    common: Common = DEFAULT,
) -> None:
    """Change how many workers run.

    Args:
        name: The deployment.
        least: At least so many.
        most: At most so many; default: the same.
    """
    with common.connect() as client:
        deployment = client.deployments.scale(name, least, most, dry_run=dry_run)
    replicas = deployment.spec.replicas
    word = "would have" if dry_run else "has"
    show(
        common,
        deployment,
        lambda: print(f"{name} {word} {replicas.min} to {replicas.max} workers"),
    )


@command("start", group=DEPLOYMENTS, examples=["wherry start mood"])
def start(name: str, /, *, dry_run: DryRun = False, common: Common = DEFAULT) -> None:
    """Load a stopped deployment again.

    Args:
        name: The deployment.
    """
    with common.connect() as client, progress(f"start {name}") as report:
        deployment = client.deployments.get(name)
        if not dry_run:
            client.deployments.start(name)
            deployment = client.deployments.wait(name, on_progress=report, just_changed=True)
    show(common, deployment, lambda: _print_switch(deployment, "start", dry_run=dry_run))


@command("stop", group=DEPLOYMENTS, examples=["wherry stop mood"])
def stop(name: str, /, *, dry_run: DryRun = False, common: Common = DEFAULT) -> None:
    """Unload a deployment and keep what it is, for `wherry start`.

    Args:
        name: The deployment.
    """
    with common.connect() as client:
        deployment = client.deployments.get(name)
        if not dry_run:
            deployment = client.deployments.stop(name)
    show(common, deployment, lambda: _print_switch(deployment, "stop", dry_run=dry_run))


@command("rollback", group=DEPLOYMENTS, examples=["wherry rollback mood"])
def rollback(name: str, /, *, common: Common = DEFAULT) -> None:
    """Serve the version before again, at once while it is still loaded; ends a canary.

    Args:
        name: The deployment.
    """
    with common.connect() as client:
        deployment = client.deployments.roll_back(name)
    show(common, deployment, lambda: _print_serving(deployment))


@command("promote", group=DEPLOYMENTS, examples=["wherry promote mood"])
def promote(name: str, /, *, common: Common = DEFAULT) -> None:
    """Let a canary, or what was rolled back, take over without further proof.

    Args:
        name: The deployment.
    """
    with common.connect() as client:
        deployment = client.deployments.promote(name)
    show(common, deployment, lambda: _print_serving(deployment))


def _print_serving(deployment: Deployment) -> None:
    change = describe_rollout(deployment)
    versions = ", ".join(deployment.versions)
    print(f"{deployment.name} serves {versions}" + (f"; {change}" if change else ""))


def _print_switch(deployment: Deployment, verb: str, *, dry_run: bool) -> None:
    if dry_run:
        print(f"would {verb} {deployment.name}, which is {deployment.state}")
    else:
        print(f"{deployment.name} is {deployment.state}")


@command("logs", group=DEPLOYMENTS, examples=["wherry logs mood", "wherry logs mood -f -n 10"])
def logs(
    name: str,
    /,
    *,
    lines: Annotated[int, Parameter(name=("--lines", "-n"))] = 100,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"))] = False,
    common: Common = DEFAULT,
) -> None:
    """Show what a deployment's workers wrote; as JSON a line each when followed.

    Args:
        name: The deployment.
        lines: So many of the last lines.
        follow: Go on with the lines to come.
    """
    with common.connect() as client:
        found = client.deployments.logs(name, lines=lines, follow=follow)
        if follow:
            write = print_json_line if common.output == "json" else _print_log_line
            with suppress(KeyboardInterrupt):  # which is how following ends
                for line in found:
                    write(line)
            return
        listed = list(found)
    show(common, listed, lambda: _print_log(listed))


def _print_log(lines: list[LogLine]) -> None:
    for line in lines:
        _print_log_line(line)


def _print_log_line(line: LogLine) -> None:
    import datetime

    at = datetime.datetime.fromtimestamp(line.at).astimezone()
    print(f"{at:%H:%M:%S} {line.worker} {visible(line.text)}", flush=True)


# ------------------------------------------------------------------------------ apply


@command(
    "apply",
    group=DEPLOYMENTS,
    examples=["wherry apply -f deployments.toml", "wherry apply -f pipeline.toml --yes"],
)
def apply(
    *,
    file: Annotated[Path, Parameter(name=("--file", "-f"), allow_leading_hyphen=True)],
    yes: Annotated[bool, Parameter(name=("--yes", "-y"))] = False,
    dry_run: DryRun = False,
    common: Common = DEFAULT,
) -> None:
    """Make deployments as a file says, after showing what would change.

    Args:
        file: TOML or JSON with `deployments`, a list of specs; `-` reads standard input.
        yes: Do not ask.
    """
    specs = read_specs(file)
    with common.connect() as client:
        answer = client.deployments.apply(specs, dry_run=True)
        if dry_run or not has_changes(answer):
            show(common, answer, lambda: print_changes(answer))
            return
        if not yes:
            print_changes(answer, write=note)
            confirm("apply?", flag="--yes")
        answer = client.deployments.apply(specs)
    show(common, answer, lambda: print_changes(answer))


def read_specs(file: Path) -> list[DeploymentSpec]:
    """The specs in a file; the error names the place that is wrong."""
    text = sys.stdin.read() if str(file) == "-" else _read_text(file)
    found = _parse(text, str(file))
    listed = found.get("deployments", [found]) if isinstance(found, dict) else found
    try:
        return msgspec.convert(listed, list[DeploymentSpec])
    except msgspec.ValidationError as error:
        raise errors.InvalidInput(f"{str(file)!r} is not valid: {error}") from error


def _parse(text: str, name: str) -> Any:
    """JSON if it is that, else TOML."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as json_error:
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as toml_error:
            is_json = text.lstrip().startswith("{") or name.endswith(".json")
            error = json_error if is_json else toml_error
            raise errors.InvalidInput(f"{name!r} is neither TOML nor JSON: {error}") from error


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise errors.InvalidInput(f"cannot read {str(file)!r}: {reason}") from error


def has_changes(answer: ApplyAnswer) -> bool:
    """Whether anything differs."""
    return any(change.action != "none" for change in answer.changes)


_SIGN = {"create": "+", "update": "~", "delete": "-", "none": "="}


def print_changes(answer: ApplyAnswer, write: Any = print) -> None:
    """The difference, a line a field: readable without colour."""
    for change in answer.changes:
        write(f"{_SIGN[change.action]} {change.deployment}: {_word(change, answer.dry_run)}")
        for field, values in change.fields.items():
            before, after = [*values, None, None][:2]
            arrow = f"{_value(before)} -> {_value(after)}" if before is not None else _value(after)
            write(f"    {field}: {arrow}")


def _word(change: Change, dry_run: bool) -> str:
    if change.action == "none":
        return "no change"
    return f"would {change.action}" if dry_run else f"{change.action}d"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def find_deployment(client: Client, name: str) -> Deployment | None:
    """A deployment, or None if there is none by this name."""
    try:
        return client.deployments.get(name)
    except errors.NotFound:
        return None
