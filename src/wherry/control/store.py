"""SQL of desired state: which deployments should run, and what happened to them."""

from __future__ import annotations

import time

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from wherry.client.schema import DeploymentSpec, Event
from wherry.control.versions import Versions
from wherry.storage.database import bump_revision, new_id
from wherry.storage.tables import deployments, events, rollouts, teams

MAX_EVENTS = 100_000

decode_spec = msgspec.json.Decoder(DeploymentSpec).decode
decode_versions = msgspec.json.Decoder(Versions).decode
encode = msgspec.json.Encoder().encode


class Desired(msgspec.Struct, frozen=True):
    """A deployment that should run, as the database has it."""

    id: str
    team_id: str
    team: str
    spec: DeploymentSpec
    generation: int
    created_at: float
    updated_at: float

    @property
    def full_name(self) -> str:
        """`team/name`."""
        return f"{self.team}/{self.spec.name}"


def load_desired(connection: Connection, team_id: str | None = None) -> list[Desired]:
    """All deployments, or one team's, by name."""
    query = (
        select(deployments, teams.c.name.label("team"))
        .join(teams, teams.c.id == deployments.c.team_id)
        .order_by(deployments.c.name)
    )
    if team_id is not None:
        query = query.where(deployments.c.team_id == team_id)
    return [
        Desired(
            row.id,
            row.team_id,
            row.team,
            decode_spec(row.spec),
            row.generation,
            row.created_at,
            row.updated_at,
        )
        for row in connection.execute(query)
    ]


def save_spec(connection: Connection, team_id: str, spec: DeploymentSpec) -> None:
    """Create the deployment, or replace its spec."""
    now = time.time()
    where = (deployments.c.team_id == team_id) & (deployments.c.name == spec.name)
    text = encode(spec).decode()
    changed = connection.execute(
        update(deployments)
        .where(where)
        .values(spec=text, generation=deployments.c.generation + 1, updated_at=now)
    )
    if not changed.rowcount:
        connection.execute(
            insert(deployments).values(
                id=new_id("dep"),
                team_id=team_id,
                name=spec.name,
                spec=text,
                created_at=now,
                updated_at=now,
            )
        )
    bump_revision(connection, "deployments")


def delete_deployment(connection: Connection, team_id: str, name: str) -> None:
    """Forget a deployment."""
    connection.execute(
        delete(deployments).where((deployments.c.team_id == team_id) & (deployments.c.name == name))
    )
    bump_revision(connection, "deployments")


def load_versions(connection: Connection, deployment_id: str) -> Versions:
    """What a deployment serves and served; empty if nothing is known."""
    query = select(rollouts.c.state).where(rollouts.c.deployment_id == deployment_id)
    text = connection.execute(query).scalar()
    return decode_versions(text) if text else Versions()


def load_versions_of_team(connection: Connection, team_id: str) -> dict[str, Versions]:
    """The same of all of a team's deployments, by their ids."""
    query = (
        select(rollouts)
        .join(deployments, deployments.c.id == rollouts.c.deployment_id)
        .where(deployments.c.team_id == team_id)
    )
    found = connection.execute(query)
    return {row.deployment_id: decode_versions(row.state) for row in found}


def save_versions(connection: Connection, deployment_id: str, text: str) -> None:
    """Keep it (JSON of `Versions`)."""
    now = time.time()
    changed = connection.execute(
        update(rollouts)
        .where(rollouts.c.deployment_id == deployment_id)
        .values(state=text, updated_at=now)
    )
    if not changed.rowcount:
        connection.execute(
            insert(rollouts).values(deployment_id=deployment_id, state=text, updated_at=now)
        )


def load_events(
    connection: Connection, team_id: str, after: int, topics: list[str], limit: int
) -> list[Event]:
    """Events of a team after an id, oldest first."""
    query = (
        select(events)
        .where((events.c.team_id == team_id) & (events.c.id > after))
        .order_by(events.c.id)
        .limit(limit)
    )
    if topics:
        query = query.where(events.c.topic.in_(topics))
    return [
        Event(
            id=row.id,
            at=row.at,
            topic=row.topic,
            subject=row.subject,
            what=row.what,
            data=msgspec.json.decode(row.data),
        )
        for row in connection.execute(query)
    ]


def last_event_id(connection: Connection, team_id: str) -> int:
    """The newest event's id; 0 if there is none."""
    query = (
        select(events.c.id).where(events.c.team_id == team_id).order_by(events.c.id.desc()).limit(1)
    )
    return connection.execute(query).scalar() or 0


def trim_events(connection: Connection) -> None:
    """Keep the newest."""
    newest = connection.execute(select(events.c.id).order_by(events.c.id.desc()).limit(1)).scalar()
    if newest:
        connection.execute(delete(events).where(events.c.id <= newest - MAX_EVENTS))
