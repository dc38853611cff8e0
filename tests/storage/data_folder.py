"""A data folder as tests find it that do not care how it came to be."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import insert

from wherry.storage.database import Database
from wherry.storage.tables import teams


def make_data_folder(folder: Path, **names: str) -> Path:
    """Migrate the database in a folder, and put teams in it.

    Args:
        folder: where.
        names: of the teams, by id.
    """
    database = Database.for_folder(folder)
    database.migrate()
    with database.write() as connection:
        for team_id, name in names.items():
            connection.execute(insert(teams).values(id=team_id, name=name, created_at=1.0))
    database.close()
    return folder
