"""Responses that are kept, so that clients can read them again or go on from them.

What is kept of one is bytes to this file. They lie as a file of their own, each different by the
response's id, so that deleting a response deletes them; the table says whose they are, for how long
and how it ended. A conversation is the chain of its turns, and lives as long as the last of them.
"""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from wherry.errors import InvalidInput, NotFound, TooLarge
from wherry.settings import Settings
from wherry.storage.blobs import Blobs, LocalBlobs
from wherry.storage.database import Database
from wherry.storage.tables import stored_responses as table

MAX_TURNS = 256
"""Longest conversation."""
LEASE_SECONDS = 15.0
"""A running response whose gateway was not heard of for so long has failed."""
LOST = "the gateway that ran this response has ended"
ORPHAN_SECONDS = 3600.0
"""A file whose response is not in the table may be on its way into it, but not for so long."""
LOOK_SHARE = 64
"""A team's sum is looked at again when it has added so small a part of what it may keep."""
MAX_LOST_AT_ONCE = 1000


class StoredResponse(msgspec.Struct, frozen=True):
    """A response as it is kept."""

    id: str
    deployment: str
    previous_id: str
    state: str
    """`in_progress`, `completed`, `incomplete`, `failed` or `cancelled`."""
    is_background: bool
    error: str
    """JSON, of one that failed."""
    record: bytes


class Kept(NamedTuple):
    """Where a response lies."""

    id: str
    sha256: str


class ResponseStore:
    """The kept responses of all teams. Any thread or process may call any method at any time.

    Args:
        database: has the table.
        blobs: a store of its own, as what is not in the table is swept from it.
        kept_seconds: how long a response is kept after it was made or gone on from.
        max_team_bytes: what a team may keep; the conversations that rested longest go first.
    """

    def __init__(
        self, database: Database, blobs: Blobs, kept_seconds: float, max_team_bytes: int
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._kept_seconds = kept_seconds
        self._max_team_bytes = max_team_bytes
        self._added: Counter[str] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, settings: Settings, database: Database) -> Self:
        """The one that all processes of a server share."""
        return cls(
            database,
            LocalBlobs(settings.folder / "responses"),
            settings.responses_kept_days * 86_400,
            settings.responses_mib_per_team << 20,
        )

    # ------------------------------------------------------------------ one response

    def add(self, team_id: str, response: StoredResponse) -> None:
        """Keep a response; one in progress has a lease that must be renewed.

        Raises:
            TooLarge: it is larger than all that the team may keep.
            Unavailable: database or disk cannot be written; nothing is kept.
        """
        now = time.time()
        if len(response.record) > self._max_team_bytes:
            raise TooLarge(
                f"the response has {len(response.record)} bytes, a team may keep "
                f"{self._max_team_bytes}",
                hint='send "store": false',
            )
        with self._database.read() as connection:
            earlier = [row.id for row in _chain(connection, team_id, response.previous_id)]
        blob = self._blobs.put(io.BytesIO(response.record))
        values = {
            "id": response.id,
            "team_id": team_id,
            "deployment": response.deployment,
            "previous_id": response.previous_id,
            "state": response.state,
            "is_background": response.is_background,
            "sha256": blob.sha256,
            "size_bytes": blob.size,
            "created_at": now,
            "expires_at": now + self._kept_seconds,
            "lease_until": now + LEASE_SECONDS if response.state == "in_progress" else None,
        }
        with self._database.write() as connection:
            connection.execute(
                update(table).where(table.c.id.in_(earlier)).values(expires_at=values["expires_at"])
            )
            connection.execute(insert(table), values)
        self._note(team_id, blob.size)

    def find(self, team_id: str, response_id: str) -> StoredResponse:
        """A response of a team; `NotFound` if it has none by this id."""
        with self._database.read() as connection:
            row = _find(connection, team_id, response_id)
        if row is None:
            raise _not_found(response_id)
        if _is_lost(row):
            self._fail_lost([response_id])
            return self.find(team_id, response_id)
        return self._load(row)

    def history(self, team_id: str, response_id: str) -> list[StoredResponse]:
        """The conversation that ends with a response, oldest turn first.

        Raises:
            NotFound: one of its turns was deleted or has expired.
            InvalidInput: it has more than `MAX_TURNS`.
        """
        with self._database.read() as connection:
            rows = _chain(connection, team_id, response_id)
        if not rows:
            raise _not_found(response_id, param="previous_response_id")
        if rows[-1].previous_id:
            if len(rows) >= MAX_TURNS:
                raise InvalidInput(
                    f"the conversation has more than {MAX_TURNS} turns",
                    hint="begin a new one",
                    param="previous_response_id",
                )
            raise _not_found(rows[-1].previous_id, param="previous_response_id")
        return [self._load(row) for row in reversed(rows)]

    def delete(self, team_id: str, response_id: str) -> None:
        """Forget a response, for good; conversations cannot go on past it.

        Raises:
            NotFound: the team has none by this id.
        """
        with self._database.write() as connection:
            row = _find(connection, team_id, response_id)
            if row is None:
                raise _not_found(response_id)
            connection.execute(delete(table).where(table.c.id == response_id))
        self._blobs.delete(row.sha256)

    # ------------------------------------------------------------------ those that run

    def finish(self, response_id: str, state: str, record: bytes, error: str = "") -> bool:
        """End a response that was in progress; False if it is no more, and then nothing is kept."""
        blob = self._blobs.put(io.BytesIO(record))
        with self._database.write() as connection:
            running = (table.c.id == response_id, table.c.state == "in_progress")
            row = connection.execute(select(table).where(*running)).one_or_none()
            if row is not None:
                connection.execute(
                    update(table)
                    .where(table.c.id == response_id)
                    .values(
                        state=state,
                        error=error,
                        sha256=blob.sha256,
                        size_bytes=blob.size,
                        lease_until=None,
                    )
                )
        obsolete = blob.sha256 if row is None else row.sha256
        if row is None or obsolete != blob.sha256:
            self._blobs.delete(obsolete)
        if row is not None:
            self._note(row.team_id, blob.size)
        return row is not None

    def ask_cancel(self, team_id: str, response_id: str) -> None:
        """Let the gateway that runs a response stop it."""
        with self._database.write() as connection:
            connection.execute(
                update(table)
                .where(table.c.id == response_id, table.c.team_id == team_id)
                .values(cancel_requested=True)
            )

    def renew(self, response_ids: Iterable[str]) -> set[str]:
        """Say that these still run; those of them that shall not, as they are cancelled or gone."""
        wanted = set(response_ids)
        with self._database.write() as connection:
            mine = table.c.id.in_(wanted)
            connection.execute(
                update(table)
                .where(mine, table.c.state == "in_progress")
                .values(lease_until=time.time() + LEASE_SECONDS)
            )
            goes_on = select(table.c.id).where(
                mine, table.c.state == "in_progress", table.c.cancel_requested.is_(False)
            )
            return wanted - set(connection.execute(goes_on).scalars())

    # ------------------------------------------------------------------ what goes by itself

    def sweep(self) -> int:
        """Delete what has expired and what nobody refers to, end what was lost; how many rows went."""
        now = time.time()
        with self._database.read() as connection:
            query = select(table.c.id).where(table.c.lease_until < now).limit(MAX_LOST_AT_ONCE)
            lost = connection.execute(query).scalars().all()
        self._fail_lost(lost)
        with self._database.write() as connection:
            query = select(table.c.id, table.c.sha256).where(table.c.expires_at < now)
            gone = [Kept(*row) for row in connection.execute(query.limit(MAX_LOST_AT_ONCE))]
            _forget(connection, gone)
        self._delete_files(gone)
        self._sweep_files()
        return len(gone)

    def _sweep_files(self) -> None:
        old = [
            digest
            for digest in self._blobs.digests()
            if self._blobs.age_seconds(digest) >= ORPHAN_SECONDS
        ]
        for start in range(0, len(old), 500):
            some = old[start : start + 500]
            with self._database.read() as connection:
                query = select(table.c.sha256).where(table.c.sha256.in_(some))
                kept = set(connection.execute(query).scalars())
            for digest in some:
                if digest not in kept:
                    self._blobs.delete(digest)

    def _note(self, team_id: str, size: int) -> None:
        """Make room now and then: the sum over all that a team keeps is not asked for each time."""
        with self._lock:
            first = team_id not in self._added
            self._added[team_id] += size
            if not first and self._added[team_id] < self._max_team_bytes // LOOK_SHARE:
                return
            self._added[team_id] = 0
        self._make_room(team_id)

    def _make_room(self, team_id: str) -> None:
        of_team = table.c.team_id == team_id
        with self._database.write() as connection:
            total = connection.execute(
                select(func.coalesce(func.sum(table.c.size_bytes), 0)).where(of_team)
            ).scalar_one()
            gone: list[Kept] = []
            if total > self._max_team_bytes:
                oldest = select(table.c.id, table.c.sha256, table.c.size_bytes).where(of_team)
                for row in connection.execute(oldest.order_by(table.c.expires_at, table.c.id)):
                    if total <= self._max_team_bytes:
                        break
                    total -= row.size_bytes
                    gone.append(Kept(row.id, row.sha256))
                _forget(connection, gone)
        self._delete_files(gone)

    def _delete_files(self, gone: Sequence[Kept]) -> None:
        for each in gone:
            self._blobs.delete(each.sha256)

    def _fail_lost(self, response_ids: Sequence[str]) -> None:
        if not response_ids:
            return
        error = msgspec.json.encode({"code": "server_error", "message": LOST}).decode()
        with self._database.write() as connection:
            connection.execute(
                update(table)
                .where(table.c.id.in_(response_ids), table.c.lease_until < time.time())
                .values(state="failed", error=error, lease_until=None)
            )

    def _load(self, row: Row[Any]) -> StoredResponse:
        try:
            with self._blobs.open(row.sha256) as file:
                record = file.read()
        except NotFound:
            raise _not_found(row.id) from None
        return StoredResponse(
            row.id,
            row.deployment,
            row.previous_id,
            row.state,
            row.is_background,
            row.error,
            record,
        )


# ------------------------------------------------------------------------------ SQL


def _find(connection: Connection, team_id: str, response_id: str) -> Row[Any] | None:
    if not (response_id.isascii() and response_id.isprintable()):
        return None  # some databases refuse such texts
    query = select(table).where(table.c.id == response_id, table.c.team_id == team_id)
    row = connection.execute(query).one_or_none()
    return row if row is not None and row.expires_at > time.time() else None


def _chain(connection: Connection, team_id: str, response_id: str) -> list[Row[Any]]:
    """A response and those before it, as far as they are there."""
    rows: list[Row[Any]] = []
    while response_id and len(rows) < MAX_TURNS:
        row = _find(connection, team_id, response_id)
        if row is None:
            break
        rows.append(row)
        response_id = row.previous_id
    return rows


def _forget(connection: Connection, gone: Sequence[Kept]) -> None:
    ids = [each.id for each in gone]
    for start in range(0, len(ids), 500):
        connection.execute(delete(table).where(table.c.id.in_(ids[start : start + 500])))


def _is_lost(row: Row[Any]) -> bool:
    return row.lease_until is not None and row.lease_until < time.time()


def _not_found(response_id: str, param: str | None = None) -> NotFound:
    return NotFound(
        f"no response {response_id[:80]!r}",
        hint="it was never stored, was deleted or has expired",
        param=param,
    )
