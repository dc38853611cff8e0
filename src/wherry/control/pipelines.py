"""Whether a pipeline can be: its steps' order, the deployments that they call, how many, no circle."""

from __future__ import annotations

from collections.abc import Mapping

from wherry import errors
from wherry.client.schema import DeploymentSpec, Step
from wherry.gateway.plan import MAX_CALLS, MAX_NESTING
from wherry.gateway.steps import find_dependencies


def check_pipeline(spec: DeploymentSpec, known: Mapping[str, DeploymentSpec]) -> None:
    """Refuse steps that cannot run; deployments without steps pass.

    Args:
        spec: what is applied.
        known: the team's deployments by name, as they will be.

    Raises:
        InvalidInput: naming the step.
    """
    if not spec.steps:
        if spec.answer is not None:
            raise errors.InvalidInput(
                f"deployment {spec.name!r} has an answer and no steps", param="answer"
            )
        return
    find_dependencies(spec.steps, spec.answer)
    _follow(spec, known, (spec.name,), set())
    least = _count_calls(spec, known, {})
    if least > MAX_CALLS:
        raise errors.InvalidInput(
            f"pipeline {spec.name!r} makes at least {least} calls, those of the pipelines in it "
            f"included; the limit is {MAX_CALLS}",
            param="steps",
        )


def called_by(step: Step) -> str:
    """The name of the deployment that a step calls, without a version."""
    return step.deployment.partition("@")[0]


def _follow(
    spec: DeploymentSpec,
    known: Mapping[str, DeploymentSpec],
    path: tuple[str, ...],
    seen: set[tuple[str, int]],
) -> None:
    """Go down all calls; what is below a deployment is looked at once for each depth."""
    if (spec.name, len(path)) in seen:
        return
    seen.add((spec.name, len(path)))
    if len(path) > MAX_NESTING + 1:
        raise errors.InvalidInput(
            f"pipelines are nested more than {MAX_NESTING} deep: {' -> '.join(path)}",
            param="steps",
        )
    for step in spec.steps:
        name = called_by(step)
        if name in path:
            raise errors.InvalidInput(
                f"the pipeline calls itself: {' -> '.join((*path, name))}", param="steps"
            )
        if name not in known:
            raise errors.InvalidInput(
                f"step {step.name!r} of {spec.name!r} calls {name!r}, and there is no such deployment",
                hint=f"wherry deploy {name}; wherry ps lists what there is",
                param="steps",
            )
        _follow(known[name], known, (*path, name), seen)


def _count_calls(
    spec: DeploymentSpec, known: Mapping[str, DeploymentSpec], counted: dict[str, int]
) -> int:
    """Calls of deployments that a pipeline makes if all lists that it goes through are empty."""
    if spec.name not in counted:
        counted[spec.name] = sum(
            1 + _count_calls(known[called_by(step)], known, counted)
            for step in spec.steps
            if not step.each
        )
    return counted[spec.name]
