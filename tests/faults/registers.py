"""Registers in real stores. Contenders write to them under a lock and behind a fence."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import psycopg

from fencedlock import FencingToken
from fencedlock.fencing.postgresql import PostgreSQLFence
from fencedlock.fencing.sqlite import SQLiteFence


class RefusedError(Exception):
    """The store did not accept the write in time, and has done nothing."""


class Register(Protocol):
    """A value with a version for each lock, in one store. Each thread has an object of its own."""

    def check_and_read(self, token: FencingToken) -> tuple[int, str]:
        """In the open transaction, check the token, and then read version and value."""

    def write(self, lock: str, version: int, value: str) -> None: ...

    def transaction(self) -> contextlib.AbstractContextManager[Any]: ...

    def prepare(self) -> None:
        """Make the tables."""

    def close(self) -> None: ...


CREATE = (
    "CREATE TABLE IF NOT EXISTS registers "
    "(lock TEXT PRIMARY KEY, version BIGINT NOT NULL, value TEXT NOT NULL)"
)


class SQLRegister:
    """The common part of the two stores. They differ only in the placeholder for a parameter and in
    how a transaction begins.
    """

    parameter: str

    def __init__(self, connection: Any, fence: Any) -> None:
        self._connection = connection
        self._fence = fence
        self._read = f"SELECT version, value FROM registers WHERE lock = {self.parameter}"
        self._write = (
            f"INSERT INTO registers VALUES ({self.parameter}, {self.parameter}, {self.parameter}) "
            "ON CONFLICT (lock) DO UPDATE SET version = excluded.version, value = excluded.value"
        )

    def prepare(self) -> None:
        self._connection.execute(self._fence.ddl())
        self._connection.execute(CREATE)

    def close(self) -> None:
        self._connection.close()

    def check_and_read(self, token: FencingToken) -> tuple[int, str]:
        self._fence.check(self._connection, token)
        return self.read(token.lock)

    def read(self, lock: str) -> tuple[int, str]:
        return self._connection.execute(self._read, (lock,)).fetchone() or (0, "")

    def write(self, lock: str, version: int, value: str) -> None:
        self._connection.execute(self._write, (lock, version, value))


class SQLiteRegister(SQLRegister):
    parameter = "?"

    def __init__(self, path: str) -> None:
        super().__init__(sqlite3.connect(path, timeout=2, isolation_level=None), SQLiteFence())

    def prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        super().prepare()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise RefusedError(str(error)) from error
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


class PostgreSQLRegister(SQLRegister):
    parameter = "%s"

    def __init__(self, settings: dict[str, Any]) -> None:
        options = "-c lock_timeout=2000 -c synchronous_commit=off"
        super().__init__(
            psycopg.connect(**settings, options=options, autocommit=True), PostgreSQLFence()
        )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            with self._connection.transaction():
                yield
        except psycopg.errors.LockNotAvailable as error:
            raise RefusedError(str(error)) from error


REGISTERS: dict[str, Callable[[Any], Register]] = {
    "sqlite": SQLiteRegister,
    "postgresql": PostgreSQLRegister,
}
"""Maps the name of each register to its class, which takes the arguments to connect with."""
