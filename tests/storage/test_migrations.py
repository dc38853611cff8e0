"""The schema's steps: complete, cheap when done, safe for data that exists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, select, text

from wherry.accounts.ledger import Ledger
from wherry.errors import Conflict
from wherry.storage import migrations
from wherry.storage.database import Database, new_id
from wherry.storage.migrations import upgrade
from wherry.storage.segment import Segment, Stamp
from wherry.storage.tables import metadata, teams


@pytest.fixture
def database(tmp_path: Path):
    database = Database.for_folder(tmp_path / "data")
    yield database
    database.close()


def set_revision(database: Database, revision: str) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :to"), {"to": revision})


def upgrade_to(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with database.engine.connect() as connection:
        connection.execution_options(wherry_write=True)
        with connection.begin():
            config.attributes["connection"] = connection
            command.upgrade(config, revision)


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


def test_what_was_used_stays_whose_it_was(database: Database):
    """Step 0004 moves most columns of the ledger to a table of its own."""
    upgrade_to(database, "0003")
    row = (
        "INSERT INTO ledger (request_id, at, day, team_id, key_id, deployment, model, version, "
        "digest, door, task, status, code, input_tokens, output_tokens, rows) VALUES "
        "(:request, 1700000000.0, '2023-11-14', 'team_1', :key, 'iris', 'iris', :version, "
        "'sha256:1', 'openai', 'text-generation', :status, :code, 3, :tokens, 1)"
    )
    requests = [
        {"request": f"req-{number}", "key": f"key_{number % 2}", "version": number % 3,
         "status": 500 if number % 5 == 0 else 200, "code": "bug" if number % 5 == 0 else "",
         "tokens": number}
        for number in range(30)
    ]  # fmt: skip
    with database.write() as connection:
        connection.execute(text(row), requests)
    database.migrate()
    ledger = Ledger(database, database.file.parent / "journal" if database.file else Path())
    rows = ledger.usage("team_1", by=("key", "model", "day"))
    assert [(each.key, each.requests, each.errors, each.output_tokens) for each in rows] == [
        ("key_0", 15, 3, sum(range(0, 30, 2))),
        ("key_1", 15, 3, sum(range(1, 30, 2))),
    ]
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM ledger_tracks")).scalar() == 6


def test_a_ledger_that_was_moved_goes_on_with_the_same_tracks(database: Database, tmp_path: Path):
    upgrade_to(database, "0003")
    alike = ("team_1", "key_1", "iris", "iris", 1, "sha256:1", "openai", "text-generation")
    names = "team_id, key_id, deployment, model, version, digest, door, task"
    with database.write() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO ledger (request_id, at, day, status, {names}) "
            "VALUES ('req-1', 1700000000.0, '2023-11-14', 200, ?, ?, ?, ?, ?, ?, ?, ?)",
            alike,
        )
    database.migrate()
    segment = Segment(tmp_path / "journal" / "gateway-0")
    segment.append([Stamp(alike).frame([("req-2", 1700000000.0, 0, 0, 1, 0.0, 0.0, 0.0, 1)])])
    segment.close()
    assert Ledger(database, tmp_path / "journal").ingest() == 1
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM ledger_tracks")).scalar() == 1
