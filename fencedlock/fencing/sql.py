"""What the fences of all SQL databases share: checks, and drivers that run their statements.

A check is a generator of statements, and independent of any driver. A driver runs the statements,
either synchronously or in an event loop.
"""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any, ClassVar, NamedTuple, Protocol, overload

from fencedlock.errors import ConfigurationError
from fencedlock.fencing.base import NO_TRANSACTION, checked_resource, other_lock, stale_token
from fencedlock.token import FencingToken

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
_PARAMETER = re.compile(r":([a-z_0-9]+)")


class Gives(Enum):
    """The kind of answer that a driver returns for a statement."""

    NOTHING = auto()
    ROW = auto()
    """The first row, or None."""
    COUNT = auto()
    """The number of matched rows."""
    INSERTED = auto()
    """False if the row existed already.

    The statement runs in a savepoint, so that the transaction can go on.
    """


class Statement(NamedTuple):
    """An SQL statement, with parameters written as ``:name``."""

    sql: str
    parameters: Mapping[str, Any] = {}
    gives: Gives = Gives.NOTHING


Steps = Generator[Statement, Any, None]


class Mistake(Enum):
    """A mistake in the use of a fence that a database's error reveals."""

    NO_TABLE = auto()
    NO_COLUMN = auto()
    NO_TRANSACTION = auto()
    NO_RIGHTS = auto()
    READ_BEFORE = auto()
    READ_ONLY = auto()


_MISTAKES: dict[Mistake | None, str] = {
    Mistake.NO_TRANSACTION: NO_TRANSACTION,
    Mistake.READ_BEFORE: "this transaction has read before the check, and what it has read is out "
    "of date: roll back, and {begin}; the check comes first",
    Mistake.READ_ONLY: "a check writes the token, and this transaction or server is read-only: "
    "check on the primary, in a transaction that may write",
}

_MISTAKES_WITH_FENCES: dict[Mistake | None, str] = {
    **_MISTAKES,
    Mistake.NO_TABLE: "there is no table {table!r} in this database (and search path): {create}. "
    "If it is in another schema, name that too, as 'schema.fences'",
    Mistake.NO_COLUMN: "table {table!r} has other columns than this version of fencedlock needs: "
    "compare it with ddl()",
    Mistake.NO_RIGHTS: "this user may not use table {table!r}: GRANT SELECT, INSERT, UPDATE on it",
}

_MISTAKES_WITH_ROWS: dict[Mistake | None, str] = {
    **_MISTAKES,
    Mistake.NO_COLUMN: "{error}: the guarded table needs a column for the token: ADD COLUMN fence "
    "BIGINT",
}


class Style(Enum):
    """How a driver wants parameters to be written. FORMAT and NAMED are names of PEP 249."""

    FORMAT = auto()
    NUMERIC_DOLLAR = auto()
    NAMED = auto()


@functools.lru_cache(maxsize=256)
def _written(sql: str, style: Style) -> tuple[str, tuple[str, ...]]:
    """Return the statement in this style, and the names of its parameters in their order."""
    names = tuple(_PARAMETER.findall(sql))
    if style is Style.FORMAT:
        return _PARAMETER.sub("%s", sql), names
    unique = tuple(dict.fromkeys(names))
    if style is Style.NUMERIC_DOLLAR:
        return _PARAMETER.sub(lambda match: f"${unique.index(match[1]) + 1}", sql), unique
    return sql, unique


class Driver(ABC):
    """One connection of one driver, as a check uses it."""

    style: ClassVar[Style] = Style.FORMAT
    is_async: ClassVar[bool] = False
    begin_words: ClassVar[str]
    """Tells the user how to begin a transaction, in error messages."""
    create_words: ClassVar[str] = (
        "was create() called, and committed? ddl() prints it for a migration"
    )
    """Tells the user how to make the table of fences, in error messages."""

    def __init__(self, connection: Any) -> None:
        self.connection: Any = connection

    @abstractmethod
    def in_transaction(self) -> bool | None:
        """Return whether a transaction is open; None if the driver can't tell.

        It is asked after a statement. False means that the statement was a transaction of its own.
        """

    @abstractmethod
    def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        """Run a statement written in this driver's style, and return what ``gives`` asks for.

        The result must be awaited if ``is_async``.
        """

    def origin(self, error: Exception) -> Exception:
        """Return the driver's own error if a framework has wrapped it, or else the error itself."""
        return error

    def perform(self, statement: Statement) -> Any:
        """Run a statement of a check, and return its answer; it must be awaited if ``is_async``."""
        sql, names = _written(statement.sql, self.style)
        values = statement.parameters
        if not names:
            return self.execute(sql, None, statement.gives)
        return self.execute(
            sql,
            {name: values[name] for name in names}
            if self.style is Style.NAMED
            else [values[name] for name in names],
            statement.gives,
        )


class AsyncConnection(Protocol):
    """An asynchronous connection: that of asyncpg, aiosqlite, or psycopg's AsyncConnection."""

    @property
    def execute(self) -> Callable[..., Awaitable[Any]]:
        """Run a statement."""


class SQLFence(ABC):
    """A fence in a table, which has the highest token that each resource has seen.

    ``table`` is the name of the table. It may include the schema, as in ``"app.fences"``. Raises
    ConfigurationError if it can't be the name of a table.
    """

    drivers: ClassVar[Mapping[tuple[str, str], type[Driver]]] = {}
    """The known drivers, by their package and the name of their class of connections."""
    quote: ClassVar[str] = '"'
    mistakes: ClassVar[Mapping[Any, Mistake]] = {}
    """The mistakes, by the database's code for them."""
    locking_read: ClassVar[str] = ""
    """The clause that makes a SELECT see the newest row.

    It is needed where the snapshot of a transaction may hide that row.
    """

    def __init__(self, table: str = "fences") -> None:
        self.table: str = table
        self._table: str = self._quoted(table)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.table!r})"

    @abstractmethod
    def ddl(self) -> str:
        """Return the statement that makes the table, for a migration."""

    @overload
    def create(self, connection: AsyncConnection) -> Coroutine[Any, Any, None]: ...

    @overload
    def create(self, connection: Any) -> None: ...

    def create(self, connection: Any) -> Any:
        """Make the table if it does not exist.

        Commit after it, as after any other statement. With an asynchronous connection the result
        must be awaited. Raises TypeError if the connection is not one of a known driver.
        """
        return self._run(self.driver_of(connection), self.create_steps())

    @overload
    def check(
        self, connection: AsyncConnection, token: FencingToken, resource: str | None = None
    ) -> Coroutine[Any, Any, None]: ...

    @overload
    def check(self, connection: Any, token: FencingToken, resource: str | None = None) -> None: ...

    def check(self, connection: Any, token: FencingToken, resource: str | None = None) -> Any:
        """Check the token in this transaction, and refuse it if the resource has seen a higher one.

        Call it **first** in the outermost transaction, before anything is read. Nothing may commit
        between the check and the last write. The check locks the resource's row until the
        transaction ends, or until the savepoint in which it was made is rolled back. The row
        remembers the token if the transaction commits.

        ``resource`` is the lock's name unless given. The first token of a resource binds it to that
        lock. With an asynchronous connection the result must be awaited.

        Raises StaleTokenError if the resource has seen a higher token: roll back then. Raises
        ConfigurationError if no transaction is open, if there is no table, or if the token is of
        another lock than the resource's. Raises TypeError if ``token`` is not a FencingToken, or if
        the connection is not one of a known driver.
        """
        resource = checked_resource(token, resource)
        driver = self.driver_of(connection)
        return self._run(driver, self.steps(driver, self.check_steps(token, resource)))

    @overload
    def check_row(
        self,
        connection: AsyncConnection,
        token: FencingToken,
        table: str,
        key: Mapping[str, Any],
        *,
        column: str = "fence",
    ) -> Coroutine[Any, Any, None]: ...

    @overload
    def check_row(
        self,
        connection: Any,
        token: FencingToken,
        table: str,
        key: Mapping[str, Any],
        *,
        column: str = "fence",
    ) -> None: ...

    def check_row(
        self,
        connection: Any,
        token: FencingToken,
        table: str,
        key: Mapping[str, Any],
        *,
        column: str = "fence",
    ) -> Any:
        """Check the token as :meth:`check` does, but keep it in the guarded row itself.

        It needs no table of fences. ``key`` maps the names of columns to the values that select the
        row. ``column`` is the column for the token, a BIGINT that may be NULL.

        It protects less than :meth:`check`. A row that the newest holder has not touched yet
        accepts the token of an older one. A row that is deleted and made again has forgotten its
        token. A row can't be bound to a lock. Prefer :meth:`check` wherever one lock guards more
        than this row.

        Raises StaleTokenError if the row has seen a higher token, and ConfigurationError if there
        is no such row or no transaction is open.
        """
        checked_resource(token, None)
        driver = self.driver_of(connection)
        return self._run(driver, self.steps(driver, self.row_steps(token, table, key, column)))

    # --- for the fences of the databases

    @abstractmethod
    def check_steps(self, token: FencingToken, resource: str) -> Steps:
        """Raise the resource's token to this one and lock its row, or raise the refusal."""

    def create_steps(self) -> Steps:
        """Make the table."""
        yield Statement(self.ddl())

    def probe_steps(self) -> Steps:
        """Raise ConfigurationError if no transaction is open, where the driver can't tell."""
        yield from ()

    def steps(self, driver: Driver, steps: Steps) -> Steps:
        """Take the steps of a check; raise ConfigurationError if no transaction is open then."""
        yield from steps
        open_now = driver.in_transaction()
        if open_now is None:
            yield from self.probe_steps()
        elif not open_now:
            raise ConfigurationError(NO_TRANSACTION.format(begin=driver.begin_words))

    def row_steps(
        self, token: FencingToken, table: str, key: Mapping[str, Any], column: str
    ) -> Steps:
        """Raise the token in a row of the user's table to this one, or raise the refusal."""
        if not isinstance(key, Mapping) or not key:
            raise TypeError("key must name the row's columns and their values, as {'id': 42}")
        named = {f"key_{number}": value for number, value in enumerate(key.values())}
        where = " AND ".join(
            f"{self._quoted(name)} = :{parameter}"
            for name, parameter in zip(key, named, strict=True)
        )
        target, fence = self._quoted(table), self._quoted(column)
        yield Statement(
            f"UPDATE {target} SET {fence} = :token WHERE {where} AND ({fence} IS NULL OR {fence} "
            "<= :token)",
            {"token": int(token), **named},
        )
        found = f"SELECT MAX({fence}), COUNT(*) FROM {target} WHERE {where}{self.locking_read}"
        stored, count = yield Statement(found, named, Gives.ROW)
        if not count:
            raise ConfigurationError(
                f"no row of {table!r} has {dict(key)!r}: a row that does not exist can't be "
                "fenced; use check()"
            )
        if stored is None or int(stored) < int(token):
            raise ConfigurationError(
                f"column {column!r} of {table!r} did not take the token: does a trigger set it?"
            )
        if int(stored) > int(token):
            raise stale_token(token, f"{table} {dict(key)!r}", int(stored))

    def refused(self, token: FencingToken, resource: str, stored: Any, lock_name: Any) -> Exception:
        """Return the error to raise when the resource's row did not take the token."""
        if isinstance(lock_name, bytes | bytearray):
            lock_name = bytes(lock_name).decode()
        if lock_name is not None and lock_name != token.lock:
            return other_lock(token, resource, lock_name)
        return stale_token(token, resource, None if stored is None else int(stored))

    def explained(self, driver: Driver, error: Exception, statement: Statement) -> Exception | None:
        """Return a clearer error than the driver's own, or None if there is none."""
        origin = driver.origin(error)
        mistake = self.mistakes.get(self.code_of(origin))
        words = (
            _MISTAKES_WITH_FENCES if self._table in statement.sql else _MISTAKES_WITH_ROWS
        ).get(mistake)
        if words is None:
            return None
        return ConfigurationError(
            words.format(
                table=self.table, begin=driver.begin_words, create=driver.create_words, error=origin
            )
        )

    @abstractmethod
    def code_of(self, error: Exception) -> Any:
        """Return the database's code for this error, which is a key of ``mistakes``."""

    def driver_of(self, connection: Any) -> Driver:
        """Return the driver of this connection. Raises TypeError if none is known for it."""
        for cls in type(connection).__mro__:
            driver = self.drivers.get((cls.__module__.partition(".")[0], cls.__name__))
            if driver is not None:
                return driver(connection)
        known = ", ".join(dict.fromkeys(package for package, _ in self.drivers))
        raise TypeError(
            f"{type(self).__name__} takes the connection first, one of {known}, and not "
            f"{type(connection).__module__}.{type(connection).__name__} (of a cursor: "
            "cursor.connection; of a pool: what it lends; for SQLAlchemy and Django: "
            "SQLAlchemyFence and DjangoFence)"
        )

    def run(self, driver: Driver, steps: Steps) -> None:
        """Run the statements of the steps by a synchronous driver."""
        answer = None
        while (statement := _next(steps, answer)) is not None:
            with self._explaining(driver, statement):
                answer = driver.perform(statement)

    async def run_async(self, driver: Driver, steps: Steps) -> None:
        """Run the statements of the steps by an asynchronous driver."""
        answer = None
        while (statement := _next(steps, answer)) is not None:
            with self._explaining(driver, statement):
                answer = await driver.perform(statement)

    @contextmanager
    def _explaining(self, driver: Driver, statement: Statement) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            explained = self.explained(driver, error, statement)
            if explained is None:
                raise
            raise explained from driver.origin(error)

    def _run(self, driver: Driver, steps: Steps) -> Any:
        if not driver.is_async:
            return self.run(driver, steps)
        coroutine: Any = self.run_async(driver, steps)
        # Python shows this name in its warning when the await was forgotten.
        coroutine.__qualname__ = f"{type(self).__name__}.check"
        return coroutine

    def upsert_sql(self) -> str:
        """Return the statement that raises the resource's token and locks its row.

        It gives no row if the token is refused. It is for databases that have ON CONFLICT with
        RETURNING.
        """
        return (
            f"INSERT INTO {self._table} AS f (resource, token, lock_name) VALUES (:resource, "
            ":token, :lock) ON CONFLICT (resource) DO UPDATE SET token = excluded.token, "
            "lock_name = excluded.lock_name WHERE f.token <= excluded.token AND (f.lock_name IS "
            "NULL OR f.lock_name = excluded.lock_name) RETURNING 1"
        )

    def _quoted(self, name: str) -> str:
        return ".".join(self.quote_part(part) for part in parts_of(name))

    def quote_part(self, part: str) -> str:
        """Return a part of a name, quoted as the database wants it."""
        return f"{self.quote}{part}{self.quote}"


def parts_of(name: str) -> list[str]:
    """Return the parts of the name of a table or column: a schema, if it is given, and the name.

    Raises ConfigurationError if it can't be a name.
    """
    parts = name.split(".") if isinstance(name, str) else []
    if not parts or not all(_NAME.fullmatch(part) for part in parts):
        raise ConfigurationError(
            "the name of a table or column must be made of letters, digits and underscores, not "
            f"{name!r}"
        )
    return parts


def _next(steps: Steps, answer: Any) -> Statement | None:
    """Return the next statement of a check, or None at its end."""
    try:
        return steps.send(answer)
    except StopIteration:
        return None
