"""The one way to the database: SQLite in the data folder, or PostgreSQL by its URL."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    Engine,
    PoolProxiedConnection,
    create_engine,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from wherry.errors import Conflict, InvalidInput, MissingExtra, Unavailable
from wherry.storage.folders import make_folder, replace_file
from wherry.storage.tables import events, revisions

FILE_NAME = "wherry.db"
VERSION_FILE_NAME = "VERSION"
DATA_VERSION = 1
"""Version of the data folder's layout, written into `data/VERSION`."""

BUSY_TIMEOUT_SECONDS = 10
MAX_CONNECTIONS = 16
SQLITE_ERROR = 1
"""SQLite's code for wrong SQL: a bug of ours, which waiting would not mend."""
DAMAGED = (11, 26)
"""SQLite's codes for a file that is damaged, or no database."""

_READ_REVISIONS = "SELECT name, value FROM revisions"

ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Database:
    """Transactions on one database; threads may share it, processes may not."""

    def __init__(self, url: str) -> None:
        self._engine = _create_engine(_parse_url(url))
        self._watcher: PoolProxiedConnection | None = None
        """Only ever asks for revisions."""
        self._watcher_lock = threading.Lock()

    @classmethod
    def for_folder(cls, folder: Path, url: str = "") -> Database:
        """The database of a data folder: `url`, or `wherry.db` inside the folder."""
        prepare_folder(folder)
        if url:
            return cls(url)
        file = URL.create("sqlite", database=str(folder / FILE_NAME))
        return cls(file.render_as_string(hide_password=False))

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, for migrations."""
        return self._engine

    @property
    def file(self) -> Path | None:
        """The SQLite file; None for a server."""
        return Path(self._engine.url.database or "") if _is_sqlite(self._engine.url) else None

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A consistent view; whatever is written inside is rolled back.

        Raises:
            Unavailable: the database is locked, full, damaged or not reachable.
        """
        with _translate_errors(), self._engine.connect() as connection, connection.begin() as view:
            yield connection
            view.rollback()

    @contextmanager
    def write(self) -> Generator[Connection]:
        """A transaction: committed at the end, rolled back by an exception.

        On SQLite it holds the only write lock from its first line, so keep it short.

        Raises:
            Unavailable: the database is locked, full, damaged or not reachable.
        """
        with _translate_errors(), self._engine.connect() as connection:
            connection.execution_options(wherry_write=True)
            with connection.begin():
                yield connection

    def revisions(self) -> dict[str, int]:
        """As `read_revisions`, at a fifth of its cost: several watchers ask all the time.

        Raises:
            Unavailable: as `read`.
        """
        if self.file is not None:
            with self._watcher_lock:
                try:
                    if self._watcher is None:
                        self._watcher = self._engine.raw_connection()
                    cursor = self._watcher.cursor()
                    cursor.execute(_READ_REVISIONS)  # no BEGIN: one statement is its own view
                    return dict(cursor.fetchall())
                except Exception:  # noqa: BLE001  whatever it is, the long way tells it better
                    self._drop_watcher()
        with self.read() as connection:
            return read_revisions(connection)

    def _drop_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.invalidate()
            self._watcher = None

    def migrate(self) -> None:
        """Bring the tables up to date; cheap when they are.

        Raises:
            Conflict: a newer Wherry wrote this database.
        """
        from wherry.storage.migrations import upgrade

        with _translate_errors():
            upgrade.migrate(self)

    def close(self) -> None:
        """Close every idle connection."""
        if self._watcher_lock.acquire(blocking=False):  # one that hangs is not waited for
            self._drop_watcher()
            self._watcher_lock.release()
        self._engine.dispose()


def new_id(kind: str) -> str:
    """An unguessable id such as `job_01k3…`; ids of later milliseconds sort after earlier ones."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    digits = (ID_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
    return f"{kind}_{''.join(digits)}"


def bump_revision(connection: Connection, name: str) -> None:
    """Tell every process, when this transaction commits, that `name` changed."""
    connection.execute(
        text(
            "INSERT INTO revisions (name, value) VALUES (:name, 1) "
            "ON CONFLICT (name) DO UPDATE SET value = revisions.value + 1"
        ),
        {"name": name},
    )


def read_revisions(connection: Connection) -> dict[str, int]:
    """How often each name changed; a name that never did is missing."""
    rows = connection.execute(select(revisions.c.name, revisions.c.value))
    return {row.name: row.value for row in rows}


def add_event(
    connection: Connection,
    team_id: str,
    topic: str,
    subject: str,
    what: str,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Tell those who watch `GET /events`, when this transaction commits."""
    connection.execute(
        insert(events).values(
            at=time.time(),
            team_id=team_id,
            topic=topic,
            subject=subject,
            what=what,
            data=msgspec.json.encode(data or {}).decode(),
        )
    )
    bump_revision(connection, "events")


def lock(connection: Connection, name: str) -> None:
    """Let one transaction at a time pass here; SQLite's `write()` is alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": name})


def prepare_folder(folder: Path) -> None:
    """Make the data folder, for its owner only, and check who wrote it.

    Raises:
        Conflict: a newer Wherry wrote it.
    """
    make_folder(folder)
    version_file = folder / VERSION_FILE_NAME
    try:
        found = version_file.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        replace_file(version_file, f"{DATA_VERSION}\n".encode())
        return
    if not found.isdecimal() or int(found) > DATA_VERSION:
        raise Conflict(
            f"the data folder {str(folder)!r} has version {found!r}, this Wherry reads up to "
            f"{DATA_VERSION}",
            hint="upgrade wherry, or choose another folder with --data",
        )


# --------------------------------------------------------------------------- engines


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidInput(
            "the database URL cannot be read", hint="see WHERRY_DATABASE_URL"
        ) from error
    if _is_sqlite(parsed) and parsed.database not in (None, "", ":memory:"):
        return parsed.set(drivername="sqlite")
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    raise InvalidInput(
        f"databases of kind {parsed.drivername!r} are not supported",
        hint="use sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME",
    )


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _create_engine(url: URL) -> Engine:
    pool: dict[str, Any] = {
        "pool_size": 4,
        "max_overflow": MAX_CONNECTIONS - 4,
        "pool_timeout": BUSY_TIMEOUT_SECONDS,
    }
    if not _is_sqlite(url):
        return _create_postgresql_engine(url, pool)
    engine = create_engine(
        url, module=_find_sqlite(), connect_args={"check_same_thread": False}, **pool
    )
    event.listen(engine, "do_connect", _make_private_file)
    event.listen(engine, "connect", _prepare_connection)
    event.listen(engine, "begin", _begin)
    return engine


def _create_postgresql_engine(url: URL, pool: dict[str, Any]) -> Engine:
    try:
        return create_engine(url, pool_pre_ping=True, **pool)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"a PostgreSQL database needs the package {error.name!r}",
            hint="pip install 'wherry[postgres]'",
        ) from error


def _find_sqlite() -> ModuleType:
    """The first SQLite library that is free of the WAL-reset corruption.

    SQLite 3.7.0 to 3.51.2 can corrupt a WAL database that several processes use; many systems'
    Python is linked to one of them (https://sqlite.org/wal.html#walresetbug).
    """
    try:
        library = import_module("pysqlite3.dbapi2")
    except ModuleNotFoundError:
        library = import_module("sqlite3")
    if not is_safe_sqlite(library.sqlite_version_info):
        raise MissingExtra(
            f"SQLite {library.sqlite_version} can corrupt a database that several processes use",
            hint="pip install 'pysqlite3>=0.6.1'",
        )
    return library


def is_safe_sqlite(version: tuple[int, int, int]) -> bool:
    """Whether a SQLite library has the fix of the WAL-reset corruption, or its backport."""
    fixed_since = {(3, 44): 6, (3, 50): 7}
    return version >= (3, 51, 3) or version[2] >= fixed_since.get(version[:2], 1000)


def _make_private_file(_dialect: Any, _record: Any, arguments: list[Any], _options: Any) -> None:
    """SQLite would make the file readable for everyone; its side files copy the file's mode."""
    os.close(os.open(arguments[0], os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _prepare_connection(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, see `_begin`
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}",
        "synchronous = FULL",  # a commit that was acknowledged survives a power cut
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
    _write_ahead(connection)


def _write_ahead(connection: Any) -> None:
    """Set the journal's mode; SQLite does not wait by itself for another process that does so."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later can fail at once with "locked", however
    # long the busy timeout is; one that starts IMMEDIATE waits its turn.
    writes = connection.get_execution_options().get("wherry_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _translate_errors() -> Generator[None]:
    try:
        yield
    except PoolTimeoutError as error:
        raise Unavailable("the database is busy: all connections are in use") from error
    except DatabaseError as error:
        if not _is_outage(error):
            raise
        # A server's own words name hosts and users; they are in the chained error, for the log.
        is_local = hasattr(error.orig, "sqlite_errorcode")
        reason = str(error.orig) if is_local else "its server is down or refuses us"
        raise Unavailable(
            f"the database cannot be used: {reason}",
            hint="see `wherry doctor`; is the disk full or the database server down?",
        ) from error


def _is_outage(error: DatabaseError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", None)
    return code in DAMAGED or (isinstance(error, OperationalError) and code != SQLITE_ERROR)
