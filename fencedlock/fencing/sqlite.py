"""SQLiteFence, for SQLite through sqlite3 or aiosqlite."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, ClassVar

from fencedlock.errors import ConfigurationError
from fencedlock.fencing.sql import Driver, Gives, Mistake, SQLFence, Statement, Steps, Style
from fencedlock.token import FencingToken

LEAST_VERSION = (3, 37)
"""The first version of SQLite that has STRICT tables.

In other tables a token that was bound as text would be greater than every number.
"""


class SQLite3Driver(Driver):
    """A connection of sqlite3."""

    style = Style.NAMED
    begin_words = "begin one with BEGIN IMMEDIATE"

    def in_transaction(self) -> bool:
        return bool(self.connection.in_transaction)

    def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        cursor = self.connection.cursor(sqlite3.Cursor)
        cursor.row_factory = None
        try:
            # A statement is done only when all its rows have been fetched.
            rows = cursor.execute(sql, parameters or {}).fetchall()
        finally:
            cursor.close()
        return rows[0] if gives is Gives.ROW and rows else None


class AiosqliteDriver(SQLite3Driver):
    """A connection of aiosqlite."""

    is_async = True

    async def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        async with self.connection.cursor() as cursor:
            cursor.row_factory = None
            await cursor.execute(sql, parameters or {})
            rows = await cursor.fetchall()
        return rows[0] if gives is Gives.ROW and rows else None


class SQLiteFence(SQLFence):
    """A table of fences in SQLite 3.37 or newer, through sqlite3 or aiosqlite.

    Begin transactions with ``BEGIN IMMEDIATE``. A transaction that begins otherwise, and has only
    read when another one writes, can't write any more. Raises ConfigurationError also if this
    Python's SQLite is older.
    """

    drivers: ClassVar[Mapping[tuple[str, str], type[Driver]]] = {
        ("sqlite3", "Connection"): SQLite3Driver,
        ("aiosqlite", "Connection"): AiosqliteDriver,
    }
    mistakes: ClassVar[Mapping[Any, Mistake]] = {
        "no such table": Mistake.NO_TABLE,
        "no such column": Mistake.NO_COLUMN,
        "has no column": Mistake.NO_COLUMN,
        "SQLITE_BUSY_SNAPSHOT": Mistake.READ_BEFORE,
        "attempt to write a readonly database": Mistake.READ_ONLY,
    }

    def __init__(self, table: str = "fences") -> None:
        super().__init__(table)
        if sqlite3.sqlite_version_info < LEAST_VERSION:
            raise ConfigurationError(
                "SQLiteFence needs SQLite 3.37 or newer, and this Python has "
                f"{sqlite3.sqlite_version}"
            )

    def ddl(self) -> str:
        return (
            f"CREATE TABLE IF NOT EXISTS {self._table} (\n"
            "    resource TEXT PRIMARY KEY NOT NULL,\n"
            "    token INTEGER NOT NULL,\n"
            "    lock_name TEXT\n"
            ") STRICT"
        )

    def check_steps(self, token: FencingToken, resource: str) -> Steps:
        values = {"resource": resource, "token": int(token), "lock": token.lock}
        passed = yield Statement(self.upsert_sql(), values, Gives.ROW)
        if passed is None:
            found = yield Statement(
                f"SELECT token, CAST(lock_name AS TEXT) FROM {self._table} WHERE resource = "
                ":resource",
                {"resource": resource},
                Gives.ROW,
            )
            raise self.refused(token, resource, *(found or (None, None)))

    def code_of(self, error: Exception) -> Any:
        if getattr(error, "sqlite_errorname", None) == "SQLITE_BUSY_SNAPSHOT":
            return "SQLITE_BUSY_SNAPSHOT"
        return next((words for words in self.mistakes if words in str(error)), None)
