"""Brings a database to this Wherry's schema, after copying one that holds data."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from wherry.errors import Conflict, Unavailable
from wherry.storage.folders import sync_folder
from wherry.storage.migrations import HEAD, REVISIONS

if TYPE_CHECKING:
    from wherry.storage.database import Database


def migrate(database: Database) -> None:
    """See `Database.migrate`; Alembic is imported only when there is something to do."""
    with database.read() as connection:
        found = read_revision(connection)
    if found == HEAD:
        return
    _refuse_newer(found)
    if found is not None and database.file is not None:
        _back_up(database, database.file.with_name(f"{database.file.name}.before-{HEAD}"))
    with _exclusive_connection(database) as connection:
        _refuse_newer(read_revision(connection))  # another process may have been faster
        _run_alembic(connection)


def read_revision(connection: Connection) -> str | None:
    """The revision a database is at; None for a new one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _refuse_newer(revision: str | None) -> None:
    if revision is not None and revision not in REVISIONS:
        raise Conflict(
            f"the database is at revision {revision!r}, which this Wherry does not know",
            hint="a newer Wherry wrote it: upgrade wherry, or use another data folder",
        )


def _back_up(database: Database, target: Path) -> None:
    """Copy the SQLite file as one transaction saw it; a failed copy leaves nothing."""
    temporary = target.with_name(f"{target.name}.part")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    try:
        with closing(database.engine.raw_connection()) as connection:
            connection.cursor().execute("VACUUM INTO ?", (str(temporary),))
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _exclusive_connection(database: Database) -> Generator[Connection]:
    """A write transaction in which SQLite may rebuild a table without deleting its dependents.

    Rebuilding means DROP TABLE, which deletes rows that refer to it by ON DELETE CASCADE; SQLite
    lets foreign keys be switched only outside a transaction.
    """
    with database.engine.connect() as connection:
        driver = connection.connection.driver_connection
        if driver is None:
            raise Unavailable("the database closed the connection")
        if database.file is not None:
            driver.execute("PRAGMA foreign_keys = OFF")
        try:
            connection.execution_options(wherry_write=True)
            with connection.begin():
                if database.file is None:
                    connection.execute(text("SELECT pg_advisory_xact_lock(8411)"))
                yield connection
        finally:
            if database.file is not None:
                driver.execute("PRAGMA foreign_keys = ON")


def _run_alembic(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
