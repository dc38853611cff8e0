"""Keys and what they used."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Literal

from wherry.client.schema import Key, KeyLimits, KeyRequest, NewKey, Scope, UsageRow
from wherry.client.wire import Call, ask, ask_for_all, platform

Grouping = Literal["key", "model", "deployment", "day"]


def list_keys() -> Call[list[Key]]:
    """The keys of your team, without their secrets."""
    return (yield from ask_for_all(platform("GET", "keys"), Key))


def create_key(
    name: str,
    *,
    scopes: Sequence[Scope] = ("invoke",),
    deployments: Sequence[str] = (),
    expires_at: datetime.datetime | float | None = None,
    limits: KeyLimits | None = None,
    dry_run: bool = False,
) -> Call[NewKey]:
    """Make a key; its `secret` is told this once.

    Args:
        name: what people call it.
        scopes: what it may do; no more than the calling key may.
        deployments: those it may call; empty = all of the team.
        expires_at: time, or Unix seconds; None = never.
        limits: bounds of the key.
        dry_run: only check.
    """
    if isinstance(expires_at, datetime.datetime):
        expires_at = expires_at.timestamp()
    body = KeyRequest(
        name=name,
        scopes=list(scopes),
        deployments=list(deployments),
        expires_at=expires_at,
        limits=limits or KeyLimits(),
        dry_run=dry_run,
    )
    return (yield from ask(platform("POST", "keys", body=body), NewKey))


def revoke_key(key_id: str, *, dry_run: bool = False) -> Call[Key]:
    """End a key, for good and at once."""
    return (yield from ask(platform("DELETE", "keys", key_id, query={"dry_run": dry_run}), Key))


def read_usage(
    by: Sequence[Grouping] = ("deployment",),
    *,
    start: datetime.date | str | None = None,
    end: datetime.date | str | None = None,
) -> Call[list[UsageRow]]:
    """What was used, summed by `by`.

    Args:
        by: what a row stands for.
        start: first day (UTC), as a date or `YYYY-MM-DD`.
        end: last day.
    """
    query = {"by": ",".join([by] if isinstance(by, str) else by), "from": start, "to": end}
    return (yield from ask_for_all(platform("GET", "usage", query=query), UsageRow))
