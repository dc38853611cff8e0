"""Statuses of errors, and their shapes by protocol: the only such tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Container

import msgspec

from wherry import errors
from wherry.errors import TryLater, WherryError

encode = msgspec.json.Encoder().encode

HTTP_STATUS: dict[type[WherryError], int] = {
    errors.InvalidInput: 400,
    errors.ContextLengthExceeded: 400,
    errors.FormatNotAllowed: 422,
    errors.Quarantined: 422,
    errors.TooLarge: 413,
    errors.NotAuthenticated: 401,
    errors.NotPermitted: 403,
    errors.CodeNotAllowed: 403,
    errors.NotFound: 404,
    errors.ModelNotFound: 404,
    errors.Conflict: 409,
    errors.DoesNotFit: 409,
    errors.SandboxMissing: 409,
    errors.TryLater: 503,
    errors.QuotaExceeded: 429,
    errors.Overloaded: 503,
    errors.NotReady: 503,
    errors.Unavailable: 503,
    errors.TimedOut: 504,
    errors.Cancelled: 499,
    errors.ModelFailed: 500,
    errors.WorkerLost: 502,
    errors.UpstreamFailed: 502,
    errors.MissingExtra: 501,
    errors.Internal: 500,
    errors.WherryError: 500,
}

GRPC_STATUS: dict[type[WherryError], str] = {
    errors.InvalidInput: "INVALID_ARGUMENT",
    errors.ContextLengthExceeded: "INVALID_ARGUMENT",
    errors.FormatNotAllowed: "INVALID_ARGUMENT",
    errors.Quarantined: "INVALID_ARGUMENT",
    # as gRPC itself refuses a message that is over its limit
    errors.TooLarge: "RESOURCE_EXHAUSTED",
    errors.NotAuthenticated: "UNAUTHENTICATED",
    errors.NotPermitted: "PERMISSION_DENIED",
    errors.CodeNotAllowed: "PERMISSION_DENIED",
    errors.NotFound: "NOT_FOUND",
    errors.ModelNotFound: "NOT_FOUND",
    errors.Conflict: "FAILED_PRECONDITION",
    errors.DoesNotFit: "FAILED_PRECONDITION",
    errors.SandboxMissing: "FAILED_PRECONDITION",
    errors.TryLater: "UNAVAILABLE",
    errors.QuotaExceeded: "RESOURCE_EXHAUSTED",
    errors.Overloaded: "UNAVAILABLE",
    errors.NotReady: "UNAVAILABLE",
    errors.Unavailable: "UNAVAILABLE",
    errors.TimedOut: "DEADLINE_EXCEEDED",
    errors.Cancelled: "CANCELLED",
    errors.ModelFailed: "INTERNAL",
    # clients repeat what is UNAVAILABLE, and these were perhaps executed
    errors.WorkerLost: "ABORTED",
    errors.UpstreamFailed: "ABORTED",
    errors.MissingExtra: "UNIMPLEMENTED",
    errors.Internal: "INTERNAL",
    errors.WherryError: "INTERNAL",
}
"""Names of gRPC's status codes; its package may not be there."""

_status_by_code = {kind.code: status for kind, status in reversed(HTTP_STATUS.items())}

Rendered = tuple[int, bytes, dict[str, str]]
"""Status, JSON body, headers."""
Renderer = Callable[[WherryError, str], Rendered]
"""An error and the request id → what this protocol's clients can read."""


def status_of_code(code: str) -> int:
    """Status by an error's code; 500 for one we do not know."""
    return _status_by_code.get(code, 500)


def status_of(error: WherryError) -> int:
    """Status by an error's class."""
    return HTTP_STATUS[type(error)]


def grpc_status_of(error: WherryError) -> str:
    """Name of gRPC's status by an error's class."""
    return GRPC_STATUS[type(error)]


def retry_headers(error: WherryError) -> dict[str, str]:
    """`Retry-After` in whole seconds, where repeating helps."""
    if isinstance(error, TryLater):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_seconds)))}
    return {}


_OPENAI_TYPE = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_OPENAI_CODE = {
    "not_authenticated": "invalid_api_key",
    "invalid_input": None,
}


def render_openai(error: WherryError, request_id: str) -> Rendered:
    """`{"error": {message, type, param, code}}`, all four keys always."""
    status = status_of(error)
    if status == 422:
        status = 400
    # the SDKs repeat a 409; a mistake of the client stays one
    if status == 409:
        status = 400
    return status, encode({"error": openai_error(error, status)}), retry_headers(error)


def openai_error(error: WherryError, status: int) -> dict[str, str | None]:
    """The error object itself, also for the last event of a stream."""
    kind = _OPENAI_TYPE.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = _OPENAI_CODE.get(error.code, error.code)
    return {"message": error.text, "type": kind, "param": error.param, "code": code}


_ANTHROPIC_TYPE = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
ANTHROPIC_HEADER = "anthropic-version"
"""What Anthropic's clients always send, and no others."""


def render_anthropic(error: WherryError, request_id: str) -> Rendered:
    """`{"type": "error", "error": {type, message}, "request_id"}`, and the id as they look for it."""
    status = 529 if isinstance(error, errors.Overloaded) else status_of(error)
    # the SDKs repeat a 409; a mistake of the client stays one
    if status in (409, 422):
        status = 400
    headers = retry_headers(error) | {"request-id": request_id}
    return status, encode(anthropic_error(error, status, request_id)), headers


def anthropic_error(error: WherryError, status: int, request_id: str) -> dict[str, object]:
    """The error object itself, also for the last event of a stream."""
    kind = _ANTHROPIC_TYPE.get(status, "invalid_request_error" if status < 500 else "api_error")
    text = f"{error.param}: {error.text}" if error.param else error.text
    return {
        "type": "error",
        "error": {"type": kind, "message": text},
        "request_id": request_id,
    }


def render_inference(error: WherryError, request_id: str) -> Rendered:
    """`{"error": "text"}`: Open Inference clients read nothing else."""
    status = status_of(error)
    return 400 if status == 422 else status, encode({"error": error.text}), retry_headers(error)


def render_cohere(error: WherryError, request_id: str) -> Rendered:
    """`{"message", "detail", …}`: the first is Cohere's, the second Jina's."""
    status = status_of(error)
    body = {
        "message": error.text,
        "detail": error.text,
        "code": error.code,
        "param": error.param,
        "id": request_id,
    }
    return 400 if status == 422 else status, encode(body), retry_headers(error)


_TEI_TYPE = {400: "validation", 413: "validation", 422: "validation", 503: "overloaded"}


def render_tei(error: WherryError, request_id: str) -> Rendered:
    """`{"error", "error_type"}`: Text Embeddings Inference's clients read both."""
    status = status_of(error)
    kind = _TEI_TYPE.get(status, "backend" if status >= 500 else error.code)
    return status, encode({"error": error.text, "error_type": kind}), retry_headers(error)


_HF_TYPE = {400: "validation", 413: "validation", 429: "overloaded", 503: "overloaded"}
MAX_HEADER_TEXT = 500


def render_huggingface(error: WherryError, request_id: str) -> Rendered:
    """`{"error", "error_type"}`, and in headers what Hugging Face's clients show of it."""
    status = 400 if status_of(error) in (409, 422) else status_of(error)
    headers = retry_headers(error)
    headers["x-error-code"] = error.code
    headers["x-error-message"] = error.text[:MAX_HEADER_TEXT]
    return status, encode(huggingface_error(error, status)), headers


def huggingface_error(error: WherryError, status: int) -> dict[str, str]:
    """The object itself, also for the last event of a stream; clients make exceptions by its type."""
    is_named = not error.param or error.param in error.text
    text = error.text if is_named else f"{error.param}: {error.text}"
    kind = _HF_TYPE.get(status, "generation" if status >= 500 else "")
    return {"error": text, "error_type": kind} if kind else {"error": text}


def render_platform(error: WherryError, request_id: str) -> Rendered:
    """`{"error": {code, message, hint, request_id}}`."""
    body = {
        "error": {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "request_id": request_id,
        }
    }
    if error.param:
        body["error"]["param"] = error.param
    return status_of(error), encode(body), retry_headers(error)


_MLFLOW_CODE = {
    400: "INVALID_PARAMETER_VALUE",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    413: "INVALID_PARAMETER_VALUE",
    429: "REQUEST_LIMIT_EXCEEDED",
    503: "TEMPORARILY_UNAVAILABLE",
}


def render_mlflow(error: WherryError, request_id: str) -> Rendered:
    """`{"error_code", "message"}`, the code among those that MLflow knows."""
    status = status_of(error)
    status = 400 if status in (409, 422) else status
    code = _MLFLOW_CODE.get(status, "INTERNAL_ERROR")
    return status, encode({"error_code": code, "message": error.text}), retry_headers(error)


def render_ollama(error: WherryError, request_id: str) -> Rendered:
    """`{"error": "text"}`; tools look for "not found" in it before they pull."""
    status = status_of(error)
    # clients take any other refusal of a request for a fault of the server
    status = 400 if status in (409, 422) else status
    return status, encode({"error": ollama_error(error)}), retry_headers(error)


def ollama_error(error: WherryError) -> str:
    """The text itself, also for the last line of a stream."""
    is_absent = isinstance(error, errors.ModelNotFound)
    return f"model not found: {error.text}" if is_absent else error.text


_HUB_CODE = {"model": "RepoNotFound", "revision": "RevisionNotFound", "path": "EntryNotFound"}
"""Part of the path that names nothing → what the Hub's clients make an exception of."""
HUB_BAD_KEY = "Invalid credentials in Authorization header"
"""By these words they tell a wrong key from a repository that one may not see."""


def render_hub(error: WherryError, request_id: str) -> Rendered:
    """`{"error": "text"}`; clients read the headers `X-Error-Code` and `X-Error-Message`."""
    status = status_of(error)
    headers = retry_headers(error)
    headers["x-error-message"] = HUB_BAD_KEY if status == 401 else error.text
    if status == 404 and error.param in _HUB_CODE:
        headers["x-error-code"] = _HUB_CODE[error.param]
    elif status == 403:  # of any other the client says that the network is down
        headers["x-error-code"] = "GatedRepo"
    return status, encode({"error": error.text}), headers


def renderer_of(path: str, headers: Container[str]) -> Renderer:
    """The shape for paths that match no row."""
    if path.startswith("/v1/messages") or (path.startswith("/v1") and ANTHROPIC_HEADER in headers):
        return render_anthropic
    if path in ("/v1/rerank", "/v2/rerank"):
        return render_cohere
    if path == "/rerank":
        return render_tei
    if path.startswith(("/api/models", "/api/whoami-v2")) or "/resolve/" in path:
        return render_hub
    if path.startswith(("/mlflow/", "/invocations", "/ping", "/version")):
        return render_mlflow
    if path.startswith("/v1/models/") and path.endswith(":predict"):
        return render_inference
    if path.startswith("/api/"):
        return render_ollama
    if path.startswith(("/hf/", "/models/", "/pipeline/")):
        return render_huggingface
    if path.startswith("/v1"):
        return render_openai
    if path.startswith("/v2"):
        return render_inference
    return render_platform
