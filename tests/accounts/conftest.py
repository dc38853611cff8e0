"""A migrated database, and an admin in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.accounts.keys import Keys, Principal, hash_secret, to_principal
from wherry.accounts.secret_files import load_pepper
from wherry.accounts.store import find_key_by_digest
from wherry.storage.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.for_folder(tmp_path / "data")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def keys(database: Database, tmp_path: Path) -> Keys:
    return Keys.for_folder(database, tmp_path / "data")


@pytest.fixture
def admin(database: Database, keys: Keys, tmp_path: Path) -> Principal:
    folder = tmp_path / "data" / "secrets"
    secret = keys.ensure_bootstrap(folder)
    with database.read() as connection:
        row = find_key_by_digest(connection, hash_secret(load_pepper(folder), secret.encode()))
    return to_principal(row)
