"""What OpenAI's lists of files and batches have in common: pages by id, and when things expire."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from wherry.doors.errors import render_openai
from wherry.doors.route import Handler, Inquiry, Row
from wherry.errors import InvalidInput

JSON_TYPES = ("application/json", "text/json")
BODY_BYTES = 1 << 20
ID = re.compile(r"[a-z]{1,12}_[0-9a-z]{26}")

T = TypeVar("T")


class Identified(msgspec.Struct):
    """Anything with an id."""

    id: str


class ListOf(msgspec.Struct, Generic[T], kw_only=True):
    """A page."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ExpiresAfter(msgspec.Struct):
    """From an hour to thirty days after something was made."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)]


def page_of(found: Sequence[Any], limit: int) -> ListOf[Any]:
    """A page of what was looked for with one more than its limit."""
    data = list(found[:limit])
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return ListOf(data=data, first_id=first, last_id=last, has_more=len(found) > limit)


def read_after(inquiry: Inquiry) -> str:
    """The id behind which a page begins; empty = at the start."""
    after = inquiry.query.get("after", "")
    if after and not ID.fullmatch(after):
        raise InvalidInput(f"after={after[:80]!r} is no id", param="after")
    return after


def make_row(
    method: str,
    path: str,
    handler: Handler,
    summary: str,
    *,
    answer: Any,
    request: Any = None,
    content_types: tuple[str, ...] = JSON_TYPES,
    body_limit: int = BODY_BYTES,
) -> Row:
    """A row that no line of a batch may name."""
    return Row(
        method=method,
        path=path,
        permission="invoke",
        handler=handler,
        summary=summary,
        render=render_openai,
        request=request,
        answer=answer,
        tag="openai",
        body_limit=body_limit,
        content_types=content_types if request is not None else (),
        in_batches=False,
    )
