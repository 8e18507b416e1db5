"""PostgreSQLFence and the drivers that it knows."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from importlib import resources
from typing import Any, ClassVar, overload

from fencedlock.fencing.sql import (
    AsyncConnection,
    Driver,
    Gives,
    Mistake,
    SQLFence,
    Statement,
    Steps,
    Style,
)
from fencedlock.token import FencingToken

IDLE = 0
"""libpq's PQTRANS_IDLE: connected, and in no transaction."""


class PsycopgDriver(Driver):
    """A connection of psycopg 3."""

    begin_words = "open one ('with connection.transaction():')"

    def in_transaction(self) -> bool:
        return int(self.connection.info.transaction_status) != IDLE

    def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        from psycopg import Cursor
        from psycopg.rows import tuple_row

        # The rows are plain tuples, whatever kind the connection's own cursors give.
        with Cursor(self.connection, row_factory=tuple_row) as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchone() if gives is Gives.ROW else None


class AsyncPsycopgDriver(PsycopgDriver):
    """An asynchronous connection of psycopg 3."""

    is_async = True
    begin_words = "open one ('async with connection.transaction():')"

    async def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        from psycopg import AsyncCursor
        from psycopg.rows import tuple_row

        async with AsyncCursor(self.connection, row_factory=tuple_row) as cursor:
            await cursor.execute(sql, parameters)
            return await cursor.fetchone() if gives is Gives.ROW else None


class Psycopg2Driver(PsycopgDriver):
    """A connection of psycopg2."""

    begin_words = "turn autocommit off (connection.autocommit = False)"

    def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        from psycopg2.extensions import cursor as plain_cursor

        with self.connection.cursor(cursor_factory=plain_cursor) as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchone() if gives is Gives.ROW else None


class AsyncpgDriver(Driver):
    """A connection of asyncpg, also one from its pool."""

    style = Style.NUMERIC_DOLLAR
    is_async = True
    begin_words = "open one ('async with connection.transaction():')"

    def in_transaction(self) -> bool:
        return bool(self.connection.is_in_transaction())

    async def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        if gives is Gives.ROW:
            return await self.connection.fetchrow(sql, *(parameters or ()))
        return await self.connection.execute(sql, *(parameters or ()))


class PostgreSQLFence(SQLFence):
    """A table of fences in PostgreSQL 13 or newer.

    The connections are those of psycopg 3 (also asynchronous), psycopg2 or asyncpg. Use it at READ
    COMMITTED, which is the default. At REPEATABLE READ and SERIALIZABLE, a check that had to wait
    for another holder's transaction fails with a serialization failure (40001) instead, and the
    whole transaction must be run again.
    """

    drivers: ClassVar[Mapping[tuple[str, str], type[Driver]]] = {
        ("psycopg", "Connection"): PsycopgDriver,
        ("psycopg", "AsyncConnection"): AsyncPsycopgDriver,
        ("psycopg2", "connection"): Psycopg2Driver,
        ("asyncpg", "Connection"): AsyncpgDriver,
        ("asyncpg", "PoolConnectionProxy"): AsyncpgDriver,
    }
    mistakes: ClassVar[Mapping[Any, Mistake]] = {
        "42P01": Mistake.NO_TABLE,
        "42703": Mistake.NO_COLUMN,
        "42501": Mistake.NO_RIGHTS,
        "25006": Mistake.READ_ONLY,
    }

    def ddl(self) -> str:
        return (
            f"CREATE TABLE IF NOT EXISTS {self._table} (\n"
            '    resource text COLLATE "C" PRIMARY KEY,\n'
            "    token bigint NOT NULL,\n"
            "    lock_name text\n"
            ")"
        )

    def create_steps(self) -> Steps:
        """Make the table under an advisory lock.

        Without that lock, two sessions that do so at once would collide in PostgreSQL's catalogue.
        """
        (found,) = yield Statement(
            f"SELECT CAST(to_regclass('{self._table}') AS text)", {}, Gives.ROW
        )
        if found is not None:
            return  # so that a role that may not create tables can call this too
        yield Statement("SELECT pg_advisory_xact_lock(hashtext('fencedlock'))")
        yield Statement(self.ddl())

    def check_steps(self, token: FencingToken, resource: str) -> Steps:
        passed = yield Statement(
            f"WITH raised AS ({self.upsert_sql()}) SELECT set_config('fencedlock.passed', "
            "CAST(txid_current() AS text), true) FROM raised",
            {"resource": resource, "token": int(token), "lock": token.lock},
            Gives.ROW,
        )
        if passed is None:
            found = yield Statement(
                "SELECT token, lock_name, set_config('fencedlock.passed', '', true) FROM "
                f"{self._table} WHERE resource = :resource",
                {"resource": resource},
                Gives.ROW,
            )
            raise self.refused(token, resource, *(found or (None, None))[:2])

    def code_of(self, error: Exception) -> Any:
        return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)

    # --- enforcement in the database itself

    @overload
    def protect(self, connection: AsyncConnection, table: str) -> Coroutine[Any, Any, None]: ...

    @overload
    def protect(self, connection: Any, table: str) -> None: ...

    def protect(self, connection: Any, table: str) -> Any:
        """Let only transactions that have passed a :meth:`check` change the rows of ``table``.

        It makes triggers, which take effect when this transaction commits. From then on, INSERT,
        UPDATE, DELETE, TRUNCATE, MERGE and COPY of any session are refused with SQLSTATE 42501
        (``insufficient_privilege``) unless the session's transaction has passed a check before.
        This applies to the table and to all partitions and children that it has now. It also
        applies to partitions that are added later, except for a TRUNCATE of such a partition
        itself. For that, and for children that inherit from the table later, call this method
        again. Any passed check opens all protected tables to its transaction.

        It guards against forgotten checks, not against ill will. It does not guard against DDL
        (ALTER, ATTACH, DETACH, DROP), nor against what logical replication brings to a subscriber.
        The role must own the table, and needs CREATE on the schema of the table of fences, where
        the function of the triggers is made.

        Calling it twice does no harm. With an asynchronous connection the result must be awaited.
        """
        return self._run(self.driver_of(connection), _statements(self.protect_ddl(table)))

    @overload
    def unprotect(self, connection: AsyncConnection, table: str) -> Coroutine[Any, Any, None]: ...

    @overload
    def unprotect(self, connection: Any, table: str) -> None: ...

    def unprotect(self, connection: Any, table: str) -> Any:
        """Undo :meth:`protect`. With an asynchronous connection the result must be awaited."""
        return self._run(self.driver_of(connection), _statements(self.unprotect_ddl(table)))

    def protect_ddl(self, table: str) -> str:
        """Return the statements of :meth:`protect`, for a migration."""
        return self._filled("protect.sql", table)

    def unprotect_ddl(self, table: str) -> str:
        """Return the statements of :meth:`unprotect`, for a migration."""
        return self._filled("unprotect.sql", table)

    def _filled(self, file: str, table: str) -> str:
        text = (resources.files(__package__) / file).read_text("utf-8")
        return text.replace("{function}", self._quoted(f"{self.table}_fencedlock_check")).replace(
            "{table}", self._quoted(table)
        )


def _statements(sql: str) -> Steps:
    yield Statement(sql)
