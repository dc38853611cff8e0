"""One call of a pipeline: its steps, each a request of its own on the path of every request.

A step is admitted, metered and journalled as if the client had made it, under the id of the call and
its own name. The call itself is one record without units, so nothing is counted twice.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import msgspec

from wherry import errors
from wherry.client.schema import Step
from wherry.frames import Usage
from wherry.gateway import steps
from wherry.gateway.admit import Inbound, find_deployment, timeout_of
from wherry.gateway.predict import Gateway
from wherry.gateway.route import DeploymentRoute

CODEC = "predict"
JSON_HEADERS = {"content-type": "application/json"}
MAX_NESTING = 4
"""Pipelines within pipelines."""
EACH_AT_ONCE = 8
MAX_HELD_BYTES = 256 << 20
"""Of the answers that one call holds."""


class StepRun(msgspec.Struct):
    """What one call of a deployment did."""

    name: str
    version: str
    milliseconds: float
    usage: Usage


class PipelineCall:
    """One call.

    Args:
        gateway: where steps run.
        route: the pipeline.
        inbound: the request.

    Raises:
        WherryError: a step's deployment is not there, or not for this key; nothing has run.
    """

    def __init__(self, gateway: Gateway, route: DeploymentRoute, inbound: Inbound) -> None:
        self.runs: list[StepRun] = []
        """What has been answered so far."""
        self._gateway = gateway
        self._route = route
        self._inbound = inbound
        self._deadline = time.monotonic() + timeout_of(inbound, route, gateway.settings)
        self._load = gateway.guard.load_of(route.full_name)
        self._held_bytes = 0
        self._check_access(route, 0, set())

    async def answer(self) -> bytes:
        """The pipeline's answer, once its record is safe.

        Raises:
            WherryError: of the first step that failed; the others are cancelled.
        """
        settler, route, inbound = self._gateway.settler, self._route, self._inbound
        begun, code = time.monotonic(), "internal"
        self._gateway.guard.enter(self._load, route, len(inbound.body))
        try:
            wanted = [each for step in route.steps for each in steps.references_of(step.input)]
            kind = inbound.headers.get("content-type", "")
            request = steps.read_request(inbound.body, kind, wanted)
            async with asyncio.timeout_at(self._loop_deadline()):
                found = await self._run(route, request, inbound.request_id)
            code = ""
        except TimeoutError:
            code = errors.TimedOut.code
            raise errors.TimedOut(
                f"no answer from pipeline {route.name!r} in time",
                hint="raise the timeout, or send less at once",
            ) from None
        except errors.WherryError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            code = errors.Cancelled.code
            raise
        finally:
            self._gateway.guard.leave(self._load, len(inbound.body) + self._held_bytes)
            recorded = settler.record_pipeline(route, inbound, code, time.monotonic() - begun)
        await recorded
        return bytes(found)

    @property
    def usage(self) -> Usage:
        """Units of all steps together."""
        return sum((run.usage for run in self.runs), Usage())

    # ------------------------------------------------------------------ steps

    async def _run(
        self, route: DeploymentRoute, request: msgspec.Raw, number: str, depth: int = 0
    ) -> msgspec.Raw:
        """The answer of a pipeline; its steps run as soon as what they need is there."""
        needs = steps.find_dependencies(route.steps, route.answer)
        values = {steps.REQUEST: request}
        tasks: dict[str, asyncio.Task[None]] = {}

        async def run(step: Step) -> None:
            for name in needs[step.name]:
                await asyncio.shield(tasks[name])
            values[step.name] = await self._take_step(step, values, f"{number}.{step.name}", depth)

        try:
            async with asyncio.TaskGroup() as group:
                by_name = {step.name: step for step in route.steps}
                for name in needs:
                    tasks[name] = group.create_task(run(by_name[name]))
        except BaseExceptionGroup as failed:
            raise _first_of(failed) from None
        template = f"${route.steps[-1].name}" if route.answer is None else route.answer
        return steps.fill(template, values)

    async def _take_step(
        self, step: Step, values: Mapping[str, msgspec.Raw], number: str, depth: int
    ) -> msgspec.Raw:
        with _named(step):
            if not step.each:
                return await self._ask(step, steps.fill(step.input, values), number, depth)
            return await self._take_each(step, values, number, depth)

    async def _take_each(
        self, step: Step, values: Mapping[str, msgspec.Raw], number: str, depth: int
    ) -> msgspec.Raw:
        reference = steps.parse_reference(step.each)
        assert reference is not None
        elements = steps.elements_of(steps.look_up(reference, values), reference)
        if len(elements) > steps.MAX_EACH:
            raise errors.TooLarge(
                f"{reference} has {len(elements)} elements, the limit is {steps.MAX_EACH}"
            )
        gate = asyncio.Semaphore(EACH_AT_ONCE)

        async def ask(index: int, element: msgspec.Raw) -> msgspec.Raw:
            async with gate:  # a body may hold all of the request: only so many are made at once
                body = steps.fill(step.input, {**values, steps.EACH: element})
                return await self._ask(step, body, f"{number}.{index}", depth)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(*pair)) for pair in enumerate(elements)]
        except BaseExceptionGroup as failed:
            raise _first_of(failed) from None
        return steps.list_of([task.result() for task in tasks])

    async def _ask(self, step: Step, body: msgspec.Raw, number: str, depth: int) -> msgspec.Raw:
        """One call of a deployment."""
        gateway, inbound = self._gateway, self._inbound
        deployment, _ = find_deployment(gateway.routes, inbound.principal, step.deployment)
        if deployment.steps:
            _check_nesting(depth + 1)
            return await self._run(deployment, body, number, depth + 1)
        asked = msgspec.structs.replace(
            inbound,
            door="pipeline",
            request_id=number,
            deployment=step.deployment,
            version="",
            codec=CODEC,
            body=bytes(body),
            headers=JSON_HEADERS,
            timeout_seconds=max(0.001, self._deadline - time.monotonic()),
        )
        if asked.is_background:
            await gateway.wait_for_spare_room(asked)
        exchange = gateway.predict(asked)
        try:
            answer = await exchange.answer()
        finally:
            gateway.cancel(exchange)
        spent = (answer.outcome.queued_us + answer.outcome.run_us) / 1000
        name = number.removeprefix(self._inbound.request_id + ".")
        self.runs.append(StepRun(name, exchange.version.key, spent, answer.outcome.usage))
        return self._hold(bytes(answer.body))

    def _hold(self, answer: bytes) -> msgspec.Raw:
        self._held_bytes += len(answer)
        self._gateway.guard.enter_many(self._load, 0, len(answer))
        if self._held_bytes > MAX_HELD_BYTES:
            raise errors.TooLarge(f"the answers of the steps have more than {MAX_HELD_BYTES} bytes")
        return msgspec.Raw(answer)

    # ------------------------------------------------------------------ before anything runs

    def _check_access(self, route: DeploymentRoute, depth: int, seen: set[tuple[str, int]]) -> None:
        """Every deployment below, each once at a depth however many steps call it."""
        if (route.name, depth) in seen:
            return
        seen.add((route.name, depth))
        _check_nesting(depth)
        if route.state == "stopped":
            raise errors.NotReady(
                f"pipeline {route.name!r} is stopped", hint=f"wherry start {route.name}"
            )
        for step in route.steps:
            with _named(step):
                found, _ = find_deployment(
                    self._gateway.routes, self._inbound.principal, step.deployment
                )
            if found.steps:
                self._check_access(found, depth + 1, seen)

    def _loop_deadline(self) -> float:
        return asyncio.get_running_loop().time() + max(0.0, self._deadline - time.monotonic())


@contextmanager
def _named(step: Step) -> Generator[None]:
    """An error says in which step it happened."""
    try:
        yield
    except errors.WherryError as error:
        told = copy.copy(error)
        told.message = f"step {step.name!r}: {error.message}"
        raise told from error


def _check_nesting(depth: int) -> None:
    if depth > MAX_NESTING:
        raise errors.InvalidInput(
            f"pipelines are nested more than {MAX_NESTING} deep", hint="do they call each other?"
        )


def _first_of(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a client is told of several failures: the first that is about the request."""
    found: Sequence[BaseException] = failed.exceptions
    told = [each for each in found if isinstance(each, errors.WherryError)]
    return told[0] if told else found[0]
