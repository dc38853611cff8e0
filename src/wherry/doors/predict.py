"""`POST /predict/{deployment}`: one plain JSON object in, one out; for the simplest clients."""

from __future__ import annotations

import asyncio

from wherry import errors
from wherry.doors.errors import render_platform
from wherry.doors.invoke import invoke_direct, read_sticky, read_timeout
from wherry.doors.route import Direct, Inquiry, Response, Row
from wherry.gateway.admit import Inbound, find_deployment
from wherry.gateway.pipeline import PipelineCall
from wherry.gateway.plan import Plan, make_plan
from wherry.gateway.predict import Gateway

PREDICT = Direct("predict", "predict", ("content-type",))
MAX_TIMINGS = 64
"""Calls that the answer of a pipeline tells the time of: clients and proxies bound a header."""


class PredictDoor:
    """The one row."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def rows(self) -> list[Row]:
        """The table."""
        return [
            Row(
                method="POST",
                path="/predict/{name:path}",
                permission="invoke",
                handler=self.predict,
                summary='One text, picture or table row: `{"text": …}`, `{"image": …}`, `{"row": …}`',
                render=render_platform,
                request=dict,
                answer=dict,
                tag="predict",
                body_limit=self._gateway.settings.max_body_bytes,
                codec=PREDICT.codec,
                direct=PREDICT,
            )
        ]

    async def predict(self, inquiry: Inquiry) -> Response:
        """Answer one plain object."""
        gateway, name = self._gateway, inquiry.params["name"]
        if not gateway.is_pipeline(inquiry.principal, name):
            return await invoke_direct(gateway, inquiry, PREDICT)
        route, _ = find_deployment(gateway.routes, inquiry.principal, name)
        plan = make_plan(gateway.routes, inquiry.principal, route)
        return await self._run_pipeline(inquiry, plan)

    async def _run_pipeline(self, inquiry: Inquiry, plan: Plan) -> Response:
        headers = inquiry.headers
        inbound = Inbound(
            door=PREDICT.door,
            request_id=inquiry.id,
            principal=inquiry.principal,
            deployment=plan.route.name,
            codec=PREDICT.codec,
            body=await inquiry.body(),
            headers={name: headers[name] for name in PREDICT.forward if name in headers},
            timeout_seconds=read_timeout(headers.get("x-request-timeout-seconds")),
            sticky=read_sticky(headers.get("x-wherry-sticky")),
            is_background=inquiry.is_background,
        )
        call = PipelineCall(self._gateway, plan, inbound)
        body = await _unless_gone(inquiry, asyncio.ensure_future(call.answer()))
        return Response(body, headers=headers_of(call))


async def _unless_gone(inquiry: Inquiry, answer: asyncio.Future[bytes]) -> bytes:
    """The answer; its work is ended if the client leaves before."""
    gone = asyncio.ensure_future(inquiry.wait_for_disconnect())
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise errors.Cancelled("the client went away")
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()


def headers_of(call: PipelineCall) -> dict[str, str]:
    """Units of all steps together, and how long each of the first took."""
    usage = call.usage
    units = {name: getattr(usage, name) for name in usage.__struct_fields__}
    return {
        "x-wherry-units": ", ".join(f"{name}={count}" for name, count in units.items()),
        "server-timing": ", ".join(
            f'{run.name};dur={run.milliseconds:.2f};desc="{run.version}"'
            for run in call.runs[:MAX_TIMINGS]
        ),
    }
