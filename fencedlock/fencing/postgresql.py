"""PostgreSQL, by psycopg, psycopg2 or asyncpg."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, ClassVar, overload

from fencedlock.fencing.sql import AsyncConnection, Driver, Gives, Mistake, SQLFence, Statement, Steps, Style
from fencedlock.token import FencingToken

IDLE = 0
"""libpq's PQTRANS_IDLE: connected, and in no transaction."""


class PsycopgDriver(Driver):
    """A connection of psycopg 3."""

    begin_words = "turn autocommit off, or open one ('with connection.transaction():')"

    def in_transaction(self) -> bool:
        return int(self.connection.info.transaction_status) != IDLE

    def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        from psycopg.rows import tuple_row

        with self.connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchone() if gives is Gives.ROW else None


class AsyncPsycopgDriver(PsycopgDriver):
    """An asynchronous connection of psycopg 3."""

    is_async = True
    begin_words = "turn autocommit off, or open one ('async with connection.transaction():')"

    async def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        from psycopg.rows import tuple_row

        async with self.connection.cursor(row_factory=tuple_row) as cursor:
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
    """A connection of asyncpg, or what its pool lends."""

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
    """Fences in PostgreSQL 10 or newer, by psycopg 3 (also asynchronous), psycopg2 or asyncpg.

    Use it at READ COMMITTED, the default: at REPEATABLE READ and SERIALIZABLE a check that had to wait for another holder's
    transaction answers with a serialization failure (40001) instead, and the whole transaction is to be run again.
    """

    drivers: ClassVar[Mapping[tuple[str, str], type[Driver]]] = {
        ("psycopg", "Connection"): PsycopgDriver,
        ("psycopg", "AsyncConnection"): AsyncPsycopgDriver,
        ("psycopg2", "connection"): Psycopg2Driver,
        ("asyncpg", "Connection"): AsyncpgDriver,
        ("asyncpg", "PoolConnectionProxy"): AsyncpgDriver,
    }
    mistakes: ClassVar[Mapping[Any, Mistake]] = {"42P01": Mistake.NO_TABLE, "42703": Mistake.NO_COLUMN}

    def ddl(self) -> str:
        return (
            f"CREATE TABLE IF NOT EXISTS {self._table} (\n"
            '    resource text COLLATE "C" PRIMARY KEY,\n'
            "    token bigint NOT NULL,\n"
            "    lock_name text\n"
            ")"
        )

    def create_steps(self) -> Steps:
        """Make the table; two who do so at once would otherwise meet in PostgreSQL's catalogue."""
        yield Statement("SELECT pg_advisory_xact_lock(hashtext('fencedlock'))")
        yield Statement(self.ddl())

    def check_steps(self, token: FencingToken, resource: str) -> Steps:
        passed = yield Statement(
            f"WITH raised AS (INSERT INTO {self._table} AS f (resource, token, lock_name) VALUES (:resource, :token, :lock) "
            "ON CONFLICT (resource) DO UPDATE SET token = EXCLUDED.token, lock_name = EXCLUDED.lock_name "
            "WHERE f.token <= EXCLUDED.token AND (f.lock_name IS NULL OR f.lock_name = EXCLUDED.lock_name) RETURNING 1) "
            "SELECT set_config('fencedlock.passed', CAST(txid_current() AS text), true) FROM raised",
            {"resource": resource, "token": int(token), "lock": token.lock},
            Gives.ROW,
        )
        if passed is None:
            found = yield Statement(
                f"SELECT token, lock_name, set_config('fencedlock.passed', '', true) FROM {self._table} WHERE resource = :resource",
                {"resource": resource},
                Gives.ROW,
            )
            raise self.refused(token, resource, *(found or (None, None))[:2])

    def code_of(self, error: Exception) -> Any:
        return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)

    # --- enforcement in the database itself

    @overload
    def protect(self, connection: AsyncConnection, table: str) -> Awaitable[None]: ...

    @overload
    def protect(self, connection: Any, table: str) -> None: ...

    def protect(self, connection: Any, table: str) -> Any:
        """From the commit on, let no transaction change ``table`` unless it has passed a :meth:`check` before.

        INSERT, UPDATE, DELETE, TRUNCATE, MERGE and COPY are refused with SQLSTATE 42501 (``insufficient_privilege``),
        whoever sends them. It works for all partitions and children that the table has, and for partitions that are added
        later, except for a TRUNCATE of such a partition itself: call it again for that. Any passed check opens all protected
        tables to its transaction. It guards against what was forgotten, not against ill will.

        Calling it twice does nothing. To be awaited with an asynchronous connection.
        """
        return self._run(self.driver_of(connection), _statements(self.protect_ddl(table)))

    @overload
    def unprotect(self, connection: AsyncConnection, table: str) -> Awaitable[None]: ...

    @overload
    def unprotect(self, connection: Any, table: str) -> None: ...

    def unprotect(self, connection: Any, table: str) -> Any:
        """Undo :meth:`protect`. To be awaited with an asynchronous connection."""
        return self._run(self.driver_of(connection), _statements(self.unprotect_ddl(table)))

    def protect_ddl(self, table: str) -> str:
        """The statements of :meth:`protect`, for a migration."""
        function = self._quoted(f"{self.table}_fencedlock_check")
        return _PROTECT.replace("{function}", function).replace("{table}", self._quoted(table))

    def unprotect_ddl(self, table: str) -> str:
        """The statements of :meth:`unprotect`, for a migration."""
        return _UNPROTECT.replace("{table}", self._quoted(table))


def _statements(sql: str) -> Steps:
    yield Statement(sql)


# No colons in these: they would be taken for parameters.
_TREE = """
        WITH RECURSIVE tree AS (
            SELECT CAST(CAST('{table}' AS regclass) AS oid) AS oid
            UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid
        )
        SELECT CAST(c.oid AS regclass) AS name, c.relkind, c.relispartition FROM tree JOIN pg_class AS c ON c.oid = tree.oid"""

_PROTECT = (
    """CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $fencedlock$
BEGIN
    IF current_setting('fencedlock.passed', true) IS DISTINCT FROM CAST(txid_current() AS text) THEN
        RAISE EXCEPTION 'table % is protected by fencedlock, and this transaction has passed no check', CAST(TG_RELID AS regclass)
            USING ERRCODE = 'insufficient_privilege', HINT = 'Check the fencing token first in the transaction, by
            fence.check(connection, token).'; END IF; RETURN NULL; END $fencedlock$; DO $fencedlock$ DECLARE target record;
            BEGIN
    FOR target IN"""
    + _TREE
    + """
    LOOP
        IF target.relkind NOT IN ('r', 'p') THEN
            IF target.name = CAST('{table}' AS regclass) THEN
                RAISE EXCEPTION '% is no table, and only tables can be protected', target.name USING ERRCODE = 'wrong_object_type';
            END IF;
            CONTINUE;
        END IF;
        IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = target.name AND tgname = 'fencedlock_check') THEN
            EXECUTE format('CREATE TRIGGER fencedlock_check BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
                'FOR EACH STATEMENT EXECUTE FUNCTION {function}()', target.name);
            EXECUTE format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER fencedlock_check', target.name);
        END IF;
        -- PostgreSQL copies row triggers, and only them, to partitions that are added later.
        IF target.relkind = 'p'
            AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = target.name AND tgname = 'fencedlock_check_rows') THEN
            EXECUTE format('CREATE TRIGGER fencedlock_check_rows AFTER INSERT OR UPDATE OR DELETE ON %s '
                'FOR EACH ROW EXECUTE FUNCTION {function}()', target.name);
            EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER fencedlock_check_rows', target.name);
        END IF;
    END LOOP;
END
$fencedlock$"""
)

_UNPROTECT = (
    """DO $fencedlock$
DECLARE
    target record;
BEGIN
    FOR target IN"""
    + _TREE
    + """
    LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS fencedlock_check ON %s', target.name);
        IF NOT target.relispartition THEN
            EXECUTE format('DROP TRIGGER IF EXISTS fencedlock_check_rows ON %s', target.name);
        END IF;
    END LOOP;
END
$fencedlock$"""
)
