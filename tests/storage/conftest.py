"""What the tests of a failing disk and of power cuts begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import insert
from tests.storage.disk import build_shim

from wherry.storage.database import Database
from wherry.storage.tables import teams


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a team, as the disk has had it for long."""
    folder = tmp_path_factory.mktemp("migrated")
    database = Database.for_folder(folder)
    database.migrate()
    with database.write() as connection:
        connection.execute(insert(teams).values(id="team_1", name="default", created_at=1.0))
    database.close()
    return folder
