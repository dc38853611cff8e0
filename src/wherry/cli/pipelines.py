"""Commands about pipelines, which are deployments with steps: pipeline create|list|show|remove."""

# ruff: noqa: D417  # what every command has is described once, in command.py

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import App, Parameter

from wherry import errors
from wherry.cli.command import DEFAULT, DEPLOYMENTS, Common, DryRun, app, command
from wherry.cli.deployments import print_changes, read_specs
from wherry.cli.output import format_age, print_table, show
from wherry.client.schema import ApplyAnswer, Change, Deployment, DeploymentSpec

if TYPE_CHECKING:
    from wherry.client import Client

pipeline_app = App(
    name="pipeline", help="Put deployments behind each other, called as one.", group=DEPLOYMENTS
)
app.command(pipeline_app)


@command(
    "create",
    group=DEPLOYMENTS,
    parent=pipeline_app,
    examples=["wherry pipeline create voice.toml", "wherry pipeline create voice.toml --dry-run"],
)
def create(
    file: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    dry_run: DryRun = False,
    common: Common = DEFAULT,
) -> None:
    """Make pipelines as a file says; one that is there already is changed.

    Args:
        file: TOML or JSON: one pipeline, or `deployments`, a list of them; `-` reads standard input.
    """
    specs = read_specs(file)
    for spec in specs:
        _check_steps(spec, hint=f"wherry apply -f {file}")
    with common.connect() as client:
        answer = client.deployments.apply(specs, dry_run=dry_run)
    show(common, answer, lambda: print_changes(answer))


@command(
    "list",
    group=DEPLOYMENTS,
    parent=pipeline_app,
    examples=["wherry pipeline list", "wherry pipeline list -o json"],
)
def list_pipelines(*, common: Common = DEFAULT) -> None:
    """List the pipelines and what they call."""
    with common.connect() as client:
        found = [each for each in client.deployments.list() if each.spec.steps]
    show(common, found, lambda: _print_pipelines(found))


def _print_pipelines(pipelines: list[Deployment]) -> None:
    rows = [
        (each.name, each.state, _called_by(each.spec), format_age(each.created_at))
        for each in pipelines
    ]
    print_table(("NAME", "STATE", "CALLS", "AGE"), rows)


def _called_by(spec: DeploymentSpec) -> str:
    return ", ".join(dict.fromkeys(step.deployment for step in spec.steps))


@command(
    "show",
    group=DEPLOYMENTS,
    parent=pipeline_app,
    examples=["wherry pipeline show spoken-topic", "wherry pipeline show spoken-topic -o json"],
)
def show_pipeline(name: str, /, *, common: Common = DEFAULT) -> None:
    """Show the steps of a pipeline and what it answers.

    Args:
        name: The pipeline.
    """
    with common.connect() as client:
        found = _find(client, name)
    show(common, found, lambda: _print_pipeline(found))


def _print_pipeline(pipeline: Deployment) -> None:
    spec = pipeline.spec
    print(f"{pipeline.name} is {pipeline.state}")
    rows = [(each.name, each.deployment, each.each, _told(each.input)) for each in spec.steps]
    print_table(("STEP", "CALLS", "EACH", "INPUT"), rows)
    answer = f"${spec.steps[-1].name}" if spec.answer is None else spec.answer
    print(f"answers {_told(answer)}")


def _told(template: Any) -> str:
    return template if isinstance(template, str) else msgspec.json.encode(template).decode()


@command(
    "remove",
    group=DEPLOYMENTS,
    parent=pipeline_app,
    examples=["wherry pipeline remove spoken-topic", "wherry pipeline remove a b --dry-run"],
)
def remove(name: str, /, *names: str, dry_run: DryRun = False, common: Common = DEFAULT) -> None:
    """Remove pipelines; the deployments that they call stay.

    Args:
        name: The pipeline.
        names: More of them.
    """
    changes: list[Change] = []
    with common.connect() as client:
        for each in (name, *names):
            _find(client, each)
            changes += client.deployments.remove(each, dry_run=dry_run).changes
    answer = ApplyAnswer(changes=changes, dry_run=dry_run)
    show(common, answer, lambda: print_changes(answer))


def _find(client: Client, name: str) -> Deployment:
    found = client.deployments.get(name)
    _check_steps(found.spec, hint="wherry pipeline list")
    return found


def _check_steps(spec: DeploymentSpec, hint: str) -> None:
    if not spec.steps:
        raise errors.InvalidInput(f"{spec.name!r} is no pipeline: it has no steps", hint=hint)
