"""The store as a whole: one SQLite file with configurations, commitments, rounds and the event log."""

import json
from pathlib import Path

from sqlalchemy import Connection, select
from sqlalchemy.exc import DatabaseError

from limbeck.arena.config import ArenaConfig
from limbeck.arena.database import Database
from limbeck.arena.store import tables
from limbeck.arena.store.commitments import Commitments
from limbeck.arena.store.events import Event, append_event, read_events
from limbeck.arena.store.rounds import Rounds
from limbeck.errors import IntegrityError, UserError
from limbeck.settings import validate_settings


class Store:
    """Everything an arena knows.

    Attributes:
        commitments: who committed what, and how it was admitted.
        rounds: rounds, evidence, verdicts, reigns and weights.

    Args:
        path: the SQLite file; made when it is not there.
        chain: the genesis hash of the chain that the store belongs to; None takes it as it is.
        read_only: open an existing store for reading alone, as the API does.

    Raises:
        UserError: the file is no store, is of another schema version, or belongs to another chain.
    """

    def __init__(self, path: Path, chain: str | None = None, *, read_only: bool = False) -> None:
        self.path = path
        self._database = Database(path, tables.METADATA, read_only=read_only)
        if not read_only:
            self._write_once("schema", str(tables.SCHEMA_VERSION))
            if chain is not None:
                self._write_once("chain", chain)
        self.commitments = Commitments(self._database)
        self.rounds = Rounds(self._database)
        self._hold_to("schema", str(tables.SCHEMA_VERSION), "has schema version {}, and this program reads {}")
        if chain is not None:
            self._hold_to("chain", chain, "belongs to the chain {}, not to {}")

    def config(self) -> tuple[int, ArenaConfig] | None:
        """Return the newest configuration with its version; None in a store that has none."""
        with self._database.read() as connection:
            version = _newest_version(connection)
        return (version, self.config_version(version)) if version else None

    def config_version(self, version: int) -> ArenaConfig:
        """Return a version of the configuration.

        Raises:
            UserError: there is no such version, or it names a policy that is not registered.
            IntegrityError: it is not what its digest says.
        """
        query = select(tables.configs).where(tables.configs.c.version == version)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise UserError(f"{self.path}: there is no version {version} of the configuration.")
        config = validate_settings(json.loads(row.body), ArenaConfig, f"{self.path}: configuration {version}")
        if config.digest != row.digest:
            raise IntegrityError(f"{self.path}: configuration {version} was altered: it does not have its digest.")
        return config

    def save_config(self, config: ArenaConfig) -> int:
        """Make `config` the newest version, unless it is that already; return its number."""
        with self._database.write() as connection:
            newest = _newest_version(connection)
            digest = connection.execute(
                select(tables.configs.c.digest).where(tables.configs.c.version == newest)
            ).scalar()
            if digest == config.digest:
                return newest
            connection.execute(
                tables.configs.insert().values(
                    version=newest + 1, digest=config.digest, name=config.name, body=config.model_dump_json()
                )
            )
            append_event(connection, "configuration", {"digest": config.digest, "version": newest + 1})
        return newest + 1

    def note(self, kind: str, body: dict[str, object]) -> None:
        """Append an event that changes nothing else, such as an attempt that was put off."""
        with self._database.write() as connection:
            append_event(connection, kind, body)

    def events(self, after: int = 0) -> list[Event]:
        """Return the events after number `after`; raise `IntegrityError` for one that was altered."""
        with self._database.read() as connection:
            return read_events(connection, after)

    def verify_events(self) -> int:
        """Walk the whole event log and return its length.

        Raises:
            IntegrityError: naming the first event that is missing or was altered.
        """
        return len(self.events())

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _write_once(self, key: str, value: str) -> None:
        with self._database.write() as connection:
            if connection.execute(select(tables.meta.c.key).where(tables.meta.c.key == key)).first() is None:
                connection.execute(tables.meta.insert().values(key=key, value=value))

    def _hold_to(self, key: str, value: str, mismatch: str) -> None:
        try:
            with self._database.read() as connection:
                found = connection.execute(select(tables.meta.c.value).where(tables.meta.c.key == key)).scalar()
        except DatabaseError as error:
            raise UserError(f"{self.path}: not an arena's store ({error.orig}).") from error
        if found != value:
            self._database.close()
            raise UserError(f"{self.path}: {mismatch.format(found, value)}.")


def _newest_version(connection: Connection) -> int:
    """Return the newest version of the configuration; 0 where there is none."""
    query = select(tables.configs.c.version).order_by(tables.configs.c.version.desc()).limit(1)
    return connection.execute(query).scalar() or 0
