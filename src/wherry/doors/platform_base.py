"""What the parts of the platform door share: its parts, and reading requests strictly."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

import msgspec

from wherry import errors
from wherry.accounts.keys import Keys, Principal
from wherry.accounts.ledger import Ledger
from wherry.client import schema
from wherry.control.deployments import Deployments
from wherry.control.logs import WorkerLogs
from wherry.control.memory import MemoryBudget
from wherry.doors.errors import render_platform
from wherry.doors.route import Handler, Inquiry, Permission, Response, Row, json_response
from wherry.doors.sse import Streams
from wherry.gateway.predict import Gateway
from wherry.gateway.uplink import Uplink
from wherry.jobs.jobs import Jobs
from wherry.jobs.uploads import Uploads
from wherry.models.registry.registry import Registry
from wherry.settings import Settings
from wherry.storage.database import Database

T = TypeVar("T")

PREFIX = "/platform/v1"
JSON_TYPES = ("application/json", "text/json")
BODY_BYTES = 4 << 20
PAGE_ITEMS = 100
MAX_PAGE_ITEMS = 200
MAX_CURSOR_CHARACTERS = 1000
TRUTHS = {"": False, "false": False, "0": False, "true": True, "1": True}
NAME = re.compile(schema.NAME)
FIELD = re.compile(r"field `([^`]{1,80})`")


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What the handlers work with."""

    settings: Settings
    database: Database
    registry: Registry
    deployments: Deployments
    keys: Keys
    ledger: Ledger
    budget: MemoryBudget
    gateway: Gateway
    uplink: Uplink
    jobs: Jobs
    uploads: Uploads
    logs: WorkerLogs
    streams: Streams


class PageOf(msgspec.Struct, Generic[T]):
    """A list; `next` is the cursor of the following page, if there is one."""

    items: list[T]
    next: str | None = None


# ------------------------------------------------------------------------------ rows


def make_row(
    tag: str,
    method: str,
    path: str,
    permission: Permission,
    handler: Handler,
    summary: str,
    *,
    request: Any = None,
    answer: Any = None,
    query: Sequence[str] = (),
    status: int = 200,
    streams: bool = False,
    body_limit: int = BODY_BYTES,
    content_types: tuple[str, ...] = JSON_TYPES,
) -> Row:
    """A row of the platform door, whose handler refuses query parameters it does not know."""
    allowed = frozenset(query)

    async def checked(inquiry: Inquiry) -> Response:
        refuse_unknown_query(inquiry, allowed)
        return await handler(inquiry)

    return Row(
        method=method,
        path=PREFIX + path,
        permission=permission,
        handler=checked,
        summary=summary,
        render=render_platform,
        request=request,
        answer=answer,
        tag=tag,
        body_limit=body_limit,
        content_types=content_types if request is not None else (),
        status=status,
        streams=streams,
    )


def refuse_unknown_query(inquiry: Inquiry, allowed: frozenset[str]) -> None:
    """A mistyped `dry_run`, or one without its value, must not do the thing for real."""
    for name, value in inquiry.query.items():
        if name not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise errors.InvalidInput(
                f"unknown query parameter {name[:80]!r}", hint=f"known: {known}", param=name[:80]
            )
        if not value:
            raise errors.InvalidInput(
                f"the query parameter {name!r} has no value",
                hint=f"e.g. {name}=true, or leave it out",
                param=name,
            )


# ------------------------------------------------------------------------------ requests


@cache
def _decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


async def read_body(inquiry: Inquiry, kind: type[T]) -> T:
    """The body as `kind`; `InvalidInput` names the field that is wrong."""
    return decode_body(await inquiry.body(), kind)


def decode_body(body: bytes, kind: type[T]) -> T:
    """A body as `kind`; `InvalidInput` names the field that is wrong."""
    try:
        return _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        text = str(error)
        raise errors.InvalidInput(text, param=_param_of(text)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidInput(f"the body is not valid JSON: {error}") from error


def _param_of(message: str) -> str | None:
    """The field that a message of msgspec's names, by its path, or as unknown or missing."""
    found = re.search(r"at `\$\.([^`]{1,200})`", message) or FIELD.search(message)
    return found[1] if found else None


def name_of(inquiry: Inquiry, param: str) -> str:
    """A name in the path; what cannot be a name is not found."""
    name = inquiry.params[param]
    if not NAME.fullmatch(name):
        raise errors.NotFound(
            f"no {param} {name[:80]!r}", hint="names are small letters, digits, . _ -"
        )
    return name


def number_of(inquiry: Inquiry, param: str) -> int:
    """A version's number in the path; what cannot be one is not found."""
    text = inquiry.params[param]
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise errors.ModelNotFound(
            f"no version {text[:80]!r}", hint="versions have numbers: 1, 2 …"
        )
    return int(text)


def read_flag(inquiry: Inquiry, name: str) -> bool:
    """A yes or no of the query; absent = no."""
    text = inquiry.query.get(name, "")
    if text.lower() not in TRUTHS:
        raise errors.InvalidInput(f"{name}={text[:80]!r} is neither true nor false", param=name)
    return TRUTHS[text.lower()]


def read_number(inquiry: Inquiry, name: str, default: int, least: int, most: int) -> int:
    """A whole number of the query within its bounds."""
    text = inquiry.query.get(name)
    if text is None:
        return default
    value = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
    if value is None or not least <= value <= most:
        raise errors.InvalidInput(
            f"{name}={text[:80]!r} is not a whole number from {least} to {most}", param=name
        )
    return value


# ------------------------------------------------------------------------------ pages


def read_limit(inquiry: Inquiry) -> int:
    """How many items of a page the client wants."""
    return read_number(inquiry, "limit", PAGE_ITEMS, 1, MAX_PAGE_ITEMS)


def page_of(inquiry: Inquiry, items: Iterable[T], key: Callable[[T], Any]) -> Response:
    """One page of `items`, which ascend by `key` (JSON values), as the query asks."""
    limit = read_limit(inquiry)
    cursor = read_cursor(inquiry)
    try:
        rest = [item for item in items if cursor is None or key(item) > cursor]
    except TypeError as error:
        raise _bad_cursor() from error
    page = rest[:limit]
    following = write_cursor(key(page[-1])) if len(rest) > limit else None
    return json_response(PageOf(page, following))


def read_cursor(inquiry: Inquiry) -> Any:
    """What `write_cursor` hid in the cursor; None at the first page."""
    text = inquiry.query.get("cursor")
    if not text:
        return None
    try:
        if len(text) > MAX_CURSOR_CHARACTERS:
            raise _bad_cursor()
        return msgspec.json.decode(base64.urlsafe_b64decode(text.encode("ascii")))
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError) as error:
        raise _bad_cursor() from error


def write_cursor(value: Any) -> str:
    """A cursor that stands for a JSON value."""
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode()


def _bad_cursor() -> errors.InvalidInput:
    return errors.InvalidInput(
        "this cursor is none of ours", hint="start without one", param="cursor"
    )


# ------------------------------------------------------------------------------ rights


def may_see(principal: Principal, deployment: str) -> bool:
    """Whether a key may know of a deployment: what it may call, or all of its team."""
    return principal.can_call(deployment)


def require_deployment(principal: Principal, deployment: str) -> None:
    """`ModelNotFound` for a deployment that the key is not made for."""
    if not may_see(principal, deployment):
        raise errors.ModelNotFound(f"no deployment {deployment!r}", hint="wherry ps")
