"""SQLAlchemy 2: Core connections, Session and AsyncSession, on any database."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, overload

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    MetaData,
    String,
    Table,
    TextClause,
    bindparam,
    inspect,
    text,
)
from sqlalchemy.dialects import registry
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.orm import Session, SessionTransaction, scoped_session
from sqlalchemy.schema import CreateTable

from fencedlock.errors import ConfigurationError
from fencedlock.fencing.base import NO_TRANSACTION, checked_resource
from fencedlock.fencing.mysql import MySQLFence
from fencedlock.fencing.portable import MOST_PORTABLE_CHARACTERS, PortableFence
from fencedlock.fencing.postgresql import PostgreSQLFence
from fencedlock.fencing.sql import Driver, Gives, SQLFence, Statement, Steps, parts_of
from fencedlock.fencing.sqlite import SQLiteFence
from fencedlock.token import FencingToken

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

Synchronous: TypeAlias = Connection | Session | scoped_session[Any]
Asynchronous: TypeAlias = "AsyncConnection | AsyncSession | async_scoped_session[Any]"


class SQLAlchemyDriver(Driver):
    """A Core connection, in whatever transaction it is."""

    begin_words = "let the engine or connection have another isolation_level than AUTOCOMMIT ('with engine.begin() as connection:')"

    def __init__(self, connection: Connection, room: SQLFence) -> None:
        super().__init__(connection)
        self._room = room

    def in_transaction(self) -> bool | None:
        raw = self.connection.connection.driver_connection
        try:
            return self._room.driver_of(raw).in_transaction()
        except TypeError:  # a driver that the room does not know
            options = self.connection.get_execution_options()
            off = (
                options.get("isolation_level") == "AUTOCOMMIT"
                or getattr(raw, "autocommit", False) is True
            )
            return False if off else None

    def perform(self, statement: Statement) -> Any:
        return self.execute(statement.sql, statement.parameters, statement.gives)

    def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        clause = _text(sql)
        if gives is Gives.INSERTED:
            if self.in_transaction() is False:  # or the savepoint would fail
                raise ConfigurationError(NO_TRANSACTION.format(begin=self.begin_words))
            try:
                with self.connection.begin_nested():
                    self.connection.execute(clause, parameters)
            except IntegrityError:
                return False
            return True
        result = self.connection.execute(clause, parameters)
        if gives is Gives.ROW:
            return result.first()
        return result.rowcount if gives is Gives.COUNT else None

    def origin(self, error: Exception) -> Exception:
        return (
            error.orig
            if isinstance(error, DBAPIError) and isinstance(error.orig, Exception)
            else error
        )


class SQLAlchemyFence:
    """Fences in any database, by a Core ``Connection``, a ``Session`` or an ``AsyncSession`` of SQLAlchemy 2.

    PostgreSQL, MySQL, MariaDB and SQLite get the statements of their own rooms, and are to be used
    as these say; other databases get plain SQL.

    A check expires what is unchanged in the objects of a session, so that what is read after it
    comes from the database; and the first check of a transaction refuses a session with changes
    that are not flushed. So pass the session, and not its connection. In an ``AsyncSession`` an
    object that was loaded before the check must be refreshed before it is touched: load it after
    the check.
    """

    rooms: ClassVar[Mapping[str, type[SQLFence]]] = {
        "postgresql": PostgreSQLFence,
        "mysql": MySQLFence,
        "mariadb": MySQLFence,
        "sqlite": SQLiteFence,
    }
    """By the name of the dialect."""

    def __init__(self, table: str = "fences") -> None:
        self.table: str = table
        parts_of(table)  # refuses what can't be a name

    def __repr__(self) -> str:
        return f"SQLAlchemyFence({self.table!r})"

    def ddl(self, dialect: str) -> str:
        """The statement that makes the table, for a migration: ``op.execute(fence.ddl(op.get_bind().dialect.name))``.

        Raises ConfigurationError for a dialect that is not installed.
        """
        if dialect in self.rooms:
            return self.rooms[dialect](self.table).ddl()
        try:
            made: Dialect = registry.load(dialect)()
        except NoSuchModuleError as error:
            raise ConfigurationError(
                f"SQLAlchemy knows no dialect {dialect!r}: name it as connection.dialect.name does"
            ) from error
        return str(
            CreateTable(self._portable_table(), if_not_exists=True).compile(dialect=made)
        ).strip()

    @overload
    def create(self, session: Asynchronous) -> Coroutine[Any, Any, None]: ...

    @overload
    def create(self, session: Synchronous) -> None: ...

    def create(self, session: Synchronous | Asynchronous) -> Any:
        """Make the table, unless it is there. Commit after it.

        To be awaited with an asynchronous session or connection.
        """
        return self._apply(session, self._create, is_check=False)

    @overload
    def check(
        self, session: Asynchronous, token: FencingToken, resource: str | None = None
    ) -> Coroutine[Any, Any, None]: ...

    @overload
    def check(
        self, session: Synchronous, token: FencingToken, resource: str | None = None
    ) -> None: ...

    def check(
        self, session: Synchronous | Asynchronous, token: FencingToken, resource: str | None = None
    ) -> Any:
        """Let this transaction go on only if the resource has seen no higher token.

        Call it **first**, before anything is read.

        As :meth:`fencedlock.fencing.sql.SQLFence.check`, and raises the same. To be awaited with an
        asynchronous session or connection.
        """
        name = checked_resource(token, resource)
        return self._apply(
            session,
            lambda connection: self._check(connection, lambda room: room.check_steps(token, name)),
        )

    @overload
    def check_row(
        self,
        session: Asynchronous,
        token: FencingToken,
        table: str,
        key: Mapping[str, Any],
        *,
        column: str = "fence",
    ) -> Coroutine[Any, Any, None]: ...

    @overload
    def check_row(
        self,
        session: Synchronous,
        token: FencingToken,
        table: str,
        key: Mapping[str, Any],
        *,
        column: str = "fence",
    ) -> None: ...

    def check_row(
        self,
        session: Synchronous | Asynchronous,
        token: FencingToken,
        table: str,
        key: Mapping[str, Any],
        *,
        column: str = "fence",
    ) -> Any:
        """Keep the token in a column of the guarded row itself: as :meth:`fencedlock.fencing.sql.SQLFence.check_row`."""
        checked_resource(token, None)
        return self._apply(
            session,
            lambda connection: self._check(
                connection, lambda room: room.row_steps(token, table, key, column)
            ),
        )

    def _apply(
        self,
        target: Synchronous | Asynchronous,
        act: Callable[[Connection], None],
        *,
        is_check: bool = True,
    ) -> Any:
        """Do it on the connection of this session, now or in the event loop."""
        # It needs greenlet: not imported for those who don't use it.
        asynchronous = sys.modules.get("sqlalchemy.ext.asyncio")
        if isinstance(target, scoped_session) or (
            asynchronous and isinstance(target, asynchronous.async_scoped_session)
        ):
            target = target()
        if asynchronous and isinstance(
            target, asynchronous.AsyncSession | asynchronous.AsyncConnection
        ):
            coroutine: Any = target.run_sync(
                lambda synchronous: self._apply(synchronous, act, is_check=is_check)
            )
            # What Python names if the await was forgotten.
            coroutine.__qualname__ = "SQLAlchemyFence.check"
            return coroutine
        if isinstance(target, Session):
            if is_check:
                _refuse_changes_from_before(target)
            act(target.connection())
            if is_check:
                _expire_unchanged(target)
        elif isinstance(target, Connection):
            act(target)
        else:
            raise TypeError(
                f"{self!r} takes the Connection, Session or AsyncSession first, in its "
                f"transaction, and not {type(target).__name__} (of an engine: 'with engine.begin() "
                "as connection:')"
            )
        return None

    def _check(self, connection: Connection, steps_of: Callable[[SQLFence], Steps]) -> None:
        room = self._room(connection.dialect)
        if connection.dialect.name == "sqlite" and connection.in_nested_transaction():
            # Sqlite3 may have begun with the savepoint, whose release then commits.
            raise ConfigurationError(
                "on SQLite the check must not be made in a savepoint (begin_nested()): check the "
                "token in the outermost transaction"
            )
        driver = SQLAlchemyDriver(connection, room)
        room.run(driver, room.steps(driver, steps_of(room)))

    def _create(self, connection: Connection) -> None:
        room = self._room(connection.dialect)
        if isinstance(room, PortableFence):
            self._portable_table().create(connection, checkfirst=True)
        else:
            room.run(SQLAlchemyDriver(connection, room), room.create_steps())

    def _room(self, dialect: Dialect) -> SQLFence:
        room = self.rooms.get(dialect.name)
        return (
            PortableFence(self.table, dialect.identifier_preparer.quote)
            if room is None
            else room(self.table)
        )

    def _portable_table(self) -> Table:
        schema, _, name = self.table.rpartition(".")
        return Table(
            name,
            MetaData(),
            Column("resource", String(MOST_PORTABLE_CHARACTERS), primary_key=True),
            Column("token", BigInteger, nullable=False),
            Column("lock_name", String(MOST_PORTABLE_CHARACTERS)),
            schema=schema or None,
        )


@functools.lru_cache(maxsize=64)
def _text(sql: str) -> TextClause:
    clause = text(sql)
    return clause.bindparams(bindparam("token", type_=BigInteger)) if ":token" in sql else clause


_checked_in: weakref.WeakSet[SessionTransaction] = weakref.WeakSet()
"""Transactions that have passed a check: what is changed in them now was read after it."""


def _refuse_changes_from_before(session: Session) -> None:
    """Changes that a session brings into the first check of a transaction were made by what it had read before."""
    if session.get_transaction() not in _checked_in and (session.dirty or session.deleted):
        raise ConfigurationError(
            "the session has changed objects before the check, by what it had read before: roll "
            "back, check first, then load and change"
        )


def _expire_unchanged(session: Session) -> None:
    """Forget what was read before the check: a session answers later queries with the objects that it has."""
    transaction = session.get_transaction()
    assert transaction is not None
    _checked_in.add(transaction)
    for kept in list(session.identity_map.values()):
        state = inspect(kept)
        if kept in session.deleted:
            continue
        if state.modified:
            session.expire(kept, state.unmodified)
        else:
            session.expire(kept)
