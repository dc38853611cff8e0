"""A migration is killed before each statement: the next start finishes it, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from wherry.storage.migrations import REVISIONS

STORY = '''
"""Kills a migration before its k-th statement, for every k; a fork for each, so it is quick."""
import os, shutil, signal, sys
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Boolean, Float, Integer, MetaData, event, insert, inspect, select, text
from sqlalchemy.engine import Engine

from wherry.storage import migrations
from wherry.storage.database import Database
from wherry.storage.migrations import upgrade
from wherry.storage.tables import metadata

folder, start, next_step, stride = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
real_scripts = Path(migrations.__file__).parent

if next_step:  # a step that no release has yet: the hardest kind, which rebuilds tables
    scripts = folder / "scripts"
    shutil.copytree(real_scripts, scripts)
    (scripts / "versions" / "9000_next.py").write_text(Path(next_step).read_text())
    upgrade.__file__ = str(scripts / "upgrade.py")
    upgrade.HEAD, upgrade.REVISIONS = "9000", (*migrations.REVISIONS, "9000")


def run_alembic_to(database, revision):
    config = Config()
    config.set_main_option("script_location", str(real_scripts).replace("%", "%%"))
    with database.engine.connect() as connection:
        connection.execution_options(wherry_write=True)
        with connection.begin():
            config.attributes["connection"] = connection
            command.upgrade(config, revision)


def value_of(column, number):
    if column.server_default is not None and "'" in str(column.server_default.arg):
        return str(column.server_default.arg).strip("'")
    if isinstance(column.type, Boolean):
        return bool(number % 2)
    if isinstance(column.type, (Integer, Float)):
        return number + 1
    return f"{column.table.name} {column.name} {number}"


def fill(database):
    """Three rows in every table, whatever tables this revision has."""
    tables = MetaData()
    tables.reflect(database.engine)
    rows = {}
    for table in tables.sorted_tables:
        if table.name == "alembic_version":
            continue
        rows[table.name] = []
        for number in range(3):
            row = {column.name: value_of(column, number) for column in table.columns}
            for constraint in table.foreign_key_constraints:
                parents = rows[constraint.referred_table.name]
                for key in constraint.elements:
                    row[key.parent.name] = parents[number][key.column.name]
            rows[table.name].append(row)
        with database.write() as connection:
            connection.execute(insert(table), rows[table.name])


def read_all(database):
    tables = MetaData()
    tables.reflect(database.engine)
    with database.read() as connection:
        return {
            table.name: sorted(
                (tuple(sorted(row.items())) for row in connection.execute(select(table)).mappings()),
                key=repr,
            )
            for table in tables.sorted_tables
            if table.name != "alembic_version"
        }


def check_kept(before, after):
    """Every row of every table and column that still exists is what it was."""
    for name, rows in before.items():
        if name not in after:
            continue
        assert len(after[name]) == len(rows), f"{name}: {len(rows)} rows became {len(after[name])}"
        known = set(dict(after[name][0])) & set(dict(rows[0])) if rows else set()
        def keep(rows):
            return sorted(repr([(k, v) for k, v in row if k in known]) for row in rows)
        assert keep(after[name]) == keep(rows), name


def killed_migration(path, before_statement):
    """Migrate in a fork that kills itself before that statement; True if it came so far."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        assert os.WEXITSTATUS(status) == 0, f"the migration failed: {status}"
        return False
    try:
        count = 0
        def trace(statement):
            nonlocal count
            count += 1
            if count == before_statement:
                os.kill(os.getpid(), signal.SIGKILL)
        event.listen(Engine, "connect", lambda raw, _: raw.set_trace_callback(trace))
        Database.for_folder(path).migrate()
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)


base = folder / "base"
database = Database.for_folder(base)
if start:
    run_alembic_to(database, start)
    fill(database)
before = read_all(database)
database.close()

kills, statement = 0, 1
while True:
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)
    was_killed = killed_migration(work, statement)
    database = Database.for_folder(work)
    with database.read() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
        found = upgrade.read_revision(connection)
    assert found in ((start or None), upgrade.HEAD), f"half a migration: {found}"
    if found != upgrade.HEAD:
        check_kept(before, read_all(database))
    database.migrate()
    check_kept(before, read_all(database))
    with database.read() as connection:
        assert upgrade.read_revision(connection) == upgrade.HEAD
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        if not next_step and not was_killed:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()
    assert not list(work.glob("*.part")), "a half copy stays"
    if start and start != upgrade.HEAD:
        copy = Database(f"sqlite:///{work / ('wherry.db.before-' + upgrade.HEAD)}")
        check_kept(before, read_all(copy))
        with copy.read() as connection:
            assert upgrade.read_revision(connection) == start
        copy.close()
    if not was_killed:
        break
    kills += 1
    statement += stride
print(kills)
'''

NEXT_STEP = '''
"""A step of tomorrow: rebuilds a table that others refer to, and one that refers to it."""
import sqlalchemy as sa
from alembic import op

revision = "9000"
down_revision = "HEAD"

def upgrade():
    with op.batch_alter_table("teams") as batch:
        batch.add_column(sa.Column("note", sa.Text, nullable=False, server_default=""))
        batch.alter_column("name", existing_type=sa.Text, type_=sa.String(200))
    with op.batch_alter_table("versions") as batch:
        batch.add_column(sa.Column("stage", sa.Text, nullable=False, server_default="none"))
        batch.alter_column("environment", existing_type=sa.Text, nullable=True)
    op.create_table("notes", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("UPDATE teams SET note = 'seen'")
'''


EVERY = pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.campaign)])


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: it is copied for every kill, and a kill loses nothing that the kernel has."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def count_kills(folder: Path, stride: int, start: str, next_step: str = "") -> int:
    done = subprocess.run(
        [sys.executable, "-c", STORY, str(folder), start, next_step, str(stride)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout)


@EVERY
def test_the_first_migration_may_be_killed_before_any_statement(folder: Path, stride: int):
    assert count_kills(folder, stride, "") > 40 // stride


@EVERY
@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_an_older_database_may_be_killed_before_any_statement(
    folder: Path, stride: int, revision: str
):
    assert count_kills(folder, stride, revision) > 7 // stride


@EVERY
def test_a_step_that_rebuilds_tables_may_be_killed_before_any_statement(folder: Path, stride: int):
    step = folder / "next.py"
    step.write_text(NEXT_STEP.replace("HEAD", REVISIONS[-1]))
    assert count_kills(folder, stride, REVISIONS[-1], str(step)) > 28 // stride
