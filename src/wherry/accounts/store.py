"""The SQL of accounts: teams, keys, and the ledger."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Connection,
    Dialect,
    Row,
    Select,
    case,
    cast,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from wherry.storage.database import bump_revision, read_revisions
from wherry.storage.tables import keys, ledger, ledger_offsets, ledger_tracks, teams

KEYS: Final = "keys"
"""Name of the revision that grows with every change of a key."""

Fields = Mapping[str, Any]

GROUPS = {
    "day": ledger.c.day,
    "key": ledger_tracks.c.key_id,
    "model": ledger_tracks.c.model,
    "deployment": ledger_tracks.c.deployment,
}
"""What usage can be grouped by, and the column of each."""


def _sum(column: Any) -> Any:
    # PostgreSQL's sum of 64-bit numbers is a decimal, and of none it is NULL
    return cast(func.coalesce(func.sum(column), 0), BigInteger)


_SUMS = (
    func.count().label("requests"),
    _sum(case((ledger.c.code != "", 1), else_=0)).label("errors"),
    _sum(ledger.c.input_tokens).label("input_tokens"),
    _sum(ledger.c.output_tokens).label("output_tokens"),
    _sum(ledger.c.rows).label("rows"),
    _sum(ledger.c.characters).label("characters"),
    _sum(ledger.c.audio_ms).label("audio_ms"),
)

_LEDGER = ledger.join(ledger_tracks, ledger_tracks.c.id == ledger.c.track_id)


def _insert_new(connection: Connection, table: Any) -> Any:
    """An INSERT that leaves rows that exist as they are."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table).on_conflict_do_nothing()


# ------------------------------------------------------------------------------ teams


def add_team(connection: Connection, fields: Fields) -> None:
    """Insert a team, unless its name is taken."""
    connection.execute(_insert_new(connection, teams), fields)


def find_team(connection: Connection, name: str) -> Row[Any] | None:
    """The team of a name."""
    return connection.execute(select(teams).where(teams.c.name == name)).one_or_none()


def list_teams(connection: Connection) -> Sequence[Row[Any]]:
    """Every team, by name."""
    return connection.execute(select(teams).order_by(teams.c.name)).all()


# ------------------------------------------------------------------------------ keys


def _select_keys() -> Select[Any]:
    return select(keys, teams.c.name.label("team")).join(teams, teams.c.id == keys.c.team_id)


def add_key(connection: Connection, fields: Fields) -> None:
    """Insert a key, unless its secret has one."""
    fields = {**fields, "changed_revision": _next_revision(connection)}
    connection.execute(_insert_new(connection, keys), fields)


def revoke_key(connection: Connection, key_id: str, at: float) -> None:
    """Mark a key as revoked."""
    fields = {"revoked_at": at, "changed_revision": _next_revision(connection)}
    connection.execute(update(keys).where(keys.c.id == key_id).values(fields))


def find_key(connection: Connection, team_id: str, key_id: str) -> Row[Any] | None:
    """A key of a team."""
    query = _select_keys().where(keys.c.team_id == team_id, keys.c.id == key_id)
    return connection.execute(query).one_or_none()


def find_key_by_digest(connection: Connection, digest: str) -> Row[Any] | None:
    """The key of a secret's digest, whatever its team."""
    return connection.execute(_select_keys().where(keys.c.digest == digest)).one_or_none()


def list_keys(connection: Connection, team_id: str) -> Sequence[Row[Any]]:
    """All keys of a team, the newest first."""
    query = _select_keys().where(keys.c.team_id == team_id)
    return connection.execute(query.order_by(keys.c.created_at.desc(), keys.c.id)).all()


def count_active_keys(connection: Connection, team_id: str) -> int:
    """How many keys of a team are not revoked."""
    query = select(func.count()).where(keys.c.team_id == team_id, keys.c.revoked_at.is_(None))
    return connection.execute(query).scalar_one()


def list_changed_keys(connection: Connection, revision: int) -> Sequence[Row[Any]]:
    """Keys that changed after a revision."""
    return connection.execute(_select_keys().where(keys.c.changed_revision > revision)).all()


def read_keys_revision(connection: Connection) -> int:
    """How often any key has changed."""
    return read_revisions(connection).get(KEYS, 0)


def _next_revision(connection: Connection) -> int:
    bump_revision(connection, KEYS)
    return read_keys_revision(connection)


# ------------------------------------------------------------------------------ ledger


def list_offsets(connection: Connection) -> dict[tuple[str, str], int]:
    """How far each segment has been read, by gateway and segment."""
    rows = connection.execute(select(ledger_offsets)).all()
    return {(row.gateway, row.segment): row.offset for row in rows}


def move_offset(connection: Connection, gateway: str, segment: str, offset: int) -> None:
    """Remember how far a segment has been read; never goes back."""
    fields = {"gateway": gateway, "segment": segment, "offset": offset}
    connection.execute(_insert_new(connection, ledger_offsets), fields)
    connection.execute(
        update(ledger_offsets)
        .where(
            ledger_offsets.c.gateway == gateway,
            ledger_offsets.c.segment == segment,
            ledger_offsets.c.offset < offset,
        )
        .values(offset=offset)
    )


def forget_offset(connection: Connection, gateway: str, segment: str) -> None:
    """Forget a segment that is gone."""
    connection.execute(
        ledger_offsets.delete().where(
            ledger_offsets.c.gateway == gateway, ledger_offsets.c.segment == segment
        )
    )


def add_tracks(connection: Connection, tracks: Sequence[tuple[Any, ...]]) -> None:
    """Insert what rows have in common, unless it is known; values in the order of the columns."""
    names = ledger_tracks.c.keys()
    fields = [dict(zip(names, track, strict=True)) for track in tracks]
    connection.execute(_insert_new(connection, ledger_tracks), fields)


def add_outcomes(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> int:
    """Insert ledger rows whose request is not in it yet, or has failed; tells how many were new.

    Args:
        connection: in a transaction.
        rows: values in the order of the table's columns.
    """
    if not rows:
        return 0
    # By the driver itself: for rows by the thousand, what SQLAlchemy does for each costs more than
    # the database.
    sql, is_positional = _insert_outcome(connection.dialect)
    names = ledger.c.keys()
    values: Any = rows if is_positional else [dict(zip(names, row, strict=True)) for row in rows]
    result = connection.exec_driver_sql(sql, values, execution_options={"preserve_rowcount": True})
    return max(0, result.rowcount)


@lru_cache(maxsize=8)
def _insert_outcome(dialect: Dialect) -> tuple[str, bool]:
    kind = postgresql if dialect.name == "postgresql" else sqlite
    names = ledger.c.keys()
    insert = kind.insert(ledger)
    # The line of a batch keeps its id when it is sent again: its answer takes the place of what
    # failed before, and a second answer, of one that died before it was heard, costs nothing.
    nothing: Any = literal_column("''")
    is_better = (ledger.c.code != nothing) & (insert.excluded.code == nothing)
    insert = insert.on_conflict_do_update(
        index_elements=[ledger.c.request_id],
        set_={name: insert.excluded[name] for name in names if name != "request_id"},
        where=is_better,
    )
    compiled = insert.compile(dialect=dialect, column_keys=names)
    return str(compiled), compiled.positional


def sum_usage(
    connection: Connection,
    team_id: str,
    by: Sequence[str],
    start: str,
    end: str,
    limit: int,
    *,
    key_id: str = "",
    deployments: Collection[str] | None = None,
) -> Sequence[Fields]:
    """Sums of a team's requests between two days, both included, by groups.

    Of one key only, and of some deployments only, if these are given.
    """
    groups = [GROUPS[name].label(name) for name in by]
    where = [ledger_tracks.c.team_id == team_id, ledger.c.day >= start, ledger.c.day <= end]
    if key_id:
        where.append(ledger_tracks.c.key_id == key_id)
    if deployments is not None:
        where.append(ledger_tracks.c.deployment.in_(sorted(deployments)))
    query = (
        select(*groups, *_SUMS)
        .select_from(_LEDGER)
        .where(*where)
        .group_by(*(GROUPS[name] for name in by))
        .order_by(*(GROUPS[name] for name in by))
        .limit(limit)
    )
    return _read_mappings(connection, query)


def sum_since(connection: Connection, team_id: str, at: float, day: str) -> Fields:
    """Sums of a team's requests since a time, which is on `day`."""
    query = (
        select(*_SUMS)
        .select_from(_LEDGER)
        .where(ledger_tracks.c.team_id == team_id, ledger.c.day >= day, ledger.c.at >= at)
    )
    return _read_mappings(connection, query)[0]


def _read_mappings(connection: Connection, query: Any) -> list[Fields]:
    return [dict(row) for row in connection.execute(query).mappings()]
