"""Whether a pipeline can be: its steps' order, the deployments that they call, and no circle."""

from __future__ import annotations

from collections.abc import Mapping

from wherry import errors
from wherry.client.schema import DeploymentSpec
from wherry.gateway.plan import MAX_NESTING
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
        name = step.deployment.partition("@")[0]
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
