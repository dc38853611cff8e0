"""Transactions, revisions and the refusals of `wherry.storage.database`."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from wherry.errors import Conflict, InvalidInput, Unavailable
from wherry.storage import database as module
from wherry.storage.database import (
    Database,
    bump_revision,
    is_safe_sqlite,
    new_id,
    read_revisions,
)
from wherry.storage.tables import keys, teams


@pytest.fixture
def database(tmp_path: Path):
    database = Database.for_folder(tmp_path / "data")
    database.migrate()
    yield database
    database.close()


def add_team(database: Database, name: str) -> None:
    with database.write() as connection:
        connection.execute(insert(teams).values(id=new_id("team"), name=name, created_at=1.0))


def team_count(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(teams)).scalar_one()


def fail_after_writing(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(teams).values(id="t", name="lost", created_at=1.0))
        raise ZeroDivisionError


def test_a_write_is_kept_and_a_failed_one_is_not(database: Database):
    add_team(database, "kept")
    with pytest.raises(ZeroDivisionError):
        fail_after_writing(database)
    assert team_count(database) == 1


def test_what_a_read_writes_is_rolled_back(database: Database):
    with database.read() as connection:
        connection.execute(insert(teams).values(id="t", name="lost", created_at=1.0))
    assert team_count(database) == 0


def test_a_read_sees_one_moment(database: Database):
    with database.read() as connection:
        before = connection.execute(select(func.count()).select_from(teams)).scalar_one()
        add_team(database, "later")
        after = connection.execute(select(func.count()).select_from(teams)).scalar_one()
    assert (before, after, team_count(database)) == (0, 0, 1)


def test_many_threads_count_without_losing_one(database: Database):
    def count() -> None:
        for _ in range(25):
            with database.write() as connection:
                bump_revision(connection, "models")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert read_revisions(connection) == {"models": 100}


def test_revisions_are_those_of_now_and_as_any_read_tells_them(database: Database, tmp_path: Path):
    assert database.revisions() == {}
    other = Database.for_folder(tmp_path / "data")
    for count in range(1, 4):
        with other.write() as connection:
            bump_revision(connection, "models")
            if count == 3:  # what is not committed is not told, and does not make it wait
                assert database.revisions() == {"models": 2}
        assert database.revisions() == {"models": count}
    other.close()
    database.close()
    assert database.revisions() == {"models": 3}
    database.close()
    for file in (tmp_path / "data").glob("wherry.db*"):
        file.unlink()
    (tmp_path / "data" / "wherry.db").write_bytes(b"no database " * 1000)
    with pytest.raises(Unavailable):
        database.revisions()


def test_the_settings_of_a_connection(database: Database):
    with database.read() as connection:
        values = [
            connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert values == ["wal", 2, 1, 10_000]


def test_rows_may_not_point_to_nothing(database: Database):
    row = {"id": "k", "team_id": "none", "name": "n", "prefix": "p", "digest": "d", "created_at": 1}
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(insert(keys).values(row))


def test_a_locked_database_is_unavailable(database: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BUSY_TIMEOUT_SECONDS", 0)
    impatient = Database(f"sqlite:///{database.file}")
    with (
        database.write() as holder,
        pytest.raises(Unavailable, match="locked") as refused,
        impatient.write(),
    ):
        holder.execute(select(1))
    impatient.close()
    assert refused.value.retry_after_seconds > 0


def test_wrong_sql_stays_a_bug(database: Database):
    with pytest.raises(OperationalError), database.read() as connection:
        connection.execute(text("SELECT * FROM nowhere"))


def test_a_damaged_file_is_unavailable_or_refused(tmp_path: Path):
    (tmp_path / "wherry.db").write_bytes(b"this is not a database, but long enough " * 100)
    database = Database.for_folder(tmp_path)
    with pytest.raises(Unavailable, match="not a database"):
        database.migrate()


def test_the_files_are_for_their_owner_only(tmp_path: Path):
    database = Database.for_folder(tmp_path / "data")
    database.migrate()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    for name in ("wherry.db", "wherry.db-wal"):
        assert (tmp_path / "data" / name).stat().st_mode & 0o077 == 0, name
    database.close()


def test_a_folder_of_a_newer_layout_is_refused(tmp_path: Path):
    Database.for_folder(tmp_path).close()
    assert (tmp_path / "VERSION").read_text() == "1\n"
    (tmp_path / "VERSION").write_text("2\n")
    with pytest.raises(Conflict, match="version '2'"):
        Database.for_folder(tmp_path)


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "nonsense"])
def test_other_databases_are_refused(url: str):
    with pytest.raises(InvalidInput):
        Database(url)


def test_a_folder_with_odd_letters_works(tmp_path: Path):
    database = Database.for_folder(tmp_path / "100% päth?#数据")
    database.migrate()
    assert database.file is not None
    assert database.file.is_file()
    database.close()


def test_ids_are_different_and_sort_by_time():
    ids = [new_id("job") for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(each.startswith("job_") and len(each) == 30 for each in ids)
    assert [each[:14] for each in ids] == sorted(each[:14] for each in ids)


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 4), True),
    ],
)
def test_sqlite_with_the_wal_reset_bug_is_refused(version: tuple[int, ...], safe: bool):
    assert is_safe_sqlite(version) is safe
