"""One call of a pipeline: its steps, each a request of its own on the path of every request.

A step is admitted, metered and journalled as if the client had made it, under the id of the call and
its own name. The call itself is one record without units, so nothing is counted twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import msgspec

from wherry import errors
from wherry.client.schema import Step
from wherry.frames import Usage
from wherry.gateway import steps
from wherry.gateway.admit import Inbound, timeout_of
from wherry.gateway.plan import MAX_CALLS, Plan, in_step
from wherry.gateway.predict import Gateway

CODEC = "predict"
JSON_HEADERS = {"content-type": "application/json"}
EACH_AT_ONCE = 8
MAX_HELD_BYTES = 256 << 20
"""Of the answers, and the requests of inner pipelines, that one call holds."""


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
        plan: of the pipeline; made for the same key.
        inbound: the request.
    """

    def __init__(self, gateway: Gateway, plan: Plan, inbound: Inbound) -> None:
        self.runs: list[StepRun] = []
        """What has been answered so far."""
        self._gateway = gateway
        self._plan = plan
        self._inbound = inbound
        self._deadline = time.monotonic() + timeout_of(inbound, plan.route, gateway.settings)
        self._load = gateway.guard.load_of(plan.route.full_name)
        self._held_bytes = 0
        # what would never fit, however often it is repeated, is too large rather than too early
        room = gateway.settings.max_in_flight_bytes - len(inbound.body)
        self._max_held_bytes = min(MAX_HELD_BYTES, room)
        self._calls = 0

    async def answer(self) -> bytes:
        """The pipeline's answer, once its record is safe.

        Raises:
            WherryError: of the first step that failed; the others are cancelled.
        """
        settler, route, inbound = self._gateway.settler, self._plan.route, self._inbound
        begun, code = time.monotonic(), "internal"
        self._gateway.guard.enter(self._load, route, len(inbound.body))
        try:
            wanted = [each for step in route.steps for each in steps.references_of(step.input)]
            kind = inbound.headers.get("content-type", "")
            request = steps.read_request(inbound.body, kind, wanted)
            async with asyncio.timeout_at(self._loop_deadline()):
                found = await self._run(self._plan, request, inbound.request_id)
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

    async def _run(self, plan: Plan, request: msgspec.Raw, number: str) -> msgspec.Raw:
        """The answer of a pipeline; its steps run as soon as what they need is there."""
        route, needs = plan.route, plan.needs
        values = {steps.REQUEST: request}
        tasks: dict[str, asyncio.Task[None]] = {}

        async def run(step: Step) -> None:
            for name in needs[step.name]:
                await asyncio.shield(tasks[name])
            values[step.name] = await self._take_step(plan, step, values, f"{number}.{step.name}")

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
        self, plan: Plan, step: Step, values: Mapping[str, msgspec.Raw], number: str
    ) -> msgspec.Raw:
        with in_step(step):
            if not step.each:
                self._count_calls(1)
                return await self._ask(plan, step, steps.fill(step.input, values), number)
            return await self._take_each(plan, step, values, number)

    async def _take_each(
        self, plan: Plan, step: Step, values: Mapping[str, msgspec.Raw], number: str
    ) -> msgspec.Raw:
        reference = steps.parse_reference(step.each)
        assert reference is not None
        elements = steps.elements_of(steps.look_up(reference, values), reference)
        if len(elements) > steps.MAX_EACH:
            raise errors.TooLarge(
                f"{reference} has {len(elements)} elements, the limit is {steps.MAX_EACH}"
            )
        self._count_calls(len(elements))
        gate = asyncio.Semaphore(EACH_AT_ONCE)

        async def ask(index: int, element: msgspec.Raw) -> msgspec.Raw:
            async with gate:  # a body may hold all of the request: only so many are made at once
                body = steps.fill(step.input, {**values, steps.EACH: element})
                return await self._ask(plan, step, body, f"{number}.{index}")

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(*pair)) for pair in enumerate(elements)]
        except BaseExceptionGroup as failed:
            raise _first_of(failed) from None
        return steps.list_of([task.result() for task in tasks])

    async def _ask(self, plan: Plan, step: Step, body: msgspec.Raw, number: str) -> msgspec.Raw:
        """One call of a deployment."""
        inner = plan.inner.get(step.name)
        if inner is not None:
            return self._hold(await self._run(inner, self._hold(body), number))
        return await self._ask_model(step, body, number)

    async def _ask_model(self, step: Step, body: msgspec.Raw, number: str) -> msgspec.Raw:
        gateway = self._gateway
        asked = msgspec.structs.replace(
            self._inbound,
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
        return self._hold(msgspec.Raw(bytes(answer.body)))

    def _count_calls(self, count: int) -> None:
        self._calls += count
        if self._calls > MAX_CALLS:
            raise errors.TooLarge(
                f"the call needs more than {MAX_CALLS} calls of deployments in all",
                hint="send fewer elements, or call the pipelines below one by one",
            )

    def _hold(self, value: msgspec.Raw) -> msgspec.Raw:
        """Count in, until the call ends, what steps are given."""
        if self._held_bytes + len(value) > self._max_held_bytes:
            raise errors.TooLarge(
                f"the answers of the steps have more than {self._max_held_bytes} bytes"
            )
        self._gateway.guard.hold(len(value))
        self._held_bytes += len(value)
        return value

    def _loop_deadline(self) -> float:
        return asyncio.get_running_loop().time() + max(0.0, self._deadline - time.monotonic())


def _first_of(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a client is told of several failures: the first that is about the request."""
    found: Sequence[BaseException] = failed.exceptions
    told = [each for each in found if isinstance(each, errors.WherryError)]
    return told[0] if told else found[0]
