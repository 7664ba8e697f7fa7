"""SQLite as the arena uses it: write-ahead log, foreign keys on, and transactions that begin when they say so.

`Database.write()` is one transaction that holds the write lock from its first statement to its commit: it happens
whole or, when the block raises or the process dies, not at all. `Database.read()` sees one consistent state and never
waits for a writer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, MetaData, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import ConnectionPoolEntry

from limbeck.errors import LimbeckError, UserError

BUSY_TIMEOUT_MS = 30_000


class Database:
    """One SQLite file.

    Args:
        path: the file.
        tables: what it holds; made where they are not there.
        read_only: open an existing file for reading alone, whatever this process could otherwise do to it.

    Raises:
        UserError: the file is there but is no SQLite database, or its folder can't be written to.
    """

    def __init__(self, path: Path, tables: MetaData, *, read_only: bool = False) -> None:
        self.path = path
        if read_only:
            if not path.is_file():
                raise UserError(f"{path}: no such database.")
            self._engine = create_engine(f"sqlite:///file:{quote(str(path.absolute()))}?mode=ro&uri=true")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._engine = create_engine(f"sqlite:///{path}")
        event.listen(self._engine, "connect", _prepare_reader if read_only else _prepare)
        event.listen(self._engine, "begin", _begin)
        try:
            if read_only:
                with self.read() as connection:
                    connection.exec_driver_sql("SELECT name FROM sqlite_master LIMIT 1")
            else:
                with self.write() as connection:
                    tables.create_all(connection)
        except DatabaseError as error:
            self._engine.dispose()
            raise UserError(f"{path}: cannot be used as a database ({error.orig}).") from error

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Run the block as one transaction.

        Raises:
            LimbeckError: another process held the write lock for half a minute, or the disk is full.
        """
        with self._engine.connect() as connection:
            connection.execution_options(limbeck_begin="BEGIN IMMEDIATE")
            try:
                with connection.begin():
                    yield connection
            except DatabaseError as error:
                reason = str(error.orig)
                if "database is locked" in reason or "is full" in reason:
                    raise LimbeckError(f"{self.path}: nothing was written ({reason}). Try again.") from error
                raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Run the block on one consistent state."""
        with self._engine.connect() as connection:
            connection.execution_options(limbeck_begin="BEGIN DEFERRED")
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _prepare(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    _set(connection, f"busy_timeout={BUSY_TIMEOUT_MS}", "journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL")


def _prepare_reader(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    _set(connection, f"busy_timeout={BUSY_TIMEOUT_MS}", "query_only=ON")


def _set(connection: DBAPIConnection, *pragmas: str) -> None:
    connection.isolation_level = None  # the driver shall not open transactions of its own: `_begin` does
    cursor = connection.cursor()
    for pragma in pragmas:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("limbeck_begin", "BEGIN"))
