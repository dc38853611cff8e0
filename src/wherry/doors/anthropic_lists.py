"""What all of Anthropic's rows have in common: the header of ids, and pages by id."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import msgspec

from wherry.doors.route import Inquiry, Response
from wherry.errors import InvalidInput

DEFAULT_PAGE, MAX_PAGE = 20, 1000
"""Things of one page, as the protocol has it."""
REQUEST_ID = "request-id"
"""Where Anthropic's clients look for what is `x-request-id` elsewhere."""

T = TypeVar("T")


class PageOf(msgspec.Struct, Generic[T]):
    """A page of a list."""

    data: list[T]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Span(msgspec.Struct, frozen=True):
    """Which part of a list a client asks for: just after an id, just before one, or the first."""

    limit: int
    after: str
    before: str


def read_span(query: dict[str, str]) -> Span:
    """The part of a list that a query names.

    Raises:
        InvalidInput: it has too large a limit, or names two parts.
    """
    text = query.get("limit", str(DEFAULT_PAGE))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInput(f"limit must be 1 to {MAX_PAGE}", param="limit")
    if "after_id" in query and "before_id" in query:
        raise InvalidInput(
            "after_id and before_id exclude each other", hint="send one", param="before_id"
        )
    return Span(limit, query.get("after_id", ""), query.get("before_id", ""))


def page_of(data: Sequence[Any], *, has_more: bool) -> PageOf[Any]:
    """A page with what it has, in order."""
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return PageOf(list(data), has_more, first, last)


def with_request_id(response: Response, inquiry: Inquiry) -> Response:
    """An answer with its id where Anthropic's clients look for it."""
    if response.fields:
        response.fields.append((REQUEST_ID.encode(), inquiry.id.encode("latin-1")))
    else:
        response.headers[REQUEST_ID] = inquiry.id
    return response


def show_time(unix_seconds: float) -> str:
    """RFC 3339, in whole seconds."""
    return datetime.fromtimestamp(int(unix_seconds), UTC).isoformat().replace("+00:00", "Z")
