"""The ledger: what every request used, read from the journals exactly once."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, date, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import msgspec

from wherry.accounts import store
from wherry.client.schema import UsageRow
from wherry.errors import InvalidInput
from wherry.storage.database import Database
from wherry.storage.segment import (
    Damage,
    OutcomeRecord,
    is_live,
    list_segments,
    read_segment,
    remove_segment,
    report_damage,
)
from wherry.telemetry import get_logger

RETENTION_SECONDS = 7 * 86_400.0
"""How long a journal segment stays when all of it is in the ledger …"""
RETENTION_BYTES = 1 << 30
"""… unless those that stay together take more than this."""
BATCH_RECORDS = 2_000
MAX_USAGE_ROWS = 100_000
MAX_TEXT_CHARACTERS = 256

Group = Literal["day", "key", "model", "deployment"]
MAX_COUNT = (1 << 31) - 1
MAX_AT = 253_402_300_800
"""Unix seconds of the year 10000."""
DAY_SECONDS = 86_400
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_log = get_logger("ledger")


class Totals(msgspec.Struct, frozen=True):
    """Sums of a team's requests."""

    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    rows: int = 0


class Ledger:
    """The ledger of one database, fed by the journals in one folder."""

    def __init__(
        self,
        database: Database,
        journal_folder: Path,
        *,
        retention_seconds: float = RETENTION_SECONDS,
        retention_bytes: int = RETENTION_BYTES,
    ) -> None:
        self._database = database
        self._folder = journal_folder
        self._retention_seconds = retention_seconds
        self._retention_bytes = retention_bytes

    def ingest(self) -> int:
        """Read what gateways wrote since the last time; tells how many requests are new.

        Any number of processes may do so at once, and any may be killed: a request's row, and how
        far its segment was read, are one transaction, and the first row of a request stays.

        Raises:
            Unavailable: the database cannot be used; the next call goes on from here.
        """
        with self._database.read() as connection:
            offsets = store.list_offsets(connection)
        added, finished = 0, list[Path]()
        for path in list_segments(self._folder):
            was_live = is_live(path)  # asked first: what a dead writer left is all there is
            try:
                added += self._ingest_segment(path, offsets.get((path.parent.name, path.name), 0))
            except FileNotFoundError:
                continue  # another process has read and removed it
            except InvalidInput as error:
                _log.error("a journal segment is not read", segment=path, error=error)
                continue
            if not was_live:
                finished.append(path)
        self._remove_old(finished)
        return added

    def usage(
        self,
        team_id: str,
        by: Sequence[str] = ("key", "model", "day"),
        start: str = "",
        end: str = "",
        *,
        key_id: str = "",
        deployments: Collection[str] | None = None,
    ) -> list[UsageRow]:
        """Sums of a team's requests by groups, from day `start` to day `end` (UTC, included).

        Of the key `key_id` only, and of `deployments` only, if these are given.

        Raises:
            InvalidInput: a group or a day is none, or there are too many rows.
        """
        groups = _check_groups(by)
        first, last = _check_day(start, "from") or "0001-01-01", _check_day(end, "to")
        with self._database.read() as connection:
            rows = store.sum_usage(
                connection,
                team_id,
                groups,
                first,
                last or "9999-12-31",
                MAX_USAGE_ROWS + 1,
                key_id=key_id,
                deployments=deployments,
            )
        if len(rows) > MAX_USAGE_ROWS:
            raise InvalidInput(
                f"the answer has more than {MAX_USAGE_ROWS} rows",
                hint="ask for fewer days, or group by less",
            )
        return [UsageRow(**row) for row in rows]

    def totals_since(self, team_id: str, at: float) -> Totals:
        """Sums of a team's requests since a Unix time."""
        with self._database.read() as connection:
            day = _day_of(int(at // DAY_SECONDS))
            return Totals(**store.sum_since(connection, team_id, at, day))

    def _ingest_segment(self, path: Path, start: int) -> int:
        added, damages = 0, list[Damage]()
        for batch in _batches(read_segment(path, start, damages.append)):
            rows = [to_row(record) for record, _ in batch]
            with self._database.write() as connection:
                added += store.add_outcomes(connection, rows)
                store.move_offset(connection, path.parent.name, path.name, batch[-1][1])
        for damage in damages:
            report_damage(damage)
        if damages:
            _keep_evidence(path)
        return added

    def _remove_old(self, finished: Sequence[Path]) -> None:
        kept_bytes, now = 0, time.time()
        for path in sorted(finished, key=lambda each: each.name, reverse=True):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            kept_bytes += status.st_size
            is_old = now - status.st_mtime >= self._retention_seconds
            if (is_old or kept_bytes > self._retention_bytes) and remove_segment(path):
                with self._database.write() as connection:
                    store.forget_offset(connection, path.parent.name, path.name)


def to_row(record: OutcomeRecord) -> tuple[Any, ...]:
    """The ledger's row of a record, with everything in the range that databases can keep.

    A record that no database takes would stop the ledger for all that follow it.
    """
    row = msgspec.structs.astuple(record)
    request_id, at, counts = row[0], row[1], row[_COUNTED]
    is_sound = (
        _is_sound(row[_ALIKE])
        and len(request_id) <= MAX_TEXT_CHARACTERS
        and "\0" not in request_id
        and min(counts) >= 0
        and max(counts) <= MAX_COUNT
        and 0 <= record.attempts <= MAX_COUNT
        and math.isfinite(record.queued_ms + record.run_ms + record.total_ms)
        and 0 <= at < MAX_AT
    )
    if not is_sound:
        row = msgspec.structs.astuple(_mend(record))
    return (*row[:2], _day_of(int(row[1] // DAY_SECONDS)), *row[2:])


@lru_cache(maxsize=4096)
def _is_sound(alike: tuple[str | int, ...]) -> bool:
    """Whether all databases can keep these fields, which are the same in very many records."""
    return all(
        len(each) <= MAX_TEXT_CHARACTERS and "\0" not in each
        if isinstance(each, str)
        else 0 <= each <= MAX_COUNT
        for each in alike
    )


def _mend(record: OutcomeRecord) -> OutcomeRecord:
    fields: dict[str, Any] = msgspec.structs.asdict(record)
    for name in _TEXTS:
        fields[name] = fields[name].replace("\0", "�")[:MAX_TEXT_CHARACTERS]
    for name in _COUNTS:
        fields[name] = min(max(fields[name], 0), MAX_COUNT)
    for name in _NUMBERS:
        if not math.isfinite(fields[name]):
            fields[name] = 0.0
    if not 0 <= fields["at"] < MAX_AT:
        fields["at"] = 0.0
    return OutcomeRecord(**fields)


@lru_cache(maxsize=64)
def _day_of(number: int) -> str:
    """The day that begins so many days after 1970-01-01."""
    return datetime.fromtimestamp(number * DAY_SECONDS, UTC).strftime("%Y-%m-%d")


def _fields_of(kind: str) -> tuple[str, ...]:
    return tuple(name for name, each in OutcomeRecord.__annotations__.items() if each == kind)


_TEXTS, _COUNTS, _NUMBERS = _fields_of("str"), _fields_of("int"), _fields_of("float")
_PLACES = {name: place for place, name in enumerate(OutcomeRecord.__struct_fields__)}
_ALIKE = slice(_PLACES["team_id"], _PLACES["code"] + 1)
_COUNTED = slice(_PLACES["input_tokens"], _PLACES["rows"] + 1)


def _keep_evidence(path: Path) -> None:
    try:
        path.with_suffix(".damaged").hardlink_to(path)
    except OSError:
        pass  # it is there already, or this file system has no links: the log tells enough


def _batches(
    records: Iterator[tuple[OutcomeRecord, int]],
) -> Iterator[list[tuple[OutcomeRecord, int]]]:
    while batch := list(islice(records, BATCH_RECORDS)):
        yield batch


def _check_groups(by: Sequence[str]) -> list[str]:
    groups = list(dict.fromkeys(by))
    unknown = [name for name in groups if name not in store.GROUPS]
    if unknown:
        raise InvalidInput(
            f"usage cannot be grouped by {unknown[0]!r}",
            hint=f"group by some of {', '.join(store.GROUPS)}",
            param="by",
        )
    return groups


def _check_day(day: str, param: str) -> str:
    if not day:
        return ""
    try:
        if _DAY.fullmatch(day):
            return date.fromisoformat(day).isoformat()
    except ValueError:
        pass
    raise InvalidInput(f"{day!r} is not a day", hint="write YYYY-MM-DD", param=param)
