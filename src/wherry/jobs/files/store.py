"""The SQL of files and of uploads in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update

from wherry.storage.tables import file_parts, file_uploads, files

Fields = Mapping[str, Any]

PENDING = "pending"


def _current(query: Any, now: float) -> Any:
    return query.where(or_(files.c.expires_at.is_(None), files.c.expires_at > now))


# ------------------------------------------------------------------------------ files


def insert_file(connection: Connection, fields: Fields) -> None:
    """Add a file."""
    connection.execute(insert(files), fields)


def find_file(connection: Connection, team_id: str, file_id: str, now: float) -> Row[Any] | None:
    """A file of a team that has not expired."""
    query = select(files).where(files.c.team_id == team_id, files.c.id == file_id)
    return connection.execute(_current(query, now)).one_or_none()


def list_files(
    connection: Connection,
    team_id: str,
    now: float,
    *,
    purpose: str,
    after: str,
    limit: int,
    is_ascending: bool,
) -> Sequence[Row[Any]]:
    """A team's files by age, from the one behind the id `after` (empty = the first)."""
    query = _current(select(files).where(files.c.team_id == team_id), now).limit(limit)
    if purpose:
        query = query.where(files.c.purpose == purpose)
    if after:
        query = query.where(files.c.id > after if is_ascending else files.c.id < after)
    order = files.c.id.asc() if is_ascending else files.c.id.desc()
    return connection.execute(query.order_by(order)).all()


def delete_file(connection: Connection, file_id: str) -> None:
    """Forget a file."""
    connection.execute(delete(files).where(files.c.id == file_id))


def list_expired(connection: Connection, now: float) -> Sequence[Row[Any]]:
    """Files whose time has passed, of all teams."""
    return connection.execute(select(files).where(files.c.expires_at <= now)).all()


def list_ids(connection: Connection) -> set[str]:
    """Ids of all files and of all pending uploads: what may lie in the folder."""
    pending = select(file_uploads.c.id).where(file_uploads.c.state == PENDING)
    return {
        *connection.execute(select(files.c.id)).scalars(),
        *connection.execute(pending).scalars(),
    }


def sum_files(connection: Connection, team_id: str, now: float) -> tuple[int, int]:
    """How many files a team has and will have of its uploads, and their bytes together."""
    count, size = 0, 0
    kept = _current(
        select(func.count(), func.coalesce(func.sum(files.c.size_bytes), 0)).where(
            files.c.team_id == team_id
        ),
        now,
    )
    announced = select(func.count(), func.coalesce(func.sum(file_uploads.c.size_bytes), 0)).where(
        file_uploads.c.team_id == team_id,
        file_uploads.c.state == PENDING,
        file_uploads.c.expires_at > now,
    )
    for query in (kept, announced):
        found, found_bytes = connection.execute(query).one()
        count, size = count + int(found), size + int(found_bytes)
    return count, size


# ------------------------------------------------------------------------------ uploads


def insert_upload(connection: Connection, fields: Fields) -> None:
    """Add a pending upload."""
    connection.execute(insert(file_uploads), fields)


def find_upload(connection: Connection, team_id: str, upload_id: str) -> Row[Any] | None:
    """An upload of a team."""
    query = select(file_uploads).where(
        file_uploads.c.team_id == team_id, file_uploads.c.id == upload_id
    )
    return connection.execute(query).one_or_none()


def end_upload(
    connection: Connection, upload_id: str, state: str, file_id: str | None = None
) -> bool:
    """Complete or cancel an upload that is pending; False if it is not."""
    query = update(file_uploads).where(
        file_uploads.c.id == upload_id, file_uploads.c.state == PENDING
    )
    return connection.execute(query.values(state=state, file_id=file_id)).rowcount == 1


def delete_old_uploads(connection: Connection, before: float) -> None:
    """Forget uploads, and their parts, that expired before a time."""
    connection.execute(delete(file_uploads).where(file_uploads.c.expires_at < before))


def insert_part(connection: Connection, fields: Fields) -> None:
    """Add a part."""
    connection.execute(insert(file_parts), fields)


def list_parts(connection: Connection, upload_id: str) -> Sequence[Row[Any]]:
    """An upload's parts in the order in which they came."""
    query = select(file_parts).where(file_parts.c.upload_id == upload_id)
    return connection.execute(query.order_by(file_parts.c.id)).all()
