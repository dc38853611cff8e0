"""Commands about keys and what they used: keys create|list|revoke, usage."""

# ruff: noqa: D417  # what every command has is described once, in command.py

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, get_args

from cyclopts import App, Parameter

from wherry import errors
from wherry.cli.command import ACCESS, DEFAULT, Common, DryRun, app, command
from wherry.cli.output import (
    UsageError,
    format_age,
    note,
    parse_duration,
    print_table,
    show,
)
from wherry.client.calls.accounts import Grouping
from wherry.client.schema import Key, KeyLimits, NewKey, Scope, UsageRow

if TYPE_CHECKING:
    from wherry.client import Client

keys_app = App(name="keys", help="Make, list and revoke keys.", group=ACCESS)
app.command(keys_app)


@command(
    "create",
    group=ACCESS,
    parent=keys_app,
    examples=[
        "wherry keys create ci",
        "wherry keys create web --deployment mood --expires 30d",
    ],
)
def create(
    name: str,
    /,
    *,
    scope: list[Scope] | None = None,
    deployment: list[str] | None = None,
    expires: str | None = None,
    requests_per_minute: int = 0,
    tokens_per_minute: int = 0,
    concurrency: int = 0,
    dry_run: DryRun = False,
    common: Common = DEFAULT,
) -> None:
    """Make a key. Its secret is shown this once, alone on standard output.

    Args:
        name: What people call it.
        scope: What it may do; may be given several times. Default: invoke.
        deployment: One it may call; may be given several times. Default: all of the team.
        expires: Ends after so long, e.g. 30d.
        requests_per_minute: 0 = no limit.
        tokens_per_minute: 0 = no limit.
        concurrency: Requests at once; 0 = no limit.
    """
    with common.connect() as client:
        key = client.keys.create(
            name,
            scopes=scope or ["invoke"],
            deployments=deployment or [],
            expires_at=time.time() + parse_duration(expires) if expires else None,
            limits=KeyLimits(
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                concurrency=concurrency,
            ),
            dry_run=dry_run,
        )
    show(common, key, lambda: _print_new_key(key, dry_run=dry_run))


def _print_new_key(key: NewKey, *, dry_run: bool) -> None:
    if dry_run:
        print(f"would make the key {key.name!r} with {', '.join(key.scopes)}")
        return
    note(f"key {key.id} ({key.name}), {', '.join(key.scopes)}; this is the only time it is shown:")
    print(key.secret)


@command("list", group=ACCESS, parent=keys_app, examples=["wherry keys list"])
def list_keys(*, common: Common = DEFAULT) -> None:
    """List the keys of your team, without their secrets."""
    with common.connect() as client:
        found = client.keys.list()
    columns = ("NAME", "STATE", "SCOPES", "DEPLOYMENTS", "AGE", "STARTS WITH", "ID")
    show(common, found, lambda: print_table(columns, [_key_row(key) for key in found]))


def _key_row(key: Key) -> tuple[str, ...]:
    state = "active"
    if key.expires_at is not None:
        state = "expired" if key.expires_at < time.time() else _days_left(key.expires_at)
    if key.revoked_at is not None:
        state = "revoked"
    return (
        key.name,
        state,
        ", ".join(key.scopes),
        ", ".join(key.deployments) or "all",
        format_age(key.created_at),
        key.prefix,
        key.id,
    )


def _days_left(expires_at: float) -> str:
    return f"active, {(expires_at - time.time()) / 86_400:.0f} d left"


@command("revoke", group=ACCESS, parent=keys_app, examples=["wherry keys revoke KEY_ID"])
def revoke(key: str, /, *, dry_run: DryRun = False, common: Common = DEFAULT) -> None:
    """End a key, for good and at once.

    Args:
        key: Its id, or its name if only one key has it.
    """
    with common.connect() as client:
        revoked = client.keys.revoke(_find_key_id(client.keys.list(), key), dry_run=dry_run)
        is_ours = client.transport.address.key.startswith(revoked.prefix)
    word = "would revoke" if dry_run else "revoked"
    if is_ours:
        note("it is the key in use here; a server without an admin key makes one when it starts")
    show(common, revoked, lambda: print(f"{word} {revoked.id} ({revoked.name})"))


def _find_key_id(keys: list[Key], wanted: str) -> str:
    if any(key.id == wanted for key in keys):
        return wanted
    named = [key.id for key in keys if key.name == wanted and key.revoked_at is None]
    if len(named) == 1:
        return named[0]
    if named:
        raise errors.Conflict(
            f"{len(named)} keys have the name {wanted!r}", hint="give the id: " + ", ".join(named)
        )
    raise errors.NotFound(f"no key {wanted!r}", hint="wherry keys list")


@command(
    "usage",
    group=ACCESS,
    examples=["wherry usage", "wherry usage --by key,day --from 2026-01-01 -o json"],
)
def usage(
    *,
    by: str = "deployment",
    start: Annotated[str | None, Parameter(name="--from")] = None,
    end: Annotated[str | None, Parameter(name="--to")] = None,
    common: Common = DEFAULT,
) -> None:
    """Show what was used.

    Args:
        by: What a row stands for: key, model, deployment, day; several with commas between.
        start: First day (UTC), YYYY-MM-DD.
        end: Last day.
    """
    groups = [each.strip() for each in by.split(",") if each.strip()]
    known: tuple[Grouping, ...] = get_args(Grouping)
    chosen: list[Grouping] = [each for each in known if each in groups]
    if unknown := set(groups) - set(known):
        raise UsageError(
            f"cannot sum by {', '.join(sorted(unknown))!r}", hint="known: " + ", ".join(known)
        )
    with common.connect() as client:
        rows = client.usage(chosen, start=start, end=end)
        names = _read_key_names(client) if "key" in chosen and common.output == "table" else {}
    show(common, rows, lambda: _print_usage(chosen, rows, names))


def _read_key_names(client: Client) -> dict[str, str]:
    """Key id → what people call it, with the id where several have the name.

    Empty for who may not see the keys.
    """
    try:
        keys = client.keys.list()
    except errors.NotPermitted:
        return {}
    counts = Counter(key.name for key in keys)
    return {key.id: key.name if counts[key.name] == 1 else f"{key.name} ({key.id})" for key in keys}


_NUMBERS = {
    "requests": "REQUESTS",
    "errors": "ERRORS",
    "input_tokens": "TOKENS IN",
    "output_tokens": "TOKENS OUT",
    "rows": "ROWS",
}
_RARE = {"characters": "CHARACTERS", "audio_ms": "SOUND MS"}
"""Shown where there are any."""


def _print_usage(
    groups: list[Grouping], rows: list[UsageRow], key_names: Mapping[str, str]
) -> None:
    rare = {name: each for name, each in _RARE.items() if any(getattr(row, name) for row in rows)}
    numbers = _NUMBERS | rare
    columns = [*(name.upper() for name in groups), *numbers.values()]
    lines = [[str(getattr(row, name)) for name in (*groups, *numbers)] for row in rows]
    print_table(columns, [[key_names.get(cell, cell) for cell in line] for line in lines])
