"""The platform API's overview, doctor and events."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, get_args

import msgspec

from wherry import __version__, errors
from wherry.accounts.keys import ALL_SCOPES, Principal
from wherry.client import schema
from wherry.control.store import last_event_id, load_events
from wherry.doors.platform_base import PageOf, Parts, make_row, may_see, page_of
from wherry.doors.platform_deployments import describe_deployments
from wherry.doors.problems import (
    find_deployment_problems,
    find_exposure,
    find_runtime_problems,
    find_server_problems,
    read_sandbox,
)
from wherry.doors.route import Inquiry, Response, Row, json_response
from wherry.doors.sse import format_event

TOPICS: tuple[str, ...] = get_args(
    next(field.type for field in msgspec.structs.fields(schema.Event) if field.name == "topic")
)
EVENTS_A_LOOK = 200
EVENT_ID = re.compile(r"[0-9]{1,18}")

encode = msgspec.json.Encoder().encode


class OverviewPart:
    """Rows of the server itself."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._started_at = time.time()

    def rows(self) -> list[Row]:
        """The table."""
        return [
            _row(
                "GET",
                "/overview",
                "any",
                self.overview,
                "The server at a glance",
                answer=schema.Overview,
            ),
            _row(
                "GET",
                "/doctor",
                "operate",
                self.doctor,
                "What is wrong, why, and what to do",
                answer=PageOf[schema.Problem],
                query=("limit", "cursor"),
            ),
            _row(
                "GET",
                "/events",
                "any",
                self.events,
                "What happens, as it happens; resumes after Last-Event-ID",
                answer=schema.Event,
                query=("topics", "after"),
                streams=True,
            ),
        ]

    async def overview(self, inquiry: Inquiry) -> Response:
        """Answers also while parts of the server are away: that is when it is needed."""
        principal = inquiry.principal
        told, deployments = await self._look(principal)
        problems = find_deployment_problems(deployments)
        if "operate" in principal.scopes:
            server = await find_server_problems(self._parts, told)
            warnings = find_exposure(self._parts.settings)
            problems += [each for each in [*server, *warnings] if each.severity != "info"]
        known = told or {}
        return json_response(
            schema.Overview(
                version=__version__,
                started_at=known.get("started_at", self._started_at),
                team=principal.team,
                scopes=sorted(principal.scopes & ALL_SCOPES),  # type: ignore[arg-type]
                problems=_worst_first(problems),
                deployments=deployments,
                memory_used_mib=known.get("memory_used_mib", 0),
                memory_limit_mib=known.get("memory_limit_mib", self._parts.budget.limit_mib),
                requests_last_hour=known.get("requests_last_hour", 0),
                errors_last_hour=known.get("errors_last_hour", 0),
                sandbox=self._describe_sandbox(known),
            )
        )

    def _describe_sandbox(self, told: dict[str, Any]) -> str:
        mode = self._parts.settings.sandbox
        sandbox = read_sandbox(told)
        return mode if sandbox is None else f"{mode}: {sandbox}"

    async def doctor(self, inquiry: Inquiry) -> Response:
        """Everything, the worst first."""
        told, deployments = await self._look(inquiry.principal)
        problems = find_deployment_problems(deployments)
        problems += await find_server_problems(self._parts, told)
        problems += await asyncio.to_thread(find_runtime_problems, self._parts.settings.folder)
        problems = _worst_first([*problems, *find_exposure(self._parts.settings)])
        places = {id(problem): place for place, problem in enumerate(problems)}
        return page_of(inquiry, problems, lambda problem: places[id(problem)])

    async def _look(
        self, principal: Principal
    ) -> tuple[dict[str, Any] | None, list[schema.Deployment]]:
        try:
            told = await self._parts.uplink.ask("overview", team_id=principal.team_id)
            return told, await describe_deployments(self._parts, principal)
        except errors.Unavailable:
            return None, []

    # ------------------------------------------------------------------ events

    async def events(self, inquiry: Inquiry) -> Response:
        """From the last that the client has seen, or from now."""
        principal = inquiry.principal
        topics = _read_topics(inquiry.query.get("topics", ""), principal)
        asked = _read_event_id(inquiry)
        after = (
            await asyncio.to_thread(self._last_id, principal.team_id) if asked is None else asked
        )
        revisions = self._parts.streams.revisions
        seen_revision = -2
        is_first = True

        def look() -> tuple[list[schema.Event], int]:
            with self._parts.database.read() as connection:
                found = load_events(connection, principal.team_id, after, topics, EVENTS_A_LOOK)
            return found, len(found)

        async def produce() -> tuple[list[bytes], bool]:
            nonlocal after, seen_revision, is_first
            # a client that loses us before the first event knows where to go on
            head = [b"id: %d\n\n" % after] if is_first else []
            is_first = False
            revision = revisions.value("events")
            if revision == seen_revision:
                return head, False
            found, count = await asyncio.to_thread(look)
            if count < EVENTS_A_LOOK:
                seen_revision = revision
            if found:
                after = found[-1].id
            seen = [each for each in found if _concerns(principal, each)]
            return [*head, *(format_event(encode(each), each.id) for each in seen)], False

        return self._parts.streams.respond(inquiry, produce)

    def _last_id(self, team_id: str) -> int:
        with self._parts.database.read() as connection:
            return last_event_id(connection, team_id)


def _worst_first(problems: list[schema.Problem]) -> list[schema.Problem]:
    order = ("error", "warning", "info")
    return sorted(problems, key=lambda problem: order.index(problem.severity))


def _read_topics(text: str, principal: Principal) -> list[str]:
    topics = [each for each in text.split(",") if each] or list(TOPICS)
    unknown = [each for each in topics if each not in TOPICS]
    if unknown:
        raise errors.InvalidInput(
            f"unknown topic {unknown[0][:80]!r}", hint=f"known: {', '.join(TOPICS)}", param="topics"
        )
    if "admin" in principal.scopes:
        return topics
    if text and "keys" in topics:
        principal.require("admin")
    return [each for each in topics if each != "keys"]


def _read_event_id(inquiry: Inquiry) -> int | None:
    text = inquiry.headers.get("last-event-id") or inquiry.query.get("after")
    if text is None:
        return None
    if not EVENT_ID.fullmatch(text):
        raise errors.InvalidInput(f"{text[:80]!r} is not the id of an event", param="after")
    return int(text)


def _concerns(principal: Principal, event: schema.Event) -> bool:
    return event.topic not in ("deployments", "workers") or may_see(principal, event.subject)


def _row(*arguments: Any, **options: Any) -> Row:
    return make_row("server", *arguments, **options)
