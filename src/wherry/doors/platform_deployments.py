"""The platform API's deployments: what should run, what runs, what it prints and how it does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.client import schema
from wherry.control.deployments import scaled
from wherry.control.logs import read_lines
from wherry.control.store import Desired
from wherry.doors.log_tail import LogTail
from wherry.doors.platform_base import (
    PageOf,
    Parts,
    make_row,
    may_see,
    name_of,
    page_of,
    read_body,
    read_flag,
    read_number,
    require_deployment,
)
from wherry.doors.route import Inquiry, Response, Row, json_response
from wherry.doors.sse import format_event

HIDDEN = "***"
"""What is shown, and may be sent back, instead of a secret."""
MAX_DEPLOYMENTS_PER_TEAM = 1_000
"""Stopped ones too: the controller looks at all of them again and again."""
MAX_LOG_LINES = 5_000
MAX_WINDOW_SECONDS = 31 * 86_400
MAX_POINTS = 1_000
PAGED = ("limit", "cursor")
ONE = "/deployments/{name}"


class Series(schema.Answer):
    """What `GET /metrics` answers."""

    deployment: str
    points: list[schema.Point]


class DeploymentsPart:
    """Rows of deployments."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def rows(self) -> list[Row]:
        """The table."""
        return [
            _row(
                "GET",
                "/deployments",
                "any",
                self.deployments,
                "Deployments of your team",
                answer=PageOf[schema.Deployment],
                query=PAGED,
            ),
            _row(
                "POST",
                "/deployments:apply",
                "operate",
                self.apply,
                "Make deployments as the specs say, all or none",
                request=schema.ApplyRequest,
                answer=schema.ApplyAnswer,
            ),
            _row(
                "POST",
                ONE + ":scale",
                "operate",
                self.scale,
                "Change how many workers run",
                request=schema.ScaleRequest,
                answer=schema.Deployment,
            ),
            _row(
                "POST",
                ONE + ":start",
                "operate",
                self.start,
                "Load it again",
                answer=schema.Deployment,
            ),
            _row(
                "POST",
                ONE + ":stop",
                "operate",
                self.stop,
                "Unload it and keep its spec",
                answer=schema.Deployment,
            ),
            _row(
                "POST",
                ONE + ":rollback",
                "operate",
                self.rollback,
                "Serve the version before, or end a canary",
                answer=schema.Deployment,
            ),
            _row(
                "POST",
                ONE + ":promote",
                "operate",
                self.promote,
                "Let a canary, or what was rolled back, take over",
                answer=schema.Deployment,
            ),
            _row(
                "GET",
                ONE + "/logs",
                "operate",
                self.logs,
                "What its workers printed; ?follow=true streams what they will",
                answer=PageOf[schema.LogLine],
                query=("lines", "follow"),
                streams=True,
            ),
            _row(
                "GET",
                ONE,
                "any",
                self.deployment,
                "A deployment as it is now",
                answer=schema.Deployment,
            ),
            _row(
                "DELETE",
                ONE,
                "operate",
                self.remove,
                "Stop and forget it",
                answer=schema.ApplyAnswer,
                query=("dry_run",),
            ),
            _row(
                "GET",
                "/workers",
                "operate",
                self.workers,
                "Processes with a version loaded",
                answer=PageOf[schema.WorkerInfo],
                query=PAGED,
            ),
            _row(
                "GET",
                "/metrics",
                "any",
                self.metrics,
                "What a deployment did lately",
                answer=Series,
                query=("deployment", "window_seconds", "points"),
            ),
        ]

    # ------------------------------------------------------------------ looking

    async def deployments(self, inquiry: Inquiry) -> Response:
        """By name."""
        found = await describe_deployments(self._parts, inquiry.principal)
        return page_of(inquiry, found, lambda deployment: deployment.name)

    async def deployment(self, inquiry: Inquiry) -> Response:
        """One."""
        return json_response(await self._find(inquiry.principal, name_of(inquiry, "name")))

    async def workers(self, inquiry: Inquiry) -> Response:
        """By deployment."""
        principal = inquiry.principal
        told = await self._parts.uplink.ask("workers", team_id=principal.team_id)
        workers = msgspec.convert(told, list[schema.WorkerInfo])
        seen = [each for each in workers if may_see(principal, each.deployment)]
        seen.sort(key=_place_of_worker)
        return page_of(inquiry, seen, _place_of_worker)

    async def metrics(self, inquiry: Inquiry) -> Response:
        """Points, oldest first."""
        name = inquiry.query.get("deployment", "")
        if not name:
            raise errors.InvalidInput("which deployment?", param="deployment")
        window = read_number(inquiry, "window_seconds", 3600, 1, MAX_WINDOW_SECONDS)
        count = read_number(inquiry, "points", 60, 1, MAX_POINTS)
        deployment = await self._find(inquiry.principal, name)
        told = await self._parts.uplink.ask(
            "metrics",
            deployment=f"{deployment.team}/{deployment.name}",
            window_seconds=window,
            points=count,
        )
        return json_response(
            Series(deployment=name, points=msgspec.convert(told, list[schema.Point]))
        )

    # ------------------------------------------------------------------ changing

    async def apply(self, inquiry: Inquiry) -> Response:
        """All of them, or none and why."""
        request = await read_body(inquiry, schema.ApplyRequest)
        principal = inquiry.principal
        for spec in request.deployments:
            if not may_see(principal, spec.name):
                raise errors.NotPermitted(
                    f"this key is not made for deployment {spec.name!r}",
                    hint="ask an admin for a key that may",
                )

        def change() -> list[schema.Change]:
            team_id = principal.team_id
            kept = {each.spec.name: each.spec for each in self._parts.deployments.load(team_id)}
            _check_count({*kept, *(spec.name for spec in request.deployments)}, len(kept))
            specs = [_keep_secrets(spec, kept.get(spec.name)) for spec in request.deployments]
            return self._parts.deployments.apply(team_id, specs, dry_run=request.dry_run)

        return await self._applied(await asyncio.to_thread(change), request.dry_run)

    async def scale(self, inquiry: Inquiry) -> Response:
        """Zero workers, and nothing that wakes them, is a stop."""
        name = name_of(inquiry, "name")
        request = await read_body(inquiry, schema.ScaleRequest)
        desired = await self._desired(inquiry.principal, name)
        fields = scaled(desired.spec, request.min, request.max)
        return await self._change(inquiry.principal, name, fields, dry_run=request.dry_run)

    async def start(self, inquiry: Inquiry) -> Response:
        """Load what was stopped."""
        return await self._change(inquiry.principal, name_of(inquiry, "name"), {"stopped": False})

    async def stop(self, inquiry: Inquiry) -> Response:
        """Requests are refused until it is started."""
        return await self._change(inquiry.principal, name_of(inquiry, "name"), {"stopped": True})

    async def rollback(self, inquiry: Inquiry) -> Response:
        """At once while the version before is still loaded."""
        return await self._order(inquiry, "rollback")

    async def promote(self, inquiry: Inquiry) -> Response:
        """Without further proof."""
        return await self._order(inquiry, "promote")

    async def _order(self, inquiry: Inquiry, order: str) -> Response:
        name, principal = name_of(inquiry, "name"), inquiry.principal
        require_deployment(principal, name)
        await self._parts.uplink.ask("order", team_id=principal.team_id, name=name, order=order)
        return json_response(await self._find(principal, name))

    async def remove(self, inquiry: Inquiry) -> Response:
        """Its model stays."""
        name, principal = name_of(inquiry, "name"), inquiry.principal
        dry_run = read_flag(inquiry, "dry_run")
        require_deployment(principal, name)
        change = await asyncio.to_thread(
            self._parts.deployments.remove, principal.team_id, name, dry_run=dry_run
        )
        return await self._applied([change], dry_run)

    async def _change(
        self, principal: Principal, name: str, fields: Mapping[str, Any], *, dry_run: bool = False
    ) -> Response:
        desired = await self._desired(principal, name)
        await asyncio.to_thread(
            self._parts.deployments.change, principal.team_id, name, dry_run=dry_run, **fields
        )
        if dry_run:
            spec = msgspec.structs.replace(desired.spec, **fields)
            deployment = await self._find(principal, name)
            deployment.spec = _hide_secrets(spec)
            return json_response(deployment)
        await self._parts.uplink.settle()
        return json_response(await self._find(principal, name))

    async def _applied(self, changes: list[schema.Change], dry_run: bool) -> Response:
        if not dry_run:
            await self._parts.uplink.settle()
        for change in changes:
            if "secrets" in change.fields:
                change.fields["secrets"] = [_hide(value) for value in change.fields["secrets"]]
        return json_response(schema.ApplyAnswer(changes=changes, dry_run=dry_run))

    # ------------------------------------------------------------------ logs

    async def logs(self, inquiry: Inquiry) -> Response:
        """The last lines; with `follow` a stream that goes on."""
        principal, name = inquiry.principal, name_of(inquiry, "name")
        lines = read_number(inquiry, "lines", 100, 0, MAX_LOG_LINES)
        desired = await self._desired(principal, name)
        path = self._parts.logs.path(desired.full_name)
        if not read_flag(inquiry, "follow"):
            found = await asyncio.to_thread(read_lines, path, lines) if lines else []
            return json_response(PageOf[schema.LogLine](found))
        tail = LogTail(path, lines, inquiry.headers.get("last-event-id", ""))

        async def produce() -> tuple[list[bytes], bool]:
            new = await asyncio.to_thread(tail.read)
            return [format_event(line, position) for position, line in new], False

        return self._parts.streams.respond(inquiry, produce)

    # ------------------------------------------------------------------ finding

    async def _find(self, principal: Principal, name: str) -> schema.Deployment:
        for deployment in await describe_deployments(self._parts, principal):
            if deployment.name == name:
                return deployment
        raise errors.ModelNotFound(f"no deployment {name[:80]!r}", hint="wherry ps")

    async def _desired(self, principal: Principal, name: str) -> Desired:
        require_deployment(principal, name)
        return await asyncio.to_thread(self._parts.deployments.find, principal.team_id, name)


async def describe_deployments(parts: Parts, principal: Principal) -> list[schema.Deployment]:
    """What the key may see, by name: as it should run and as it runs.

    The controller may not have read the latest change yet: then the database's word holds.

    Raises:
        Unavailable: the controller does not answer.
    """
    told = await parts.uplink.ask("deployments", team_id=principal.team_id)
    running = {each.name: each for each in msgspec.convert(told, list[schema.Deployment])}
    try:
        all_desired = await asyncio.to_thread(parts.deployments.load, principal.team_id)
    except errors.Unavailable:
        found = list(running.values())  # what runs is known without the database
    else:
        found = [_merge(desired, running.get(desired.spec.name)) for desired in all_desired]
    return sorted(
        (each for each in found if may_see(principal, each.name)), key=lambda each: each.name
    )


def _merge(desired: Desired, running: schema.Deployment | None) -> schema.Deployment:
    if running is not None and running.updated_at >= desired.updated_at:
        return running
    spec = _hide_secrets(desired.spec)
    is_stopped = spec.stopped
    return schema.Deployment(
        name=spec.name,
        team=desired.team,
        task=running.task if running else "",
        state="stopped" if is_stopped else "starting",
        cause="stopped by an operator" if is_stopped else "the change is being carried out",
        remedy=f"wherry start {spec.name}" if is_stopped else "",
        spec=spec,
        versions=running.versions if running else {},
        replicas_ready=running.replicas_ready if running else 0,
        created_at=desired.created_at,
        updated_at=desired.updated_at,
    )


def _hide_secrets(spec: schema.DeploymentSpec) -> schema.DeploymentSpec:
    return msgspec.structs.replace(spec, secrets=dict.fromkeys(spec.secrets, HIDDEN))


def _hide(value: Any) -> Any:
    return dict.fromkeys(value, HIDDEN) if isinstance(value, dict) else value


def _keep_secrets(
    spec: schema.DeploymentSpec, before: schema.DeploymentSpec | None
) -> schema.DeploymentSpec:
    """A spec that was read, changed and sent back has stars where its secrets are."""
    kept = before.secrets if before is not None else {}
    secrets = {
        name: kept.get(name, value) if value == HIDDEN else value
        for name, value in spec.secrets.items()
    }
    if HIDDEN in secrets.values():
        raise errors.InvalidInput(
            f"deployment {spec.name!r} has no such secret to keep",
            hint="send the reference, e.g. env:WHERRY_SECRET_NAME",
            param="secrets",
        )
    return msgspec.structs.replace(spec, secrets=secrets)


def _check_count(names: set[str], before: int) -> None:
    if len(names) > max(MAX_DEPLOYMENTS_PER_TEAM, before):
        raise errors.Conflict(
            f"the team would have {len(names)} deployments, at most {MAX_DEPLOYMENTS_PER_TEAM} "
            "are allowed",
            hint="first remove some: wherry undeploy NAME",
        )


def _place_of_worker(worker: schema.WorkerInfo) -> list[str]:
    return [worker.deployment, worker.id]


def _row(*arguments: Any, **options: Any) -> Row:
    return make_row("deployments", *arguments, **options)
