"""An account in each kind of store. An update begins, checks, reads, writes and commits."""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, ClassVar

import pytest

from fencedlock import FencingToken
from fencedlock.fencing.mysql import MySQLFence
from fencedlock.fencing.postgresql import PostgreSQLFence
from fencedlock.fencing.sqlite import SQLiteFence

Database = dict[str, str]

TABLES = (
    "CREATE TABLE accounts (id VARCHAR(20) PRIMARY KEY, balance BIGINT NOT NULL, fence BIGINT)",
    "CREATE TABLE history (token BIGINT PRIMARY KEY, balance BIGINT NOT NULL)",
    "INSERT INTO accounts (id, balance) VALUES ('a', 0)",
)
READ = "SELECT balance FROM accounts WHERE id = 'a'"


def write_sql(balance: int, token: FencingToken) -> tuple[str, str]:
    return (
        f"UPDATE accounts SET balance = {balance} WHERE id = 'a'",
        f"INSERT INTO history VALUES ({token}, {balance})",
    )


class Store(ABC):
    """The connection of one writer to its store."""

    database_kind: ClassVar[str]
    begin_locks: ClassVar[bool] = False
    """True if BEGIN already waits for other writers."""
    fence: Any

    def __init__(self, database: Database) -> None:
        self.database = database

    def update(self, token: FencingToken, at: Callable[[str], None]) -> None:
        """Read, change and write the balance in one transaction. Tell ``at`` about the progress."""
        if self.begin_locks:
            at("checking")
        self.begin()
        try:
            if not self.begin_locks:
                at("checking")
            self.check(token)
            at("checked")
            balance = self.read()
            self.write(balance + 1, token)
        except BaseException:
            self.rollback()
            raise
        self.commit()

    def begin(self) -> None:
        if self.begin_locks:
            self.run("BEGIN IMMEDIATE")  # in other stores the first statement begins

    @abstractmethod
    def create(self) -> None:
        """Create the table of fences, and commit."""

    @abstractmethod
    def check(self, token: FencingToken) -> None: ...

    @abstractmethod
    def run(self, sql: str) -> list[Any]: ...

    def read(self) -> int:
        ((balance,),) = self.run(READ)
        return int(balance)

    def write(self, balance: int, token: FencingToken) -> None:
        for statement in write_sql(balance, token):
            self.run(statement)

    @abstractmethod
    def commit(self) -> None: ...

    @abstractmethod
    def rollback(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    # This does nothing for stores in which autocommit is on unless a transaction is begun
    def turn_autocommit_on(self) -> None:  # noqa: B027
        pass

    def prepare(self) -> None:
        """Create the tables in a new database, and fill them."""
        self.begin()
        for statement in TABLES:
            self.run(statement)
        self.commit()
        self.create()


class DBAPIStore(Store):
    """A store that uses a driver of PEP 249."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.connection = self.connect()

    @abstractmethod
    def connect(self) -> Any: ...

    def create(self) -> None:
        self.fence.create(self.connection)
        self.connection.commit()

    def check(self, token: FencingToken) -> None:
        self.fence.check(self.connection, token)

    def run(self, sql: str) -> list[Any]:
        cursor = self.connection.cursor()
        cursor.execute(sql)
        return list(cursor.fetchall()) if cursor.description else []

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        self.connection.rollback()

    def turn_autocommit_on(self) -> None:
        self.connection.autocommit = True

    def close(self) -> None:
        self.connection.close()


class AsyncStore(Store):
    """A store that uses an asynchronous driver, with an event loop of its own."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._runner = asyncio.Runner()
        self.connection = self.wait(self.connect())

    def wait(self, awaitable: Awaitable[Any]) -> Any:
        async def until() -> Any:
            return await awaitable

        return self._runner.run(until())

    @abstractmethod
    async def connect(self) -> Any: ...

    def create(self) -> None:
        self.wait(self.fence.create(self.connection))
        self.commit()

    def check(self, token: FencingToken) -> None:
        self.wait(self.fence.check(self.connection, token))

    def commit(self) -> None:
        self.wait(self.connection.commit())

    def rollback(self) -> None:
        self.wait(self.connection.rollback())

    def close(self) -> None:
        self.wait(self.connection.close())
        self._runner.close()


class Psycopg(DBAPIStore):
    database_kind = "postgresql"
    fence = PostgreSQLFence()

    def connect(self) -> Any:
        import psycopg

        return psycopg.connect(**self.database)  # type: ignore[arg-type]


class Psycopg2(DBAPIStore):
    database_kind = "postgresql"
    fence = PostgreSQLFence()

    def connect(self) -> Any:
        import psycopg2

        return psycopg2.connect(**self.database)  # type: ignore[call-overload]


class AsyncPsycopg(AsyncStore):
    database_kind = "postgresql"
    fence = PostgreSQLFence()

    async def connect(self) -> Any:
        import psycopg

        return await psycopg.AsyncConnection.connect(**self.database)  # type: ignore[arg-type]

    def turn_autocommit_on(self) -> None:
        self.wait(self.connection.set_autocommit(True))

    def run(self, sql: str) -> list[Any]:
        cursor = self.wait(self.connection.execute(sql))
        return list(self.wait(cursor.fetchall())) if cursor.description else []


class Asyncpg(AsyncStore):
    database_kind = "postgresql"
    fence = PostgreSQLFence()

    async def connect(self) -> Any:
        import asyncpg

        return await asyncpg.connect(
            host=self.database["host"], user=self.database["user"], database=self.database["dbname"]
        )

    def begin(self) -> None:
        self.transaction = self.connection.transaction()
        self.wait(self.transaction.start())

    def create(self) -> None:
        self.wait(self.fence.create(self.connection))

    def run(self, sql: str) -> list[Any]:
        return list(self.wait(self.connection.fetch(sql)))

    def commit(self) -> None:
        self.wait(self.transaction.commit())

    def rollback(self) -> None:
        self.wait(self.transaction.rollback())


class SQLite3(DBAPIStore):
    database_kind = "sqlite"
    begin_locks = True
    fence = SQLiteFence()

    def connect(self) -> Any:
        connection = sqlite3.connect(self.database["path"], timeout=60, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    def turn_autocommit_on(self) -> None:
        pass


class Aiosqlite(AsyncStore):
    database_kind = "sqlite"
    begin_locks = True
    fence = SQLiteFence()

    async def connect(self) -> Any:
        import aiosqlite

        connection = await aiosqlite.connect(
            self.database["path"], timeout=60, isolation_level=None
        )
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = OFF")
        return connection

    def run(self, sql: str) -> list[Any]:
        return list(self.wait(self.connection.execute_fetchall(sql)))


class PyMySQL(DBAPIStore):
    database_kind = "mysql"
    fence = MySQLFence()

    def connect(self) -> Any:
        import pymysql

        return pymysql.connect(**self.database)  # type: ignore[call-overload]

    def turn_autocommit_on(self) -> None:
        self.connection.autocommit(True)


class MySQLClient(DBAPIStore):
    database_kind = "mysql"
    fence = MySQLFence()

    def connect(self) -> Any:
        pytest.importorskip(
            "MySQLdb",
            reason="mysqlclient is not installed: it needs MySQL's headers and a compiler",
        )
        return import_module("MySQLdb").connect(**self.database)

    def turn_autocommit_on(self) -> None:
        self.connection.autocommit(True)


class MySQLConnector(DBAPIStore):
    database_kind = "mysql"
    fence = MySQLFence()

    def connect(self) -> Any:
        import mysql.connector

        return mysql.connector.connect(**self.database, collation="utf8mb4_general_ci")


def sqlalchemy_url(kind: str, database: Database, driver: str) -> Any:
    from sqlalchemy import URL

    if kind == "sqlite":
        return URL.create(f"sqlite+{driver}", database=database["path"])
    if kind == "mysql":
        return URL.create(
            f"mysql+{driver}",
            database["user"],
            database=database["database"],
            query={"unix_socket": database["unix_socket"]},
        )
    return URL.create(
        f"postgresql+{driver}",
        database["user"],
        database=database["dbname"],
        query={"host": database["host"]},
    )


class SQLAlchemy(Store):
    """A store that uses a Session of SQLAlchemy, with ORM objects."""

    driver: ClassVar[str]

    def __init__(self, database: Database) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.orm import Session

        from fencedlock.fencing.sqlalchemy import SQLAlchemyFence

        super().__init__(database)
        self.fence = SQLAlchemyFence()
        self.engine = create_engine(
            sqlalchemy_url(self.database_kind, database, self.driver),
            **sqlite_options(self.database_kind),
        )
        # This is the harder case, because the session keeps what it has read.
        self.session = Session(self.engine, expire_on_commit=False)

    def turn_autocommit_on(self) -> None:
        if self.database_kind != "sqlite":
            self.session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})

    def create(self) -> None:
        self.fence.create(self.session)
        self.session.commit()

    def check(self, token: FencingToken) -> None:
        self.fence.check(self.session, token)

    def run(self, sql: str) -> list[Any]:
        from sqlalchemy import text

        result = self.session.execute(text(sql))
        return list(result) if result.returns_rows else []  # type: ignore[attr-defined]

    def read(self) -> int:
        account = self.session.get(models().Account, "a")
        assert account is not None
        return int(account.balance)

    def write(self, balance: int, token: FencingToken) -> None:
        account = self.session.get(models().Account, "a")
        assert account is not None
        account.balance = balance
        self.session.add(models().History(balance=balance, token=int(token)))

    def commit(self) -> None:
        self.session.commit()

    def rollback(self) -> None:
        self.session.rollback()

    def close(self) -> None:
        self.session.close()
        self.engine.dispose()


class AsyncSQLAlchemy(AsyncStore):
    """A store that uses an AsyncSession of SQLAlchemy, with ORM objects."""

    driver: ClassVar[str]

    async def connect(self) -> Any:
        from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

        from fencedlock.fencing.sqlalchemy import SQLAlchemyFence

        self.fence = SQLAlchemyFence()
        self.engine = create_async_engine(
            sqlalchemy_url(self.database_kind, self.database, self.driver),
            **sqlite_options(self.database_kind),
        )
        return AsyncSession(self.engine, expire_on_commit=False)

    def turn_autocommit_on(self) -> None:
        if self.database_kind != "sqlite":
            self.wait(
                self.connection.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            )

    def run(self, sql: str) -> list[Any]:
        from sqlalchemy import text

        result = self.wait(self.connection.execute(text(sql)))
        return list(result) if result.returns_rows else []

    def read(self) -> int:
        return int(self.wait(self.connection.get(models().Account, "a")).balance)

    def write(self, balance: int, token: FencingToken) -> None:
        self.wait(self.connection.get(models().Account, "a")).balance = balance
        self.connection.add(models().History(balance=balance, token=int(token)))

    def close(self) -> None:
        self.wait(self.connection.close())
        self.wait(self.engine.dispose())
        self._runner.close()


def sqlite_options(kind: str) -> dict[str, Any]:
    """Return the engine's options. On SQLite, the store itself sends BEGIN IMMEDIATE."""
    return {"connect_args": {"isolation_level": None, "timeout": 60}} if kind == "sqlite" else {}


def models() -> Any:
    return import_module("tests.fencing.models")


class Django(Store):
    """A store that uses Django's connections inside of transaction.atomic()."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.alias = django_alias(self.database_kind, database)
        from fencedlock.fencing.django import DjangoFence

        self.fence = DjangoFence()

    def begin(self) -> None:
        from django.db.transaction import atomic

        self.atomic = atomic(using=self.alias)
        self.atomic.__enter__()

    def create(self) -> None:
        from django.core.management import call_command

        call_command("migrate", "fencedlock", database=self.alias, verbosity=0)

    def check(self, token: FencingToken) -> None:
        self.fence.check(self.alias, token)

    def run(self, sql: str) -> list[Any]:
        from django.db import connections

        with connections[self.alias].cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def commit(self) -> None:
        self.atomic.__exit__(None, None, None)

    def rollback(self) -> None:
        from django.db import connections

        connections[self.alias].set_rollback(True)
        self.atomic.__exit__(None, None, None)

    def close(self) -> None:
        from django.db import connections

        connections[self.alias].close()


def django_alias(kind: str, database: Database) -> str:
    """Configure Django, if it is not configured yet, and this database. Return its alias."""
    import django
    from django.conf import settings
    from django.db import connections

    if not settings.configured:
        settings.configure(INSTALLED_APPS=["fencedlock.fencing.django"], DATABASES={}, USE_TZ=True)
        django.setup()
    alias = "-".join(database.values())
    if alias not in connections.settings:
        if kind == "sqlite":
            options = {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": database["path"],
                "OPTIONS": {
                    "timeout": 60,
                    "transaction_mode": "IMMEDIATE",
                    "init_command": "PRAGMA synchronous = OFF",
                },
            }
        elif kind == "mysql":
            pytest.importorskip(
                "MySQLdb",
                reason="mysqlclient is not installed: it needs MySQL's headers and a compiler",
            )
            options = {
                "ENGINE": "django.db.backends.mysql",
                "NAME": database["database"],
                "USER": database["user"],
                "HOST": database["unix_socket"],
            }
        else:
            options = {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": database["dbname"],
                "USER": database["user"],
                "HOST": database["host"],
            }
        connections.settings[alias] = connections.configure_settings(
            {"default": {}, alias: options}
        )[alias]
    return alias


def _kinds(base: type[Store], **kinds: tuple[str, str]) -> dict[str, type[Store]]:
    """Return classes of the same store for several databases."""
    made = {}
    for suffix, (kind, driver) in kinds.items():
        made[suffix] = type(
            f"{base.__name__}_{suffix}",
            (base,),
            {"database_kind": kind, "driver": driver, "begin_locks": kind == "sqlite"},
        )
    return made


STORES: dict[str, type[Store]] = {
    "psycopg": Psycopg,
    "psycopg-async": AsyncPsycopg,
    "psycopg2": Psycopg2,
    "asyncpg": Asyncpg,
    "sqlite3": SQLite3,
    "aiosqlite": Aiosqlite,
    "pymysql": PyMySQL,
    "mysqlclient": MySQLClient,
    "mysql-connector": MySQLConnector,
    **{
        f"sqlalchemy-{suffix}": store
        for suffix, store in _kinds(
            SQLAlchemy,
            postgresql=("postgresql", "psycopg"),
            sqlite=("sqlite", "pysqlite"),
            mysql=("mysql", "pymysql"),
        ).items()
    },
    **{
        f"sqlalchemy-async-{suffix}": store
        for suffix, store in _kinds(
            AsyncSQLAlchemy, postgresql=("postgresql", "asyncpg"), sqlite=("sqlite", "aiosqlite")
        ).items()
    },
    **{
        f"django-{suffix}": store
        for suffix, store in _kinds(
            Django, postgresql=("postgresql", ""), sqlite=("sqlite", ""), mysql=("mysql", "")
        ).items()
    },
}
