"""For operators and their tools: liveness, readiness, metrics, OpenAPI, the docs page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from wherry import errors
from wherry.accounts.teams import DEFAULT_TEAM
from wherry.doors.errors import render_platform
from wherry.doors.openapi import describe_rows
from wherry.doors.route import Inquiry, Permission, Response, Row, json_response
from wherry.gateway.predict import Gateway
from wherry.gateway.uplink import Uplink
from wherry.telemetry import PROMETHEUS_CONTENT_TYPE, Registry, Snapshot, merge, render_prometheus

STATIC = Path(__file__).parent / "static"
DOCS_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
STATIC_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css"}


def only_team(snapshot: Snapshot, team: str) -> Snapshot:
    """The series of one team's deployments."""
    return Snapshot(
        [
            msgspec.structs.replace(
                family,
                series=[
                    each
                    for each in family.series
                    if each.labels[:1] and each.labels[0].startswith(f"{team}/")
                ],
            )
            for family in snapshot.families
        ]
    )


decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode


class OperationsDoor:
    """Rows for operators.

    Args:
        gateway: the data plane, for readiness.
        uplink: the controller, for everybody's metrics.
        registry: this gateway's own metrics.
        all_rows: every row of every door, for OpenAPI.
    """

    def __init__(
        self,
        gateway: Gateway,
        uplink: Uplink,
        registry: Registry,
        all_rows: Callable[[], list[Row]],
    ) -> None:
        self._gateway = gateway
        self._uplink = uplink
        self._registry = registry
        self._all_rows = all_rows
        self._openapi: dict[str, Any] | None = None

    def rows(self) -> list[Row]:
        """The table."""
        return [
            self._row(
                "/", "open", self.root, "Whether this is Wherry; browsers are led to the docs"
            ),
            self._row("/livez", "open", self.livez, "Whether the process answers"),
            self._row("/readyz", "open", self.readyz, "Whether it can serve, and if not, why"),
            self._row("/metrics", "operate", self.metrics, "Prometheus text of all gateways"),
            self._row("/openapi.json", "any", self.openapi, "This API, described"),
            self._row("/docs", "open", self.docs, "This API, for reading and trying"),
            self._row("/docs/{file}", "open", self.docs_file, "A part of the docs page"),
        ]

    def _row(self, path: str, permission: Permission, handler: Any, summary: str) -> Row:
        return Row(
            method="GET",
            path=path,
            permission=permission,
            handler=handler,
            summary=summary,
            render=render_platform,
            tag="operations",
        )

    async def root(self, inquiry: Inquiry) -> Response:
        """What KServe's and Ollama's clients look for; people get the docs page."""
        if "text/html" in inquiry.headers.get("accept", ""):
            return Response(status=303, headers={"location": "/docs"})
        return json_response({"name": "wherry", "status": "alive"})

    async def livez(self, inquiry: Inquiry) -> Response:
        """The event loop turns."""
        return json_response({"live": True})

    async def readyz(self, inquiry: Inquiry) -> Response:
        """Routes are known, outcomes can be recorded, executors make progress."""
        problems: list[str] = []
        if not self._uplink.epoch:
            problems.append("the controller has sent no routes yet")
        if not self._gateway.settler.is_healthy:
            problems.append("the journal cannot record")
        problems += [f"worker {name} makes no progress" for name in self._gateway.stuck_workers()]
        body = {"ready": not problems, "problems": problems}
        return json_response(body, 503 if problems else 200)

    async def metrics(self, inquiry: Inquiry) -> Response:
        """Counts of all gateways; of this one alone while the controller is away."""
        try:
            snapshot = decode_snapshot(await self._uplink.ask("counts"))
        except errors.Unavailable:
            snapshot = merge([self._registry.snapshot()])
        team = inquiry.principal.team
        if team != DEFAULT_TEAM:  # the team of the server's operator sees all
            snapshot = only_team(snapshot, team)
        return Response(render_prometheus(snapshot), content_type=PROMETHEUS_CONTENT_TYPE)

    async def openapi(self, inquiry: Inquiry) -> Response:
        """OpenAPI 3.1, made from the rows."""
        if self._openapi is None:
            self._openapi = describe_rows(self._all_rows())
        return json_response(self._openapi)

    async def docs(self, inquiry: Inquiry) -> Response:
        """The page; it asks for the key and keeps it in memory only."""
        return self._static("docs.html")

    async def docs_file(self, inquiry: Inquiry) -> Response:
        """Script or style of the page."""
        name = inquiry.params["file"]
        if name not in ("docs.js", "docs.css"):
            raise errors.NotFound(f"no such file {name[:100]!r}")
        return self._static(name)

    def _static(self, name: str) -> Response:
        path = STATIC / name
        kind = STATIC_TYPES[path.suffix]
        return Response(path.read_bytes(), content_type=kind, headers=dict(DOCS_HEADERS))
