"""SQLAlchemyFence, for SQLAlchemy 2 on any database: connections, Session and AsyncSession."""

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
    """A Core connection, whatever has begun its transaction."""

    begin_words = (
        "let the engine or connection have another isolation_level than AUTOCOMMIT ('with "
        "engine.begin() as connection:')"
    )

    def __init__(self, connection: Connection, room: SQLFence) -> None:
        super().__init__(connection)
        self._room = room

    def in_transaction(self) -> bool | None:
        raw = self.connection.connection.driver_connection
        try:
            return self._room.driver_of(raw).in_transaction()
        except TypeError:  # the fence does not know the driver
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
            if self.in_transaction() is False:  # the savepoint would fail with another error
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
    """A table of fences in any database, through SQLAlchemy 2.

    The methods take a Core ``Connection``, a ``Session`` or an ``AsyncSession``. PostgreSQL, MySQL,
    MariaDB and SQLite get the statements of their own fences: follow the advice of those fences.
    Other databases get plain SQL.

    A check expires the unchanged attributes of a session's objects, so that their values are read
    from the database again. The first check of a transaction refuses a session with changes that
    are not flushed. A connection knows no objects, so pass the session and not its connection. In
    an ``AsyncSession`` an object that was loaded before the check must be refreshed before it is
    used, so load objects after the check.

    Raises ConfigurationError if ``table`` can't be the name of a table.
    """

    rooms: ClassVar[Mapping[str, type[SQLFence]]] = {
        "postgresql": PostgreSQLFence,
        "mysql": MySQLFence,
        "mariadb": MySQLFence,
        "sqlite": SQLiteFence,
    }
    """The fences of the databases that have one of their own, by the name of the dialect."""

    def __init__(self, table: str = "fences") -> None:
        self.table: str = table
        parts_of(table)  # raises for an invalid name

    def __repr__(self) -> str:
        return f"SQLAlchemyFence({self.table!r})"

    def ddl(self, dialect: str) -> str:
        """Return the statement that makes the table, for a migration.

        With Alembic, call ``op.execute(fence.ddl(op.get_bind().dialect.name))``. Raises
        ConfigurationError if the dialect is not installed.
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
        """Make the table if it does not exist. Commit after it.

        With an asynchronous session or connection the result must be awaited.
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
        """Check the token in this transaction, and refuse it if the resource has seen a higher one.

        Call it **first**, before anything is read. It works like
        :meth:`fencedlock.fencing.sql.SQLFence.check`, and raises the same errors. It also raises
        ConfigurationError if the session has changes from before the check that are not flushed,
        and on SQLite in a savepoint. With an asynchronous session or connection the result must be
        awaited.
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
        """Check the token as :meth:`check` does, but keep it in the guarded row itself.

        It works like :meth:`fencedlock.fencing.sql.SQLFence.check_row`, and raises the same errors.
        It refuses sessions and savepoints as :meth:`check` does. With an asynchronous session or
        connection the result must be awaited.
        """
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
        """Call ``act`` with the connection of this session, at once or in the event loop."""
        # This module needs greenlet. It is not imported for programs that don't use it.
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
            # Python shows this name in its warning when the await was forgotten.
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
            # In sqlite3 the savepoint itself may have begun the transaction. Its release commits
            # then.
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
"""The transactions that have passed a check. Changes in them are based on reads after it."""


def _refuse_changes_from_before(session: Session) -> None:
    """Raise ConfigurationError if the session has changes at the first check of a transaction.

    Such changes are based on what the session had read before the check.
    """
    if session.get_transaction() not in _checked_in and (session.dirty or session.deleted):
        raise ConfigurationError(
            "the session has changed objects before the check, based on what it had read before: "
            "roll back, check first, then load and change"
        )


def _expire_unchanged(session: Session) -> None:
    """Expire what was read before the check.

    Otherwise the session would answer later queries with the objects that it has.
    """
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
