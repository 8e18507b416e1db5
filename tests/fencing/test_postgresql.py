"""What is special about PostgreSQL: protected tables, isolation levels, and its drivers."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import psycopg.rows
import pytest
from psycopg import errors

from fencedlock import ConfigurationError, FencingToken, StaleTokenError
from fencedlock.fencing.postgresql import PostgreSQLFence
from tests.databases import DatabaseServer, PostgreSQLServer
from tests.fencing.stores import TABLES, Database

OLD, NEW = FencingToken("accounts/a", 5), FencingToken("accounts/a", 6)
FENCE = PostgreSQLFence()

CHANGES = {
    "INSERT": "INSERT INTO accounts (id, balance) VALUES ('b', 1)",
    "UPDATE": "UPDATE accounts SET balance = 1",
    "UPDATE of no row": "UPDATE accounts SET balance = 1 WHERE false",
    "DELETE": "DELETE FROM accounts",
    "TRUNCATE": "TRUNCATE accounts",
    "MERGE": (
        "MERGE INTO accounts USING (SELECT 1) AS s ON id = 'a' "
        "WHEN MATCHED THEN UPDATE SET balance = 2"
    ),
    "upsert": (
        "INSERT INTO accounts (id, balance) VALUES ('a', 1) "
        "ON CONFLICT (id) DO UPDATE SET balance = 5"
    ),
    "in a function": "DO $$ BEGIN UPDATE accounts SET balance = 1; END $$",
    "in a CTE": "WITH gone AS (DELETE FROM accounts RETURNING 1) SELECT * FROM gone",
    "as a replica": "SET LOCAL session_replication_role = replica; UPDATE accounts SET balance = 1",
    "after a setting of old": "SET LOCAL fencedlock.passed = '1'; UPDATE accounts SET balance = 1",
}


@pytest.fixture
def database(new_database: Callable[[str], Database]) -> Database:
    return new_database("postgresql")


@pytest.fixture
def connect(database: Database) -> Iterator[Callable[..., psycopg.Connection[Any]]]:
    connections = []

    def make(**settings: Any) -> psycopg.Connection[Any]:
        connections.append(psycopg.connect(**database, **settings))  # type: ignore[arg-type]
        return connections[-1]

    yield make
    for connection in connections:
        connection.close()


@pytest.fixture
def protected(connect: Callable[..., psycopg.Connection[Any]]) -> psycopg.Connection[Any]:
    """A connection to a database with a protected table, and NEW as the newest token."""
    connection = connect()
    for statement in TABLES:
        connection.execute(statement.encode())
    FENCE.create(connection)
    FENCE.protect(connection, "accounts")
    FENCE.check(connection, NEW)
    connection.commit()
    return connection


def content(connection: psycopg.Connection[Any]) -> list[Any]:
    found = connection.execute("SELECT id, balance FROM accounts").fetchall()
    connection.rollback()
    return found


class TestProtect:
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_without_a_check_nothing_changes(
        self, protected: psycopg.Connection[Any], change: str
    ) -> None:
        with pytest.raises(
            errors.InsufficientPrivilege, match="accounts is protected by fencedlock"
        ) as caught:
            protected.execute(change.encode())
        assert "fence.check" in str(caught.value.diag.message_hint)
        protected.rollback()
        assert content(protected) == [("a", 0)]

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_with_a_check_everything_does(
        self, protected: psycopg.Connection[Any], change: str
    ) -> None:
        if "fencedlock.passed" in change:
            return  # this change overwrites the mark that the check sets
        FENCE.check(protected, NEW)
        protected.execute(change.encode())
        protected.commit()

    def test_copy_needs_a_check(self, protected: psycopg.Connection[Any]) -> None:
        with pytest.raises(errors.InsufficientPrivilege), protected.cursor() as cursor:
            with cursor.copy("COPY accounts (id, balance) FROM STDIN") as copy:
                copy.write("c\t1\n")
        protected.rollback()
        FENCE.check(protected, NEW)
        with (
            protected.cursor() as cursor,
            cursor.copy("COPY accounts (id, balance) FROM STDIN") as copy,
        ):
            copy.write("c\t1\n")
        protected.commit()
        assert content(protected) == [("a", 0), ("c", 1)]

    def test_a_raw_psql_session_needs_a_check(
        self,
        protected: psycopg.Connection[Any],
        database: Database,
        database_server: Callable[[str], DatabaseServer],
    ) -> None:
        server = database_server("postgresql")
        assert isinstance(server, PostgreSQLServer)
        said = server.psql(database, "UPDATE accounts SET balance = 9;")
        assert said.returncode != 0
        assert "protected by fencedlock" in said.stderr
        said = server.psql(database, "\\copy accounts (id, balance) FROM STDIN\nd\t1\n\\.\n")
        assert "protected by fencedlock" in said.stderr
        assert content(protected) == [("a", 0)]
        by_hand = (
            "BEGIN; SELECT set_config('fencedlock.passed', txid_current()::text, true); "
            "UPDATE accounts SET balance = 9; COMMIT;"
        )
        assert server.psql(database, by_hand).returncode == 0, (
            "the way for maintenance, as documented"
        )
        assert content(protected) == [("a", 9)]

    def test_a_stale_check_does_not_open_it_and_closes_what_was_open(
        self, protected: psycopg.Connection[Any]
    ) -> None:
        FENCE.check(protected, FencingToken("other", 1))
        with pytest.raises(StaleTokenError):
            FENCE.check(protected, OLD)
        with pytest.raises(errors.InsufficientPrivilege):
            protected.execute("UPDATE accounts SET balance = 1")
        protected.rollback()

    def test_the_permission_ends_with_the_transaction(
        self, protected: psycopg.Connection[Any]
    ) -> None:
        for end in (protected.commit, protected.rollback):
            FENCE.check(protected, NEW)
            protected.execute("UPDATE accounts SET balance = balance")
            end()
            with pytest.raises(errors.InsufficientPrivilege):
                protected.execute("UPDATE accounts SET balance = 1")
            protected.rollback()

    def test_the_permission_ends_with_its_savepoint(
        self, protected: psycopg.Connection[Any]
    ) -> None:
        protected.execute("SAVEPOINT s")
        FENCE.check(protected, NEW)
        protected.execute("ROLLBACK TO s")
        with pytest.raises(errors.InsufficientPrivilege):
            protected.execute("UPDATE accounts SET balance = 1")
        protected.rollback()
        with protected.transaction():
            with protected.transaction():
                FENCE.check(protected, NEW)
            protected.execute("UPDATE accounts SET balance = 1")

    def test_a_check_of_another_transaction_does_not_open_it(
        self, protected: psycopg.Connection[Any], connect: Callable[..., psycopg.Connection[Any]]
    ) -> None:
        FENCE.check(protected, NEW)
        with pytest.raises(errors.InsufficientPrivilege):
            connect().execute("UPDATE accounts SET balance = 1")
        protected.rollback()

    def test_unprotect_removes_it_and_both_can_be_repeated(
        self, protected: psycopg.Connection[Any]
    ) -> None:
        FENCE.protect(protected, "accounts")
        FENCE.unprotect(protected, "public.accounts")
        FENCE.unprotect(protected, "accounts")
        protected.execute("UPDATE accounts SET balance = 1")
        assert protected.execute(
            "SELECT to_regprocedure('fences_fencedlock_check()')"
        ).fetchall() == [(None,)], "nothing is left"
        protected.commit()

    def test_partitions_are_protected_also_those_to_come(
        self, protected: psycopg.Connection[Any]
    ) -> None:
        protected.execute("CREATE TABLE events (id int, day int) PARTITION BY RANGE (day)")
        protected.execute("CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10)")
        FENCE.protect(protected, "events")
        protected.execute("CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (10) TO (20)")
        FENCE.check(protected, NEW)
        protected.execute("INSERT INTO events VALUES (1, 1), (2, 11)")
        protected.commit()
        for change in (
            "DELETE FROM events",
            "DELETE FROM events_1",
            "TRUNCATE events_1",
            "UPDATE events_2 SET id = 3",
            "INSERT INTO events_2 VALUES (5, 15)",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                protected.execute(change.encode())
            protected.rollback()
        FENCE.protect(protected, "events")
        protected.commit()
        with pytest.raises(errors.InsufficientPrivilege):
            protected.execute("TRUNCATE events_2")
        protected.rollback()
        FENCE.unprotect(protected, "events")
        protected.execute("TRUNCATE events_2")
        protected.execute("DELETE FROM events")
        protected.commit()

    def test_partitions_of_partitions(self, protected: psycopg.Connection[Any]) -> None:
        protected.execute("CREATE TABLE t (id int, day int) PARTITION BY RANGE (day)")
        protected.execute(
            "CREATE TABLE s PARTITION OF t FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (day)"
        )
        protected.execute("CREATE TABLE s_1 PARTITION OF s FOR VALUES FROM (0) TO (10)")
        for tables in ("s",), ("s", "t"), ("t", "s"):
            for table in tables:
                FENCE.protect(protected, table)
            protected.commit()
            with pytest.raises(errors.InsufficientPrivilege):
                protected.execute("INSERT INTO s_1 VALUES (1, 1)")
            protected.rollback()
            FENCE.unprotect(protected, tables[-1])
            FENCE.unprotect(protected, "t")
            protected.execute("INSERT INTO t VALUES (1, 1)")
            protected.commit()

    def test_another_role_protects_its_own_table(self, protected: psycopg.Connection[Any]) -> None:
        protected.execute("DROP ROLE IF EXISTS bob")
        protected.execute("CREATE ROLE bob")
        protected.execute("CREATE TABLE his (x int)")
        protected.execute("ALTER TABLE his OWNER TO bob")
        protected.execute("GRANT CREATE, USAGE ON SCHEMA public TO bob")
        protected.execute("SET ROLE bob")
        FENCE.protect(protected, "his")
        with pytest.raises(errors.InsufficientPrivilege, match="his is protected") as caught:
            protected.execute("INSERT INTO his VALUES (1)")
        assert "\n" not in str(caught.value.diag.message_hint)
        protected.rollback()

    def test_a_cascade_into_a_protected_table_is_refused(
        self, protected: psycopg.Connection[Any]
    ) -> None:
        protected.execute("CREATE TABLE owners (id int PRIMARY KEY)")
        FENCE.check(protected, NEW)
        protected.execute("ALTER TABLE accounts ADD owner int REFERENCES owners ON DELETE CASCADE")
        protected.execute("INSERT INTO owners VALUES (1)")
        protected.execute("UPDATE accounts SET owner = 1")
        protected.commit()
        with pytest.raises(errors.InsufficientPrivilege):
            protected.execute("DELETE FROM owners")
        protected.rollback()

    def test_what_is_no_table_is_refused(self, protected: psycopg.Connection[Any]) -> None:
        protected.execute("CREATE VIEW rich AS SELECT * FROM accounts")
        with pytest.raises(errors.WrongObjectType, match="no table"):
            FENCE.protect(protected, "rich")
        protected.rollback()
        with pytest.raises(errors.UndefinedTable):
            FENCE.protect(protected, "missing")
        protected.rollback()
        with pytest.raises(ConfigurationError, match="made of letters"):
            FENCE.protect(protected, "accounts; DROP TABLE accounts")

    def test_another_schema_and_another_table_of_fences(
        self, protected: psycopg.Connection[Any]
    ) -> None:
        protected.execute("CREATE SCHEMA app")
        protected.execute('CREATE TABLE app."Data" (x int)')
        fence = PostgreSQLFence("app.Fences")
        protected.execute(fence.ddl().encode())
        protected.execute(fence.protect_ddl("app.Data").encode())
        protected.commit()
        protected.execute("SET search_path = pg_catalog")
        with pytest.raises(errors.InsufficientPrivilege, match=r'app\."Data" is protected'):
            protected.execute('INSERT INTO app."Data" VALUES (1)')
        protected.rollback()
        fence.check(protected, OLD)
        protected.execute('INSERT INTO app."Data" VALUES (1)')
        protected.execute(fence.unprotect_ddl("app.Data").encode())
        protected.commit()
        protected.execute('INSERT INTO app."Data" VALUES (2)')


class TestRights:
    def test_a_role_without_rights_is_told_which(self, protected: psycopg.Connection[Any]) -> None:
        protected.execute("DROP ROLE IF EXISTS ann")
        protected.execute("CREATE ROLE ann")
        protected.execute("SET ROLE ann")
        with pytest.raises(ConfigurationError, match="GRANT SELECT, INSERT, UPDATE"):
            FENCE.check(protected, NEW)
        protected.rollback()

    def test_a_role_that_may_make_no_tables_can_run_create_where_there_is_one(
        self, protected: psycopg.Connection[Any]
    ) -> None:
        protected.execute("DROP ROLE IF EXISTS ann")
        protected.execute("CREATE ROLE ann")
        protected.execute("GRANT SELECT, INSERT, UPDATE ON fences TO ann")
        protected.execute("SET ROLE ann")
        FENCE.create(protected)
        FENCE.check(protected, NEW)
        protected.rollback()

    def test_a_read_only_transaction_is_told(self, protected: psycopg.Connection[Any]) -> None:
        protected.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(ConfigurationError, match="read-only"):
            FENCE.check(protected, NEW)
        protected.rollback()


class TestIsolation:
    @pytest.mark.parametrize(
        "level",
        [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE],
        ids=str,
    )
    def test_above_read_committed_the_database_asks_for_another_try(
        self,
        protected: psycopg.Connection[Any],
        connect: Callable[..., psycopg.Connection[Any]],
        level: psycopg.IsolationLevel,
    ) -> None:
        other = connect()
        other.isolation_level = level
        other.execute("SELECT 1")  # takes the snapshot
        FENCE.check(protected, FencingToken("accounts/a", 9))
        protected.commit()
        with pytest.raises(errors.SerializationFailure):
            FENCE.check(other, NEW)
        other.rollback()
        with pytest.raises(StaleTokenError):
            FENCE.check(other, NEW)
        other.rollback()

    def test_a_check_waits_for_the_one_before_it(
        self, protected: psycopg.Connection[Any], connect: Callable[..., psycopg.Connection[Any]]
    ) -> None:
        other, read = connect(), []

        def next_holder() -> None:
            FENCE.check(other, FencingToken("accounts/a", 7))
            read.extend(other.execute("SELECT balance FROM accounts").fetchall())
            other.commit()

        FENCE.check(protected, NEW)
        thread = threading.Thread(target=next_holder)
        thread.start()
        watcher = connect(autocommit=True)
        while not watcher.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall():
            pass
        protected.execute("UPDATE accounts SET balance = 42")
        protected.commit()
        thread.join()
        assert read == [(42,)]

    def test_many_make_the_table_at_once(
        self, connect: Callable[..., psycopg.Connection[Any]]
    ) -> None:
        failed = []

        def create(connection: psycopg.Connection[Any]) -> None:
            try:
                FENCE.create(connection)
                connection.commit()
            except psycopg.Error as error:
                failed.append(error)

        threads = [threading.Thread(target=create, args=[connect()]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed


class TestDrivers:
    def test_rows_of_any_kind_and_explicit_transactions(
        self, protected: psycopg.Connection[Any], connect: Callable[..., psycopg.Connection[Any]]
    ) -> None:
        connection = connect(
            autocommit=True, row_factory=psycopg.rows.dict_row, cursor_factory=psycopg.RawCursor
        )
        with connection.transaction():
            FENCE.check(connection, NEW)
            connection.execute("UPDATE accounts SET balance = 3")
        with pytest.raises(StaleTokenError), connection.transaction():
            FENCE.check(connection, OLD)
        assert content(protected) == [("a", 3)]

    def test_a_forgotten_await_is_named(self, database: Database) -> None:
        async def forget() -> None:
            connection = await asyncpg.connect(
                host=database["host"], user=database["user"], database=database["dbname"]
            )
            with pytest.warns(RuntimeWarning, match=r"PostgreSQLFence\.check' was never awaited"):
                FENCE.check(connection, NEW)  # type: ignore[unused-coroutine]
                gc.collect()
            await connection.close()

        asyncio.run(forget())

    def test_connections_of_a_pool_of_asyncpg(
        self, protected: psycopg.Connection[Any], database: Database
    ) -> None:
        async def use() -> None:
            options: dict[str, Any] = {
                "host": database["host"],
                "user": database["user"],
                "database": database["dbname"],
            }
            async with (
                asyncpg.create_pool(**options, min_size=1, max_size=1) as pool,
                pool.acquire() as connection,
            ):
                await FENCE.create(connection)
                async with connection.transaction():
                    await FENCE.check(connection, NEW)
                    await connection.execute("UPDATE accounts SET balance = 4")
                with pytest.raises(StaleTokenError):
                    async with connection.transaction():
                        await FENCE.check(connection, OLD)
                await FENCE.unprotect(connection, "accounts")
                await FENCE.protect(connection, "accounts")

        asyncio.run(use())
        assert content(protected) == [("a", 4)]

    def test_what_is_no_connection_is_refused(self, protected: psycopg.Connection[Any]) -> None:
        for wrong in (protected.cursor(), None, "postgresql://", NEW):
            with pytest.raises(
                TypeError,
                match=r"takes the connection first, "
                r"one of psycopg, psycopg2, asyncpg, .* cursor\.connection",
            ):
                FENCE.check(wrong, NEW)
