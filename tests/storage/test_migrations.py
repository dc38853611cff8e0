"""The schema's steps: complete, cheap when done, safe for data that exists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, select, text

from wherry.errors import Conflict
from wherry.storage import migrations
from wherry.storage.database import Database, new_id
from wherry.storage.migrations import upgrade
from wherry.storage.tables import metadata, teams


@pytest.fixture
def database(tmp_path: Path):
    database = Database.for_folder(tmp_path / "data")
    yield database
    database.close()


def set_revision(database: Database, revision: str) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :to"), {"to": revision})


def test_migrations_make_exactly_the_tables_that_the_code_uses(database: Database):
    database.migrate()
    with database.read() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    assert differences == []


def test_the_listed_revisions_are_the_files_in_order():
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    script = ScriptDirectory.from_config(config)
    oldest_first = [step.revision for step in script.walk_revisions()][::-1]
    assert tuple(oldest_first) == migrations.REVISIONS


def test_migrating_twice_changes_nothing(database: Database):
    database.migrate()
    with database.write() as connection:
        connection.execute(insert(teams).values(id="t1", name="default", created_at=1.0))
    database.migrate()
    with database.read() as connection:
        assert connection.execute(select(teams.c.name)).scalars().all() == ["default"]


def test_a_database_at_head_is_opened_without_importing_alembic(database: Database):
    database.migrate()
    assert database.file is not None
    code = (
        "import sys; from pathlib import Path; from wherry.storage.database import Database\n"
        f"Database.for_folder(Path({str(database.file.parent)!r})).migrate()\n"
        "print('alembic' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "False"


def test_a_database_of_a_newer_wherry_is_refused(database: Database):
    database.migrate()
    set_revision(database, "9999")
    with pytest.raises(Conflict, match="'9999'") as refused:
        database.migrate()
    assert "upgrade wherry" in refused.value.hint


def test_a_database_with_data_is_copied_before_it_is_migrated(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    database.migrate()
    with database.write() as connection:
        connection.execute(insert(teams).values(id=new_id("team"), name="precious", created_at=1.0))
    set_revision(database, "0000")  # as an older Wherry would have left it
    monkeypatch.setattr(upgrade, "REVISIONS", ("0000", *migrations.REVISIONS))
    with pytest.raises(Exception, match="0000"):  # this step has no file, so alembic refuses it
        database.migrate()
    assert database.file is not None
    copy = database.file.with_name(f"wherry.db.before-{migrations.HEAD}")
    assert copy.stat().st_mode & 0o077 == 0
    saved = Database(f"sqlite:///{copy}")
    with saved.read() as connection:
        assert connection.execute(select(teams.c.name)).scalars().all() == ["precious"]
    saved.close()


def test_two_processes_may_migrate_a_new_database_at_once(tmp_path: Path):
    code = (
        "from pathlib import Path; from wherry.storage.database import Database\n"
        f"Database.for_folder(Path({str(tmp_path / 'data')!r})).migrate()"
    )
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]


def test_foreign_keys_are_watched_again_after_a_migration(database: Database):
    database.migrate()
    with database.read() as connection:
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
