"""What a call of a pipeline goes by: the pipeline and all below it, as they are when it begins."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import msgspec

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.client.schema import Step
from wherry.gateway import steps
from wherry.gateway.admit import find_deployment
from wherry.gateway.route import DeploymentRoute, Routes

MAX_NESTING = 4
"""Pipelines within pipelines."""
MAX_CALLS = 2048
"""Of deployments in one call, those of pipelines within it included: as many as one pipeline of 32
steps for 64 elements makes."""


class Plan(msgspec.Struct, frozen=True):
    """A pipeline with those that its steps call. Routes that change meanwhile do not change it."""

    route: DeploymentRoute
    needs: Mapping[str, frozenset[str]]
    """Step → steps whose answers it needs, in an order in which they can run."""
    inner: Mapping[str, Plan]
    """By name of the step; one that calls a model is not there: models are found when asked."""


def make_plan(routes: Routes, principal: Principal, route: DeploymentRoute) -> Plan:
    """The plan of a pipeline, once every deployment below is there and is this key's to call.

    Raises:
        ModelNotFound, NotPermitted, NotReady, InvalidInput: naming the step.
    """
    made: dict[tuple[str, int], Plan] = {}  # once at a depth, however many steps call it

    def plan_of(route: DeploymentRoute, depth: int) -> Plan:
        if (route.name, depth) not in made:
            made[route.name, depth] = plan_anew(route, depth)
        return made[route.name, depth]

    def plan_anew(route: DeploymentRoute, depth: int) -> Plan:
        _check_pipeline(route, depth)
        inner: dict[str, Plan] = {}
        for step in route.steps:
            with in_step(step):
                found, _ = find_deployment(routes, principal, step.deployment)
                if found.steps:
                    inner[step.name] = plan_of(found, depth + 1)
        return Plan(route, steps.find_dependencies(route.steps, route.answer), inner)

    return plan_of(route, 0)


def _check_pipeline(route: DeploymentRoute, depth: int) -> None:
    if depth > MAX_NESTING:
        raise errors.InvalidInput(
            f"pipelines are nested more than {MAX_NESTING} deep", hint="do they call each other?"
        )
    if route.state == "stopped":
        raise errors.NotReady(
            f"pipeline {route.name!r} is stopped", hint=f"wherry start {route.name}"
        )


@contextmanager
def in_step(step: Step) -> Generator[None]:
    """An error says in which step it happened."""
    try:
        yield
    except errors.WherryError as error:
        told = copy.copy(error)
        told.message = f"step {step.name!r}: {error.message}"
        told.args = (told.message,)
        raise told from error
