"""The SQL of the registry: models, versions, aliases and the blobs they need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from wherry.storage.tables import aliases, models, teams, version_blobs, versions

StoredModel = Row[Any]
"""Columns of `models`, and the team's name as `team`."""
StoredVersion = Row[Any]
"""Columns of `versions`."""

DIGESTS_A_QUERY = 500
"""SQLite takes 32 766 parameters, other databases fewer."""


def find_model(connection: Connection, team_id: str, name: str) -> StoredModel | None:
    """The model of this name, with its team's name."""
    query = (
        select(models, teams.c.name.label("team"))
        .join(teams, teams.c.id == models.c.team_id)
        .where(models.c.team_id == team_id, models.c.name == name)
    )
    return connection.execute(query).one_or_none()


def list_models(
    connection: Connection, team_id: str, after: str, limit: int
) -> Sequence[StoredModel]:
    """Models of a team whose names come after `after`, by name."""
    query = (
        select(models, teams.c.name.label("team"))
        .join(teams, teams.c.id == models.c.team_id)
        .where(models.c.team_id == team_id, models.c.name > after)
        .order_by(models.c.name)
        .limit(limit)
    )
    return connection.execute(query).all()


def insert_model(connection: Connection, **values: Any) -> None:
    """Add a model."""
    connection.execute(insert(models).values(**values))


def next_number(connection: Connection, model_id: str) -> int:
    """The number of the model's next version; none is ever given out twice."""
    query = (
        update(models)
        .where(models.c.id == model_id)
        .values(last_number=models.c.last_number + 1)
        .returning(models.c.last_number)
    )
    return connection.execute(query).scalar_one()


def delete_model(connection: Connection, model_id: str) -> None:
    """Remove a model with its versions and aliases."""
    connection.execute(delete(models).where(models.c.id == model_id))


def insert_version(connection: Connection, blobs: Iterable[str], **values: Any) -> None:
    """Add a version and note which blobs it needs."""
    connection.execute(insert(versions).values(**values))
    rows = [{"version_id": values["id"], "sha256": sha256} for sha256 in sorted(set(blobs))]
    connection.execute(insert(version_blobs), rows)


def find_version(
    connection: Connection,
    model_id: str,
    *,
    number: int | None = None,
    digest: str = "",
    prefix: str = "",
) -> StoredVersion | None:
    """The version of a number, a digest or a digest's beginning; the newest if none is given."""
    query = select(versions).where(versions.c.model_id == model_id)
    if number is not None:
        query = query.where(versions.c.number == number)
    if digest:
        query = query.where(versions.c.digest == digest)
    if prefix:
        query = query.where(versions.c.digest.startswith(prefix, autoescape=True))
    return connection.execute(query.order_by(versions.c.number.desc()).limit(1)).one_or_none()


def list_versions(connection: Connection, model_id: str) -> Sequence[StoredVersion]:
    """Versions of a model, oldest first."""
    query = select(versions).where(versions.c.model_id == model_id).order_by(versions.c.number)
    return connection.execute(query).all()


def list_numbers(connection: Connection, model_ids: Iterable[str]) -> dict[str, list[int]]:
    """Numbers of the versions of several models, oldest first."""
    query = select(versions.c.model_id, versions.c.number).order_by(versions.c.number)
    found: dict[str, list[int]] = {model_id: [] for model_id in model_ids}
    for row in connection.execute(query.where(versions.c.model_id.in_(list(found)))):
        found[row.model_id].append(row.number)
    return found


def list_newest(connection: Connection, model_ids: Iterable[str]) -> dict[str, StoredVersion]:
    """The newest version of each of several models."""
    newest = (
        select(versions.c.model_id, func.max(versions.c.number).label("number"))
        .where(versions.c.model_id.in_(list(model_ids)))
        .group_by(versions.c.model_id)
        .subquery()
    )
    query = select(versions).join(
        newest,
        (versions.c.model_id == newest.c.model_id) & (versions.c.number == newest.c.number),
    )
    return {row.model_id: row for row in connection.execute(query)}


def delete_version(connection: Connection, model_id: str, number: int) -> None:
    """Remove a version, and the aliases that point to it."""
    where = (versions.c.model_id == model_id) & (versions.c.number == number)
    connection.execute(delete(versions).where(where))


def list_aliases(connection: Connection, model_ids: Iterable[str]) -> dict[str, dict[str, int]]:
    """Alias → number, of several models."""
    found: dict[str, dict[str, int]] = {model_id: {} for model_id in model_ids}
    query = select(aliases).where(aliases.c.model_id.in_(list(found))).order_by(aliases.c.name)
    for row in connection.execute(query):
        found[row.model_id][row.name] = row.version_number
    return found


def set_alias(connection: Connection, model_id: str, name: str, number: int) -> None:
    """Let an alias point to a version, wherever it pointed before."""
    remove_alias(connection, model_id, name)
    connection.execute(insert(aliases).values(model_id=model_id, name=name, version_number=number))


def remove_alias(connection: Connection, model_id: str, name: str) -> bool:
    """Forget an alias; False if there was none."""
    where = (aliases.c.model_id == model_id) & (aliases.c.name == name)
    return connection.execute(delete(aliases).where(where)).rowcount > 0


def used_blobs(connection: Connection, digests: Iterable[str]) -> set[str]:
    """Which of these blobs some version needs."""
    column = version_blobs.c.sha256
    return _present(connection, column, digests)


def used_bundles(connection: Connection, digests: Iterable[str]) -> set[str]:
    """Which of these digests some version has."""
    return _present(connection, versions.c.digest, digests)


def _present(connection: Connection, column: Any, values: Iterable[str]) -> set[str]:
    wanted = sorted(set(values))
    found: set[str] = set()
    for start in range(0, len(wanted), DIGESTS_A_QUERY):
        part = wanted[start : start + DIGESTS_A_QUERY]
        found.update(connection.execute(select(column).where(column.in_(part))).scalars())
    return found
