"""The platform API's keys, and what was used."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.client import schema
from wherry.doors.platform_base import (
    PageOf,
    Parts,
    make_row,
    page_of,
    read_body,
    read_flag,
)
from wherry.doors.route import Inquiry, Response, Row, json_response
from wherry.storage.database import add_event

KEY_ID = re.compile(r"key_[0-9a-z]{26}")
PAGED = ("limit", "cursor")
DEFAULT_GROUPS = "key,model,day"
USAGE_SECONDS = 10.0
"""How long the pages of one answer are cut from the same sums."""
MAX_KEPT_SUMS = 16


class AccountsPart:
    """Rows of keys and usage."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._sums: dict[tuple[str, ...], tuple[float, list[schema.UsageRow]]] = {}

    def rows(self) -> list[Row]:
        """The table."""
        return [
            _row(
                "GET",
                "/keys",
                "admin",
                self.keys,
                "Keys of your team, newest first",
                answer=PageOf[schema.Key],
                query=PAGED,
            ),
            _row(
                "POST",
                "/keys",
                "admin",
                self.create_key,
                "Make a key; its secret is told once",
                request=schema.KeyRequest,
                answer=schema.NewKey,
                status=201,
            ),
            _row(
                "DELETE",
                "/keys/{id}",
                "admin",
                self.revoke_key,
                "End a key, for good",
                answer=schema.Key,
                query=("dry_run",),
            ),
            _row(
                "GET",
                "/usage",
                "any",
                self.usage,
                "Sums of what was used; without `operate` of your own key only",
                answer=PageOf[schema.UsageRow],
                query=("by", "from", "to", *PAGED),
            ),
        ]

    async def keys(self, inquiry: Inquiry) -> Response:
        """Revoked ones too, without secrets."""
        keys = await asyncio.to_thread(self._parts.keys.list_keys, inquiry.principal.team_id)
        return page_of(inquiry, keys, lambda key: [-key.created_at, key.id])

    async def create_key(self, inquiry: Inquiry) -> Response:
        """It may do no more than the key that makes it."""
        request = await read_body(inquiry, schema.KeyRequest)
        principal = inquiry.principal

        def create() -> schema.NewKey:
            key = self._parts.keys.create_key(principal.team_id, request, principal)
            if not request.dry_run:
                self._tell(principal.team_id, key, "created", principal.key_id)
            return key

        key = await asyncio.to_thread(create)
        # the secret is shown this once: nobody on the way may keep it
        headers = {"cache-control": "no-store"}
        return json_response(key, 200 if request.dry_run else 201, headers)

    async def revoke_key(self, inquiry: Inquiry) -> Response:
        """Every gateway knows within a second."""
        key_id, principal = inquiry.params["id"], inquiry.principal
        dry_run = read_flag(inquiry, "dry_run")
        if not KEY_ID.fullmatch(key_id):
            raise errors.NotFound(
                f"no key {key_id[:80]!r}", hint="`wherry keys list` shows them by id"
            )

        def revoke() -> schema.Key:
            key = self._parts.keys.revoke_key(principal.team_id, key_id, dry_run=dry_run)
            if not dry_run:
                self._tell(principal.team_id, key, "revoked", principal.key_id)
            return key

        return json_response(await asyncio.to_thread(revoke))

    def _tell(self, team_id: str, key: schema.Key, what: str, by: str) -> None:
        with self._parts.database.write() as connection:
            add_event(connection, team_id, "keys", key.id, what, {"name": key.name, "by": by})

    # ------------------------------------------------------------------ usage

    async def usage(self, inquiry: Inquiry) -> Response:
        """Rows by the groups asked for."""
        groups = [each for each in inquiry.query.get("by", DEFAULT_GROUPS).split(",") if each]
        start, end = inquiry.query.get("from", ""), inquiry.query.get("to", "")
        principal = inquiry.principal
        asked = (principal.team_id, principal.key_id, ",".join(groups), start, end)
        rows = self._remembered(asked)
        if rows is None or "cursor" not in inquiry.query:
            rows = await asyncio.to_thread(self._sum, principal, groups, start, end)
            self._remember(asked, rows)
        return page_of(inquiry, rows, _place_of_row)

    def _sum(
        self, principal: Principal, groups: list[str], start: str, end: str
    ) -> list[schema.UsageRow]:
        """What the key may see: without `operate` its own, with it that of its deployments."""
        is_operator = "operate" in principal.scopes
        rows = self._parts.ledger.usage(
            principal.team_id,
            groups,
            start,
            end,
            key_id="" if is_operator else principal.key_id,
            deployments=principal.deployments if is_operator else None,
        )
        return sorted(rows, key=_place_of_row)

    def _remembered(self, asked: tuple[str, ...]) -> list[schema.UsageRow] | None:
        at, rows = self._sums.get(asked, (0.0, []))
        return rows if time.monotonic() - at < USAGE_SECONDS and at else None

    def _remember(self, asked: tuple[str, ...], rows: list[schema.UsageRow]) -> None:
        self._sums.pop(asked, None)
        self._sums[asked] = (time.monotonic(), rows)
        while len(self._sums) > MAX_KEPT_SUMS:
            del self._sums[next(iter(self._sums))]


def _place_of_row(row: schema.UsageRow) -> list[str]:
    return [row.day, row.key, row.model, row.deployment]


def _row(*arguments: Any, **options: Any) -> Row:
    return make_row("accounts", *arguments, **options)
