"""The platform API's runtimes: where each framework is, and environments of their own for them."""

from __future__ import annotations

import asyncio
from typing import Any

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.client import schema
from wherry.doors.platform_base import PageOf, Parts, make_row, page_of, read_flag
from wherry.doors.route import Inquiry, Response, Row, json_response
from wherry.jobs.runtime_environments import RuntimeEnvironments, check_installable
from wherry.jobs.work import InstallWork

RUNTIME = "/runtimes/{runtime}"


class RuntimesPart:
    """Rows of runtimes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._environments = RuntimeEnvironments(parts.settings.folder / "environments")

    def rows(self) -> list[Row]:
        """The table."""
        return [
            _row(
                "GET",
                "/runtimes",
                "any",
                self.runtimes,
                "What can run models here, and where it is installed",
                answer=PageOf[schema.RuntimeInfo],
                query=("limit", "cursor"),
            ),
            _row(
                "POST",
                RUNTIME + ":install",
                "operate",
                self.install,
                "Install a runtime into an environment of its own",
                answer=schema.Job,
                status=202,
            ),
            _row(
                "DELETE",
                RUNTIME,
                "operate",
                self.remove,
                "Remove a runtime's own environment",
                answer=schema.RuntimeInfo,
                query=("dry_run",),
            ),
        ]

    async def runtimes(self, inquiry: Inquiry) -> Response:
        """All that Wherry brings."""
        found = await asyncio.to_thread(self._environments.list)
        return page_of(inquiry, found, lambda runtime: runtime.name)

    async def install(self, inquiry: Inquiry) -> Response:
        """As a job: a framework takes minutes."""
        name = inquiry.params["runtime"]
        await asyncio.to_thread(self._environments.find, name)
        check_installable(name)
        team_id = inquiry.principal.team_id
        job = await asyncio.to_thread(self._parts.jobs.submit, team_id, InstallWork(runtime=name))
        self._parts.uplink.nudge()
        return json_response(job, 202)

    async def remove(self, inquiry: Inquiry) -> Response:
        """Refused while a deployment needs it."""
        name, is_dry = inquiry.params["runtime"], read_flag(inquiry, "dry_run")
        return json_response(
            await asyncio.to_thread(self._remove, inquiry.principal, name, is_dry=is_dry)
        )

    def _remove(self, principal: Principal, name: str, *, is_dry: bool) -> schema.RuntimeInfo:
        found = self._environments.find(name)
        if found.place == "own environment":
            self._refuse_used(principal, name)
        if not is_dry:
            self._environments.remove(name, self._parts.jobs.used_environments())
        return found

    def _refuse_used(self, principal: Principal, name: str) -> None:
        users = self._parts.deployments.users_of_runtime(name)
        if not users:
            return
        mine = sorted(each.spec.name for each in users if each.team_id == principal.team_id)
        others = len(users) - len(mine)
        shown = [*map(repr, mine[:5]), *([f"{others} of other teams"] if others else [])]
        raise errors.Conflict(
            f"deployments need the environment of runtime {name!r}: {', '.join(shown)}",
            hint="stop or remove them first",
        )


def _row(*arguments: Any, **options: Any) -> Row:
    return make_row("runtimes", *arguments, **options)
