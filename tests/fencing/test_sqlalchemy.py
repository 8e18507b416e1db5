"""What is special about SQLAlchemy: the session's memory, kinds of connections, other databases."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.exc import MissingGreenlet, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from fencedlock import ConfigurationError, FencingToken, StaleTokenError
from fencedlock.fencing.postgresql import PostgreSQLFence
from fencedlock.fencing.sqlalchemy import SQLAlchemyFence
from tests.fencing.models import Account, Base, History
from tests.fencing.stores import Database, sqlalchemy_url

OLD, NEW = FencingToken("accounts/a", 5), FencingToken("accounts/a", 6)
FENCE = SQLAlchemyFence()


@pytest.fixture
def database(new_database: Callable[[str], Database]) -> Database:
    return new_database("postgresql")


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = create_engine(sqlalchemy_url("postgresql", database, "psycopg"))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        FENCE.create(session)
        session.add_all([Account(id="a", balance=0), Account(id="b", balance=0)])
        session.commit()
    yield engine
    engine.dispose()


class TestSession:
    def test_what_was_read_before_the_check_is_read_again(self, engine: Engine) -> None:
        with Session(engine, expire_on_commit=False) as ours, Session(engine) as theirs:
            account = ours.get(Account, "a")
            assert account is not None
            ours.commit()
            theirs.get_one(Account, "a").balance = 100
            theirs.commit()
            assert account.balance == 0, "the session keeps what it has read"
            FENCE.check(ours, NEW)
            assert ours.get_one(Account, "a").balance == 100

    def test_changes_from_before_the_check_are_refused(self, engine: Engine) -> None:
        with Session(engine) as session:
            FENCE.create(session)  # does not count as a check
            session.get_one(Account, "a").balance = 7
            with pytest.raises(ConfigurationError, match="has changed objects before the check"):
                FENCE.check(session, NEW)
            session.rollback()
            session.delete(session.get_one(Account, "b"))
            with pytest.raises(ConfigurationError, match="has changed objects before the check"):
                FENCE.check(session, NEW)
            session.rollback()
            session.add(History(token=1, balance=1))  # a new object has read nothing
            FENCE.check(session, NEW)
            session.commit()
            assert session.get(History, 1) is not None

    def test_changes_after_the_first_check_are_kept_by_the_second(self, engine: Engine) -> None:
        with Session(engine, expire_on_commit=False) as ours, Session(engine) as theirs:
            ours.get_one(Account, "a")
            ours.commit()
            theirs.get_one(Account, "a").balance = 100
            theirs.commit()
            FENCE.check(ours, NEW)
            account = ours.get_one(Account, "a")
            account.fence = 1
            ours.delete(ours.get_one(Account, "b"))
            FENCE.check(ours, NEW)
            account.balance += 1
            ours.commit()
            assert (account.balance, account.fence, ours.get(Account, "b")) == (101, 1, None)

    def test_a_check_flushes_nothing(self, engine: Engine) -> None:
        statements: list[str] = []
        event.listen(
            engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
        )
        with Session(engine) as session:
            session.add(History(token=1, balance=1))
            FENCE.check(session, NEW)
            assert len(statements) == 1
            session.rollback()

    def test_a_scoped_session(self, engine: Engine) -> None:
        session = scoped_session(sessionmaker(engine))
        FENCE.check(session, NEW)
        session.commit()
        with pytest.raises(StaleTokenError):
            FENCE.check(session, OLD)
        session.remove()

    @pytest.mark.usefixtures("engine")
    def test_an_async_session_and_its_kin(self, database: Database) -> None:
        async def use() -> None:
            engine = create_async_engine(sqlalchemy_url("postgresql", database, "asyncpg"))
            async with AsyncSession(engine, expire_on_commit=False) as session:
                await FENCE.create(session)
                before = await session.get_one(Account, "b")
                await FENCE.check(session, NEW)
                with pytest.raises(MissingGreenlet):
                    _ = before.balance
                await session.refresh(before)
                assert before.balance == 0
                await session.commit()
            scoped = async_scoped_session(
                sessionmaker(engine, class_=AsyncSession),  # type: ignore[call-overload]
                scopefunc=asyncio.current_task,
            )
            with pytest.raises(StaleTokenError):
                await FENCE.check(scoped, OLD)
            await scoped.remove()
            async with engine.begin() as connection:
                await FENCE.check(connection, NEW)
            await engine.dispose()

        asyncio.run(use())


class TestConnection:
    def test_in_a_transaction(self, engine: Engine) -> None:
        with engine.begin() as connection:
            FENCE.check(connection, NEW)
        with pytest.raises(StaleTokenError), engine.begin() as connection:
            FENCE.check(connection, OLD)

    @pytest.mark.parametrize("how", ["engine", "connection"])
    def test_in_autocommit_it_is_refused(self, engine: Engine, how: str) -> None:
        options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}
        with (
            engine.execution_options(**options) if how == "engine" else engine
        ).connect() as connection:
            if how == "connection":
                connection.execution_options(**options)
            with pytest.raises(ConfigurationError, match="isolation_level than AUTOCOMMIT"):
                FENCE.check(connection, NEW)

    def test_a_driver_without_a_room_in_autocommit_is_refused(
        self, new_database: Callable[[str], Database]
    ) -> None:
        database = new_database("mysql")

        async def use() -> None:
            url = sqlalchemy_url("mysql", database, "aiomysql")
            engine = create_async_engine(url)
            async with engine.begin() as connection:
                await FENCE.create(connection)
                await FENCE.check(connection, NEW)
            await engine.dispose()
            engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
            async with engine.connect() as connection:
                with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                    await FENCE.check(connection, NEW)
            await engine.dispose()

        asyncio.run(use())

    def test_in_a_savepoint_of_sqlite_it_is_refused(
        self, new_database: Callable[[str], Database]
    ) -> None:
        """sqlite3 begins the transaction with the savepoint, and the savepoint's end commits it."""
        engine = create_engine(sqlalchemy_url("sqlite", new_database("sqlite"), "pysqlite"))
        with Session(engine) as session:
            FENCE.create(session)
            with (
                pytest.raises(ConfigurationError, match="outermost transaction"),
                session.begin_nested(),
            ):
                FENCE.check(session, NEW)
        engine.dispose()

    def test_what_is_no_connection_is_refused(self, engine: Engine) -> None:
        for wrong in (engine, sessionmaker(engine), None):
            with pytest.raises(TypeError, match="takes the Connection, Session or AsyncSession"):
                FENCE.check(wrong, NEW)  # type: ignore[call-overload]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_protection_is_installed_by_sqlalchemy_too(
    engine: Engine, database: Database, driver: str
) -> None:
    ddl = PostgreSQLFence()
    other = create_engine(sqlalchemy_url("postgresql", database, driver))
    with other.begin() as connection:
        connection.execute(text(ddl.protect_ddl("accounts")))
    with (
        pytest.raises(ProgrammingError, match="protected by fencedlock"),
        engine.begin() as connection,
    ):
        connection.execute(text("UPDATE accounts SET balance = 1"))
    with other.begin() as connection:
        FENCE.check(connection, NEW)
        connection.execute(text("UPDATE accounts SET balance = 1"))
        connection.execute(text(ddl.unprotect_ddl("accounts")))
    other.dispose()


class TestPortable:
    """Databases without a fence class of their own get plain SQL.

    The tests use PostgreSQL, because only its name tells it apart from such a database.
    """

    @pytest.fixture
    def fence(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> SQLAlchemyFence:
        monkeypatch.setattr(SQLAlchemyFence, "rooms", {})
        fence = SQLAlchemyFence("public.plain")
        with engine.begin() as connection:
            fence.create(connection)
            fence.create(connection)
        return fence

    def test_tokens_only_rise(self, engine: Engine, fence: SQLAlchemyFence) -> None:
        for token in (OLD, OLD, NEW):
            with engine.begin() as connection:
                fence.check(connection, token)
        with pytest.raises(StaleTokenError) as caught, engine.begin() as connection:
            fence.check(connection, OLD)
        assert (caught.value.presented, caught.value.stored) == (5, 6)
        with (
            pytest.raises(ConfigurationError, match="guarded by lock"),
            engine.begin() as connection,
        ):
            fence.check(connection, FencingToken("other", 9), "accounts/a")

    def test_who_inserts_second_takes_the_other_one_s_row(
        self, engine: Engine, fence: SQLAlchemyFence
    ) -> None:
        """Another connection inserts between our update, which finds no row, and our insert."""

        raced: list[bool] = []

        def insert(*arguments: Any) -> None:
            if arguments[2].startswith("INSERT") and not raced:
                raced.append(True)
                with engine.begin() as other:
                    fence.check(other, OLD)

        event.listen(engine, "before_cursor_execute", insert)
        with engine.begin() as connection:
            fence.check(connection, NEW)
            assert connection.execute(text("SELECT token FROM plain")).all() == [(6,)]
        assert raced

    def test_its_row_is_locked(self, engine: Engine, fence: SQLAlchemyFence) -> None:
        with engine.begin() as connection:
            fence.check(connection, OLD)
        with engine.begin() as connection, engine.begin() as other:
            fence.check(connection, OLD)
            assert other.execute(text("SELECT 1 FROM plain FOR UPDATE SKIP LOCKED")).all() == []

    def test_autocommit_is_refused(
        self, engine: Engine, fence: SQLAlchemyFence, database: Database
    ) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                fence.check(connection, NEW)
        always = create_engine(
            sqlalchemy_url("postgresql", database, "psycopg2"), isolation_level="AUTOCOMMIT"
        )
        with always.connect() as connection, pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            fence.check(connection, NEW)
        always.dispose()


@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "mariadb", "sqlite", "oracle", "mssql"])
def test_ddl_for_every_dialect(dialect: str) -> None:
    ddl = SQLAlchemyFence("fences").ddl(dialect)
    assert ddl.startswith("CREATE TABLE")
    assert all(column in ddl for column in ("resource", "token", "lock_name"))


def test_ddl_for_an_unknown_dialect() -> None:
    with pytest.raises(ConfigurationError, match="no dialect 'nonsense'"):
        FENCE.ddl("nonsense")


def test_the_ddl_makes_the_table(new_database: Callable[[str], Database]) -> None:
    engine = create_engine(sqlalchemy_url("sqlite", new_database("sqlite"), "pysqlite"))
    with engine.begin() as connection:
        connection.execute(text(FENCE.ddl(connection.dialect.name)))
        FENCE.check(connection, NEW)
        assert inspect(connection).has_table("fences")
    engine.dispose()


WITHOUT_GREENLET = """
import sys
sys.modules["greenlet"] = None
from sqlalchemy import create_engine
from fencedlock import FencingToken
from fencedlock.fencing.sqlalchemy import SQLAlchemyFence
fence = SQLAlchemyFence()
with create_engine("sqlite://").begin() as connection:
    fence.create(connection)
    fence.check(connection, FencingToken("a", 1))
print("checked")
"""


def test_who_uses_no_async_session_needs_no_greenlet() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_GREENLET], capture_output=True, text=True)
    assert done.stdout == "checked\n", done.stderr
