"""What the server's error answers mean: any of its protocols' shapes → `wherry.errors`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from wherry import errors

MAX_QUOTED_CHARACTERS = 300


class Reply(msgspec.Struct, frozen=True):
    """One HTTP answer; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes = b""


_kind_by_status: dict[int, type[errors.WherryError]] = {
    400: errors.InvalidInput,
    401: errors.NotAuthenticated,
    403: errors.NotPermitted,
    404: errors.NotFound,
    405: errors.NotFound,
    408: errors.TimedOut,
    409: errors.Conflict,
    413: errors.TooLarge,
    415: errors.InvalidInput,
    422: errors.InvalidInput,
    429: errors.QuotaExceeded,
    502: errors.UpstreamFailed,
    503: errors.Unavailable,
    504: errors.TimedOut,
}
"""For answers without a code of ours: other doors' shapes, proxies."""


def read_error(reply: Reply) -> errors.WherryError:
    """The error in an answer; of a fault of the server the hint ends with the request id."""
    body = _read_body(reply)
    message = str(body.get("message") or f"the server answered {reply.status}")
    hint = str(body.get("hint") or "")
    request_id = body.get("request_id") or reply.headers.get("x-request-id")
    if request_id and reply.status >= 500:
        hint = f"{hint} (request {request_id})" if hint else f"request {request_id}"
    delay_seconds = read_retry_after(reply.headers)
    code = body.get("code")
    if isinstance(code, str) and any(kind.code == code for kind in errors.all_errors()):
        return errors.from_code(code, message, hint, delay_seconds)
    kind = _kind_by_status.get(reply.status, errors.Internal)
    return errors.from_code(kind.code, message, hint, delay_seconds)


def read_error_event(data: bytes) -> errors.WherryError | None:
    """The error that an event of a stream carries, if it carries one."""
    try:
        event = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not isinstance(event, dict) or not event.get("error"):
        return None
    return read_error(Reply(500, {}, data))


def read_retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of `Retry-After` (or `retry-after-ms`); 0 if there is none."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * scale)
        except (KeyError, ValueError):
            continue
    return 0.0


def _read_body(reply: Reply) -> dict[str, Any]:
    """`{"error": {…}}` (ours, OpenAI's), `{"error": "…"}` (Open Inference), or any text."""
    try:
        body = msgspec.json.decode(reply.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = " ".join(reply.content.decode("utf-8", "replace").split())
        shown = text[:MAX_QUOTED_CHARACTERS]
        return {"message": f"the server answered {reply.status}: {shown}"} if shown else {}
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return error
    return {"message": error} if isinstance(error, str) else {}
