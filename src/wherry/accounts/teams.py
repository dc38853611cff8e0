"""Teams: who owns models, deployments, keys and bills."""

from __future__ import annotations

import time
from re import fullmatch

import msgspec

from wherry.accounts import store
from wherry.client.schema import NAME
from wherry.errors import InvalidInput, NotFound
from wherry.storage.database import Database, new_id

DEFAULT_TEAM = "default"
"""Exists from the first start."""


class Team(msgspec.Struct, frozen=True):
    """A team."""

    id: str
    name: str
    created_at: float


class Teams:
    """The teams of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ensure_team(self, name: str) -> Team:
        """The team of a name, made if there is none; many processes may ask at once."""
        if not fullmatch(NAME, name):
            raise InvalidInput(
                f"{name!r} cannot name a team", hint="use small letters, digits, '.', '_' and '-'"
            )
        with self._database.write() as connection:
            store.add_team(
                connection, {"id": new_id("team"), "name": name, "created_at": time.time()}
            )
            row = store.find_team(connection, name)
        assert row is not None
        return Team(row.id, row.name, row.created_at)

    def get_team(self, name: str) -> Team:
        """The team of a name.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as connection:
            row = store.find_team(connection, name)
        if row is None:
            raise NotFound(f"no team {name!r}")
        return Team(row.id, row.name, row.created_at)

    def list_teams(self) -> list[Team]:
        """Every team, by name."""
        with self._database.read() as connection:
            return [Team(row.id, row.name, row.created_at) for row in store.list_teams(connection)]
