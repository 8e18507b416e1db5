"""Registers in real stores, written under a lock and behind a fence."""

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
    """The store did not take the write in time; nothing was done."""


class Register(Protocol):
    """A value with a version for each lock, in one store; one object for each thread."""

    def check_and_read(self, token: FencingToken) -> tuple[int, str]:
        """In the transaction that is open: check the token, then read version and value."""

    def write(self, lock: str, version: int, value: str) -> None: ...

    def transaction(self) -> contextlib.AbstractContextManager[Any]: ...

    def prepare(self) -> None:
        """Make the tables."""

    def close(self) -> None: ...


CREATE = "CREATE TABLE IF NOT EXISTS registers (lock TEXT PRIMARY KEY, version BIGINT NOT NULL, value TEXT NOT NULL)"


class SQLiteRegister:
    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, timeout=2, isolation_level=None)
        self._fence = SQLiteFence()

    def prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=OFF")
        self._connection.execute(self._fence.ddl())
        self._connection.execute(CREATE)

    def close(self) -> None:
        self._connection.close()

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

    def check_and_read(self, token: FencingToken) -> tuple[int, str]:
        self._fence.check(self._connection, token)
        return self._connection.execute("SELECT version, value FROM registers WHERE lock = ?", (token.lock,)).fetchone() or (0, "")

    def write(self, lock: str, version: int, value: str) -> None:
        self._connection.execute(
            "INSERT INTO registers VALUES (?, ?, ?) ON CONFLICT (lock) DO UPDATE SET version = excluded.version, value = excluded.value",
            (lock, version, value),
        )


class PostgreSQLRegister:
    def __init__(self, settings: dict[str, str]) -> None:
        options = "-c lock_timeout=2000 -c synchronous_commit=off"
        self._connection = psycopg.connect(**settings, options=options, autocommit=True)  # type: ignore[arg-type]
        self._fence = PostgreSQLFence()

    def prepare(self) -> None:
        self._connection.execute(self._fence.ddl())
        self._connection.execute(CREATE)

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            with self._connection.transaction():
                yield
        except psycopg.errors.LockNotAvailable as error:
            raise RefusedError(str(error)) from error

    def check_and_read(self, token: FencingToken) -> tuple[int, str]:
        self._fence.check(self._connection, token)
        row = self._connection.execute("SELECT version, value FROM registers WHERE lock = %s", (token.lock,)).fetchone()
        return row or (0, "")

    def write(self, lock: str, version: int, value: str) -> None:
        self._connection.execute(
            "INSERT INTO registers VALUES (%s, %s, %s) ON CONFLICT (lock) DO UPDATE SET version = excluded.version, value = excluded.value",
            (lock, version, value),
        )


REGISTERS: dict[str, Callable[[Any], Register]] = {"sqlite": SQLiteRegister, "postgresql": PostgreSQLRegister}
"""By name; each is made from what it takes to connect."""
