"""The log: structured lines, with secrets hidden and control characters escaped.

It stands on the standard library, so that lines of uvicorn and Alembic get the same care as ours;
structlog would add 8 MB and 80 ms to every process (it imports rich).
"""

from __future__ import annotations

import itertools
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

MAX_TEXT_CHARACTERS = 2_000
"""Longest event or field; the rest is cut."""
MAX_TRACEBACK_CHARACTERS = 16_000
"""Longest traceback; its beginning is cut, because the end says what happened."""
MAX_FIELDS = 40
MAX_SECRETS = 10_000

_OUR_KEY = re.compile(r"wh-[A-Za-z0-9_-]{43}")
_registered_secrets: dict[str, None] = {}


class Log:
    """A named logger whose calls carry fields: `log.info("worker ready", worker=worker_id)`."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        """Log what only its developer needs."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log what happened."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log what an operator should look at some day."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log what an operator should look at now."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log an error with the traceback of the exception being handled."""
        self._log(logging.ERROR, event, fields, has_traceback=True)

    def _log(
        self, level: int, event: str, fields: dict[str, Any], *, has_traceback: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            # "%s": the event is text of ours or of others, never a format
            self._logger.log(level, "%s", event, exc_info=has_traceback, extra={"fields": fields})


def get_logger(name: str) -> Log:
    """The logger of a part of Wherry, e.g. `gateway`."""
    return Log(name)


def configure_logging(
    log_level: Literal["debug", "info", "warning", "error"],
    log_format: Literal["auto", "text", "json"],
    process: str,
    stream: TextIO | None = None,
) -> None:
    """Send every log line of this process to `stream` (stderr), one record a line.

    Args:
        log_level: the least level that is logged.
        log_format: `auto` is text on a terminal, JSON elsewhere.
        process: name of this process in each line, e.g. `gateway-0`.
        stream: where lines go.
    """
    target: TextIO = stream or sys.stderr
    is_text = log_format == "text" or (log_format == "auto" and target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(TextFormatter(process) if is_text else JsonFormatter(process))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(log_level.upper())
    if log_level != "debug":
        for name in ("uvicorn", "alembic"):  # their start-up lines say nothing to an operator
            logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    # A log that cannot be written (a closed pipe) must not print a traceback for each line.
    logging.raiseExceptions = False


def register_secret(value: str) -> None:
    """Hide `value` wherever it would appear in the log of this process."""
    if len(value) < 8:  # hiding every "a" would make the log useless
        return
    _registered_secrets[value] = None
    while len(_registered_secrets) > MAX_SECRETS:
        _registered_secrets.pop(next(iter(_registered_secrets)))


class Secret:
    """A secret value that no log, error or debugger's output shows; `reveal()` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value
        register_secret(value)

    def reveal(self) -> str:
        """The value itself."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> Any:
        raise TypeError("a secret is not copied to another process")


def redact(text: str) -> str:
    """`text` with registered secrets and anything shaped like a key of ours replaced."""
    for value in _registered_secrets:
        if value in text:
            text = text.replace(value, "***")
    return _OUR_KEY.sub("wh-***", text)


def escape_controls(text: str) -> str:
    r"""`text` on one line: line breaks, terminal codes and text direction marks become `\uXXXX`."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else f"\\u{ord(each):04x}" if ord(each) < 1 << 16 else "�"
        for each in text
    )


class _Formatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def _collect(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = getattr(record, "fields", {})
        return {
            _clean(name): _make_plain(value)
            for name, value in itertools.islice(fields.items(), MAX_FIELDS)
        }

    def _traceback(self, record: logging.LogRecord) -> list[str]:
        if not record.exc_info or record.exc_info[0] is None:
            return []
        text = redact(self.formatException(record.exc_info))[-MAX_TRACEBACK_CHARACTERS:]
        return [escape_controls(line) for line in text.split("\n")]


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record; fields cannot overwrite the line's own keys."""
        line = self._collect(record) | {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "event": _clean(record.getMessage()),
        }
        traceback = self._traceback(record)
        if traceback:
            line["traceback"] = "\n".join(traceback)
        return msgspec.json.encode(line).decode()


class TextFormatter(_Formatter):
    """Lines for people: time, level, process, event, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record; a traceback follows indented, so that no line of it looks like ours."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(
            f"  {name}={_quote(value)}" for name, value in self._collect(record).items()
        )
        head = f"{at} {record.levelname.lower():<7} {self._process:<12}"
        lines = [f"{head} {_clean(record.getMessage())}{fields}", *self._traceback(record)]
        return "\n    ".join(lines)


def _clean(text: str) -> str:
    text = redact(text)
    if len(text) > MAX_TEXT_CHARACTERS:
        text = f"{text[:MAX_TEXT_CHARACTERS]}… ({len(text)} characters)"
    return escape_controls(text)


def _make_plain(value: object) -> bool | int | float | str | None:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < 1 << 63:
        return value
    return _clean(value if isinstance(value, str) else str(value))


def _quote(value: object) -> str:
    text = str(value)
    return f'"{text}"' if not text or " " in text else text
