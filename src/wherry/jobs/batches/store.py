"""The SQL of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from wherry.jobs.store import ACTIVE as ACTIVE_JOBS
from wherry.storage.tables import batches, jobs

ENDED = ("completed", "failed", "expired", "cancelled")


def insert_batch(connection: Connection, fields: Mapping[str, Any]) -> None:
    """Add a batch."""
    connection.execute(insert(batches), fields)


def find_batch(
    connection: Connection, batch_id: str, team_id: str | None = None
) -> Row[Any] | None:
    """A batch, of a team if one is given."""
    query = select(batches).where(batches.c.id == batch_id)
    if team_id is not None:
        query = query.where(batches.c.team_id == team_id)
    return connection.execute(query).one_or_none()


def list_batches(
    connection: Connection, team_id: str, *, after: str, before: str, limit: int, endpoint: str
) -> Sequence[Row[Any]]:
    """A team's batches, newest first; empty = no such bound, any endpoint."""
    query = select(batches).where(batches.c.team_id == team_id)
    if endpoint:
        query = query.where(batches.c.endpoint == endpoint)
    if after:
        query = query.where(batches.c.id < after)
    if before:
        nearest = query.where(batches.c.id > before).order_by(batches.c.id).limit(limit)
        return connection.execute(nearest).all()[::-1]
    return connection.execute(query.order_by(batches.c.id.desc()).limit(limit)).all()


def delete_batch(connection: Connection, batch_id: str) -> None:
    """Forget a batch."""
    connection.execute(delete(batches).where(batches.c.id == batch_id))


def change_batch(connection: Connection, batch_id: str, fields: Mapping[str, Any]) -> bool:
    """Change a batch that has not ended; False if it has."""
    query = update(batches).where(batches.c.id == batch_id, batches.c.state.not_in(ENDED))
    return connection.execute(query.values(**fields)).rowcount == 1


def list_orphans(connection: Connection) -> Sequence[Row[Any]]:
    """Batches that have not ended although their jobs have, or are not there any more."""
    query = (
        select(batches, jobs.c.error, jobs.c.hint)
        .outerjoin(jobs, jobs.c.id == batches.c.job_id)
        .where(
            batches.c.state.not_in(ENDED),
            (jobs.c.id.is_(None)) | (jobs.c.state.not_in(ACTIVE_JOBS)),
        )
    )
    return connection.execute(query).all()
