"""Tests of teams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from wherry.accounts.teams import Teams
from wherry.errors import InvalidInput, NotFound
from wherry.storage.database import Database


def test_a_team_is_made_once_however_many_ask(database: Database) -> None:
    teams = Teams(database)
    with ThreadPoolExecutor(4) as threads:
        made = set(threads.map(teams.ensure_team, ["research"] * 12))
    assert len(made) == 1
    assert teams.list_teams() == [teams.get_team("research")]


def test_an_unknown_team_is_not_found(database: Database) -> None:
    with pytest.raises(NotFound):
        Teams(database).get_team("nobody")


@pytest.mark.parametrize("name", ["", "Big", "../x", "a b", "a" * 64, "x\n", "-x"])
def test_names_that_are_no_names_are_refused(database: Database, name: str) -> None:
    with pytest.raises(InvalidInput):
        Teams(database).ensure_team(name)
