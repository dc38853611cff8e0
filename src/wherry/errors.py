"""Every error a caller can act on, named for what the caller should do next.

Statuses of HTTP and gRPC are chosen in `wherry.doors.errors` alone. Across a process an error
travels as `(code, message, hint, retry_after_seconds)`, never as a pickle.
"""

from __future__ import annotations


class WherryError(Exception):
    """Base of all; `code` is stable and public, `hint` says what to do next."""

    code = "internal"

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param

    @property
    def text(self) -> str:
        """Message and hint in one line, as protocols without a hint field show them."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidInput(WherryError):
    """The request is wrong and will stay wrong: change it."""

    code = "invalid_input"


class ContextLengthExceeded(InvalidInput):
    """The text does not fit the model's context: shorten it."""

    code = "context_length_exceeded"


class FormatNotAllowed(InvalidInput):
    """The file is of a format that is not served: convert it."""

    code = "format_not_allowed"


class Quarantined(InvalidInput):
    """The input made the model's workers crash: send another, or mend the model."""

    code = "quarantined"


class TooLarge(WherryError):
    """The body or the result is over a limit: send less at once."""

    code = "too_large"


class NotAuthenticated(WherryError):
    """No key, or not a key of ours: send a valid one."""

    code = "not_authenticated"


class NotPermitted(WherryError):
    """The key is known but may not do this: ask for the scope that the hint names."""

    code = "not_permitted"


class CodeNotAllowed(NotPermitted):
    """The operator has not allowed code or pickles: the hint names the setting."""

    code = "code_not_allowed"


class NotFound(WherryError):
    """No such thing, or not one of yours: check the name."""

    code = "not_found"


class ModelNotFound(NotFound):
    """No deployment, model or version by this name for this key."""

    code = "model_not_found"


class Conflict(WherryError):
    """The thing changed or exists already: read it again, then decide."""

    code = "conflict"


class DoesNotFit(Conflict):
    """The model does not fit into this machine's memory: the message shows the sum."""

    code = "does_not_fit"


class SandboxMissing(Conflict):
    """The operator requires a sandbox that this machine's kernel cannot give."""

    code = "sandbox_missing"


class TryLater(WherryError):
    """Right now it cannot be served: repeat after `retry_after_seconds`."""

    code = "try_later"

    def __init__(self, message: str, *, hint: str = "", retry_after_seconds: float = 1.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class QuotaExceeded(TryLater):
    """The key's own limit is reached: slow down."""

    code = "rate_limit_exceeded"


class Overloaded(TryLater):
    """The server has more work than it can finish in time."""

    code = "overloaded"


class NotReady(TryLater):
    """The deployment is stopped, loading or failing."""

    code = "not_ready"


class Unavailable(TryLater):
    """A part the request needs (journal, database) is down; nothing was executed."""

    code = "unavailable"


class TimedOut(WherryError):
    """The deadline passed before there was an answer."""

    code = "timed_out"


class Cancelled(WherryError):
    """The client went away; nobody reads this."""

    code = "cancelled"


class ModelFailed(WherryError):
    """The model raised; its traceback is in `wherry logs`, never in the answer."""

    code = "model_failed"


class WorkerLost(WherryError):
    """The worker died while it had the request, and it was not safe to repeat it."""

    code = "worker_lost"


class UpstreamFailed(WherryError):
    """The server behind an `upstream` model failed or refused."""

    code = "upstream_failed"


class MissingExtra(WherryError):
    """A package is not installed: the hint is the command that installs it."""

    code = "missing_extra"


class Internal(WherryError):
    """A bug of ours: the request id finds it in the log."""

    code = "internal"


def all_errors(root: type[WherryError] = WherryError) -> list[type[WherryError]]:
    """`root` and every class below it, each once, parents before children."""
    found = [root]
    for child in root.__subclasses__():
        found += [each for each in all_errors(child) if each not in found]
    return found


def from_code(
    code: str, message: str, hint: str = "", retry_after_seconds: float = 0.0
) -> WherryError:
    """Rebuild an error that crossed a process; an unknown code becomes `Internal`."""
    for kind in all_errors():
        if kind.code == code and kind is not WherryError:
            if issubclass(kind, TryLater):
                return kind(message, hint=hint, retry_after_seconds=retry_after_seconds or 1.0)
            return kind(message, hint=hint)
    return Internal(message, hint=hint)
