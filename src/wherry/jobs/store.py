"""The SQL of jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, false, func, insert, select, true, update

from wherry.storage.database import bump_revision
from wherry.storage.tables import jobs, versions

REVISION = "jobs"
ACTIVE = ("queued", "running")


def insert_job(connection: Connection, fields: Mapping[str, Any]) -> None:
    """Add a queued job."""
    connection.execute(insert(jobs), fields)
    bump_revision(connection, REVISION)


def find_job(connection: Connection, job_id: str, team_id: str | None = None) -> Row[Any] | None:
    """A job, of a team if one is given."""
    query = select(jobs).where(jobs.c.id == job_id)
    if team_id is not None:
        query = query.where(jobs.c.team_id == team_id)
    return connection.execute(query).one_or_none()


def list_jobs(connection: Connection, team_id: str, before: str, limit: int) -> Sequence[Row[Any]]:
    """A team's jobs, newest first, from the one before the id `before` (empty = the newest)."""
    query = select(jobs).where(jobs.c.team_id == team_id).order_by(jobs.c.id.desc()).limit(limit)
    if before:
        query = query.where(jobs.c.id < before)
    return connection.execute(query).all()


def list_active(connection: Connection) -> Sequence[Row[Any]]:
    """Queued and running jobs of all teams, oldest first."""
    query = select(jobs).where(jobs.c.state.in_(ACTIVE)).order_by(jobs.c.id)
    return connection.execute(query).all()


def count_active(connection: Connection, team_id: str) -> int:
    """How many jobs of a team are not finished."""
    query = select(func.count()).where(jobs.c.team_id == team_id, jobs.c.state.in_(ACTIVE))
    return connection.execute(query).scalar_one()


def change_job(
    connection: Connection,
    job_id: str,
    fields: Mapping[str, Any],
    *,
    state: str,
    attempt: int | None = None,
) -> bool:
    """Change a job that is still in `state` (and of this attempt); False if it is not."""
    query = update(jobs).where(jobs.c.id == job_id, jobs.c.state == state)
    if attempt is not None:
        query = query.where(jobs.c.attempt == attempt)
    changed = connection.execute(query.values(**fields)).rowcount == 1
    if changed:
        bump_revision(connection, REVISION)
    return changed


def request_cancel(connection: Connection, job_id: str) -> None:
    """Let the queue end a running job."""
    asked = connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == "running", jobs.c.cancel_requested == false())
        .values(cancel_requested=true())
    )
    if asked.rowcount:
        bump_revision(connection, REVISION)


def delete_finished(connection: Connection, keep: int, team_id: str | None = None) -> int:
    """Forget the oldest finished jobs beyond `keep`, of all teams or of one; how many."""
    where = [jobs.c.state.not_in(ACTIVE), *([jobs.c.team_id == team_id] if team_id else [])]
    newest_of_the_old = (
        select(jobs.c.id).where(*where).order_by(jobs.c.id.desc()).offset(keep).limit(1)
    ).scalar_subquery()
    return connection.execute(delete(jobs).where(*where, jobs.c.id <= newest_of_the_old)).rowcount


def list_environments(connection: Connection) -> set[str]:
    """Digests of the Python environments that versions need."""
    query = select(versions.c.environment).where(versions.c.environment != "").distinct()
    return set(connection.execute(query).scalars())
