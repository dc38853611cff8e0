"""The ledger: what every request used, read from the journals exactly once."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, date, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import msgspec

from wherry.accounts import store
from wherry.client.schema import UsageRow
from wherry.errors import InvalidInput
from wherry.storage.database import Database
from wherry.storage.segment import (
    Alike,
    Answer,
    Answers,
    Damage,
    OutcomeRecord,
    is_live,
    list_segments,
    read_frames,
    remove_segment,
    report_damage,
)
from wherry.telemetry import get_logger

RETENTION_SECONDS = 7 * 86_400.0
"""How long a journal segment stays when all of it is in the ledger …"""
RETENTION_BYTES = 1 << 30
"""… unless those that stay together take more than this."""
LOOK_SECONDS = 60.0
"""Between looks at segments of which nothing new is known: at their age, and at the database's word
for how far each was read."""
BATCH_RECORDS = 5_000
MAX_USAGE_ROWS = 100_000
MAX_TEXT_CHARACTERS = 256

MAX_TRACKS = 4096

Frame = tuple[OutcomeRecord | Answers, int, int]
Row = tuple[Any, ...]
"""Of the ledger, in the order of its columns."""
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
    characters: int = 0
    audio_ms: int = 0


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
        self._sizes: dict[Path, int] = {}
        """Of the segments, when all that was in them had been read."""
        self._next_look = 0.0

    def ingest(self) -> int:
        """Read what gateways wrote since the last time; tells how many requests are new.

        Any number of processes may do so at once, and any may be killed: a request's row, and how
        far its segment was read, are one transaction, and the first row of a request stays.

        Raises:
            Unavailable: the database cannot be used; the next call goes on from here.
        """
        sizes, now = _sizes_below(self._folder), time.monotonic()
        if sizes == self._sizes and now < self._next_look:
            return 0
        with self._database.read() as connection:
            offsets = store.list_offsets(connection)
        added, finished = 0, list[Path]()
        for path in sizes:
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
        self._sizes, self._next_look = sizes, now + LOOK_SECONDS
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
        for batch in _batches(read_frames(path, start, damages.append)):
            rows: list[Row] = []
            tracks: dict[int, Alike] = {}
            for content, _, _ in batch:
                track, alike, some = read_rows(content)
                rows += some
                tracks[track] = alike
            with self._database.write() as connection:
                store.add_tracks(connection, [(track, *alike) for track, alike in tracks.items()])
                added += store.add_outcomes(connection, rows)
                store.move_offset(connection, path.parent.name, path.name, batch[-1][2])
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


def read_rows(content: OutcomeRecord | Answers) -> tuple[int, Alike, list[Row]]:
    """The ledger's rows of a frame, their track and its id.

    Everything is in the range that databases can keep: what none takes would stop the ledger for
    all that follows it.
    """
    if isinstance(content, Answers):
        track, alike = _find_track(content.alike)
        return track, alike, [_to_row(track, 200, "", answer) for answer in content.answers]
    request_id, at, *fields = msgspec.structs.astuple(content)
    track, alike = _find_track(tuple(fields[:8]))
    status, code, *rest, characters, audio_ms = fields[8:]
    answer: Any = (request_id, at, *rest)
    row = _to_row(track, status, _mend_text(code), answer, characters, audio_ms)
    return track, alike, [row]


def _to_row(
    track: int, status: int, code: str, answer: Answer, characters: int = 0, audio_ms: int = 0
) -> Row:
    request_id, at, tokens_in, tokens_out, rows, queued, run, total, attempts = answer
    if not (
        len(request_id) <= MAX_TEXT_CHARACTERS
        and "\0" not in request_id
        and 0 <= tokens_in <= MAX_COUNT
        and 0 <= tokens_out <= MAX_COUNT
        and 0 <= rows <= MAX_COUNT
        and 0 <= attempts <= MAX_COUNT
        and math.isfinite(queued + run + total)
        and 0 <= at < MAX_AT
    ):
        request_id, at, tokens_in, tokens_out, rows, queued, run, total, attempts = _mend(answer)
    day = _day_of(int(at // DAY_SECONDS))
    return (
        request_id, at, day, track, status, code,
        tokens_in, tokens_out, rows, queued, run, total, attempts,
        _mend_count(characters), _mend_count(audio_ms),
    )  # fmt: skip


def _mend(answer: Answer) -> Answer:
    request_id, at, tokens_in, tokens_out, rows, queued, run, total, attempts = answer
    return (
        _mend_text(request_id),
        at if 0 <= at < MAX_AT else 0.0,
        _mend_count(tokens_in),
        _mend_count(tokens_out),
        _mend_count(rows),
        queued if math.isfinite(queued) else 0.0,
        run if math.isfinite(run) else 0.0,
        total if math.isfinite(total) else 0.0,
        _mend_count(attempts),
    )


def _mend_text(text: str) -> str:
    return text.replace("\0", "�")[:MAX_TEXT_CHARACTERS]


def _mend_count(count: int) -> int:
    return min(max(count, 0), MAX_COUNT)


@lru_cache(maxsize=MAX_TRACKS)
def _find_track(alike: Alike) -> tuple[int, Alike]:
    """The id of what rows have in common, the same in every process; and it, as it can be kept."""
    kept: Any = tuple(
        _mend_text(each) if isinstance(each, str) else _mend_count(each) for each in alike
    )
    digest = sha256(msgspec.msgpack.encode(kept)).digest()
    return int.from_bytes(digest[:8], "big") >> 1, kept


@lru_cache(maxsize=64)
def _day_of(number: int) -> str:
    """The day that begins so many days after 1970-01-01."""
    return datetime.fromtimestamp(number * DAY_SECONDS, UTC).strftime("%Y-%m-%d")


def _sizes_below(folder: Path) -> dict[Path, int]:
    sizes: dict[Path, int] = {}
    for path in list_segments(folder):
        with contextlib.suppress(FileNotFoundError):  # another process has read and removed it
            sizes[path] = path.stat().st_size
    return sizes


def _keep_evidence(path: Path) -> None:
    try:
        path.with_suffix(".damaged").hardlink_to(path)
    except OSError:
        pass  # it is there already, or this file system has no links: the log tells enough


def _batches(frames: Iterator[Frame]) -> Iterator[list[Frame]]:
    """Frames with `BATCH_RECORDS` records together, or a few more."""
    batch: list[Frame] = []
    count = 0
    for frame in frames:
        batch.append(frame)
        content = frame[0]
        count += len(content.answers) if isinstance(content, Answers) else 1
        if count >= BATCH_RECORDS:
            yield batch
            batch, count = [], 0
    if batch:
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
