"""What the fences of all SQL databases share: the check as steps, and the drivers that take them.

A check is a generator of statements. It knows no driver; a driver runs it, at once or in an event
loop.
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
    """What a driver answers to a statement."""

    NOTHING = auto()
    ROW = auto()
    """The first row, or None."""
    COUNT = auto()
    """The number of rows matched."""
    INSERTED = auto()
    """False if such a row was there; the transaction goes on, thanks to a savepoint."""


class Statement(NamedTuple):
    """SQL with parameters written ``:name``."""

    sql: str
    parameters: Mapping[str, Any] = {}
    gives: Gives = Gives.NOTHING


Steps = Generator[Statement, Any, None]


class Mistake(Enum):
    """What a database's error tells of."""

    NO_TABLE = auto()
    NO_COLUMN = auto()
    NO_TRANSACTION = auto()
    NO_RIGHTS = auto()
    READ_BEFORE = auto()
    READ_ONLY = auto()


_MISTAKES: dict[Mistake | None, str] = {
    Mistake.NO_TRANSACTION: NO_TRANSACTION,
    Mistake.READ_BEFORE: "this transaction has read before the check, and what it has read is out of date: roll back, and {begin}; "
    "the check comes first",
    Mistake.READ_ONLY: "a check writes the token, and this transaction or server is read-only: check on the primary, in a transaction "
    "that may write",
}

_MISTAKES_WITH_FENCES: dict[Mistake | None, str] = {
    **_MISTAKES,
    Mistake.NO_TABLE: "there is no table {table!r} in this database (and search path): {create}. If it stands in another schema, name that "
    "too, as 'schema.fences'",
    Mistake.NO_COLUMN: "table {table!r} has other columns than this version of fencedlock needs: compare it with ddl()",
    Mistake.NO_RIGHTS: "this user may not use table {table!r}: GRANT SELECT, INSERT, UPDATE on it",
}

_MISTAKES_WITH_ROWS: dict[Mistake | None, str] = {
    **_MISTAKES,
    Mistake.NO_COLUMN: "{error}: the guarded table needs a column for the token: ADD COLUMN fence BIGINT",
}


class Style(Enum):
    """How a driver wants parameters written: the names are those of PEP 249."""

    FORMAT = auto()
    NUMERIC_DOLLAR = auto()
    NAMED = auto()


@functools.lru_cache(maxsize=256)
def _written(sql: str, style: Style) -> tuple[str, tuple[str, ...]]:
    """The statement in this style, and the names of its parameters in their order."""
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
    """How to begin a transaction."""
    create_words: ClassVar[str] = (
        "was create() called, and committed? ddl() prints it for a migration"
    )
    """How to make the table of fences."""

    def __init__(self, connection: Any) -> None:
        self.connection: Any = connection

    @abstractmethod
    def in_transaction(self) -> bool | None:
        """False if a statement that has just run was a transaction of its own; None if the driver can't tell."""

    @abstractmethod
    def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        """Run a statement, written in this driver's style, and give what is asked for; awaitable if ``is_async``."""

    def origin(self, error: Exception) -> Exception:
        """The driver's own error, where a framework has wrapped it."""
        return error

    def perform(self, statement: Statement) -> Any:
        """Run a statement of a check."""
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
    """What connections of asyncpg, aiosqlite and psycopg's AsyncConnection have in common."""

    @property
    def execute(self) -> Callable[..., Awaitable[Any]]:
        """Run a statement."""


class SQLFence(ABC):
    """A table of fences: for each resource the highest token that it has seen.

    Made with the table's name, which may name its schema too: ``"app.fences"``. Raises
    ConfigurationError for what can't be one.
    """

    drivers: ClassVar[Mapping[tuple[str, str], type[Driver]]] = {}
    """By the package of the driver and the name of its class of connections."""
    quote: ClassVar[str] = '"'
    mistakes: ClassVar[Mapping[Any, Mistake]] = {}
    """By the database's code for them."""
    locking_read: ClassVar[str] = ""
    """What makes a SELECT see the newest row, where a transaction's snapshot may hide it."""

    def __init__(self, table: str = "fences") -> None:
        self.table: str = table
        self._table: str = self._quoted(table)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.table!r})"

    @abstractmethod
    def ddl(self) -> str:
        """The statement that makes the table, for a migration."""

    @overload
    def create(self, connection: AsyncConnection) -> Coroutine[Any, Any, None]: ...

    @overload
    def create(self, connection: Any) -> None: ...

    def create(self, connection: Any) -> Any:
        """Make the table, unless it is there. Commit after it, as after any statement.

        To be awaited with an asynchronous connection.
        """
        return self._run(self.driver_of(connection), self.create_steps())

    @overload
    def check(
        self, connection: AsyncConnection, token: FencingToken, resource: str | None = None
    ) -> Coroutine[Any, Any, None]: ...

    @overload
    def check(self, connection: Any, token: FencingToken, resource: str | None = None) -> None: ...

    def check(self, connection: Any, token: FencingToken, resource: str | None = None) -> Any:
        """Let this transaction go on only if the resource has seen no higher token.

        Call it **first**, before anything is read.

        In the outermost transaction, and with nothing that commits between it and the last write:
        the resource's row is locked until the transaction ends, or the savepoint in which it was
        checked is rolled back, and remembers the token if it commits. ``resource`` is the lock's
        name unless given; the first token of a resource binds it to that lock. To be awaited with
        an asynchronous connection.

        Raises StaleTokenError if a higher token has been here: roll back. Raises ConfigurationError
        outside of a transaction, without the table, or for a token of another lock than the
        resource's; TypeError for what is no token.
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
        """As :meth:`check`, with the token kept in ``column`` (a BIGINT that may be NULL) of the row with this ``key``: no table of fences.

        What it does not see: rows that the newest holder has not touched yet accept an older one,
        and a row that is deleted and made again has forgotten its token. A row can't be bound to a
        lock. Prefer :meth:`check` wherever one lock guards more than this row.

        Raises StaleTokenError, and ConfigurationError if there is no such row, or outside of a
        transaction.
        """
        checked_resource(token, None)
        driver = self.driver_of(connection)
        return self._run(driver, self.steps(driver, self.row_steps(token, table, key, column)))

    # --- for the rooms

    @abstractmethod
    def check_steps(self, token: FencingToken, resource: str) -> Steps:
        """Raise the resource's token to this one and lock its row, or refuse."""

    def create_steps(self) -> Steps:
        """Make the table."""
        yield Statement(self.ddl())

    def probe_steps(self) -> Steps:
        """Find out whether a transaction is open, if the driver can't tell: raise ConfigurationError if not."""
        yield from ()

    def steps(self, driver: Driver, steps: Steps) -> Steps:
        """The steps of a check, and that they were taken in a transaction that is still open."""
        yield from steps
        open_now = driver.in_transaction()
        if open_now is None:
            yield from self.probe_steps()
        elif not open_now:
            raise ConfigurationError(NO_TRANSACTION.format(begin=driver.begin_words))

    def row_steps(
        self, token: FencingToken, table: str, key: Mapping[str, Any], column: str
    ) -> Steps:
        """Raise the token in a row of the user's, or refuse."""
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
                f"no row of {table!r} has {dict(key)!r}: a row that is not there can't be fenced; "
                "use check()"
            )
        if stored is None or int(stored) < int(token):
            raise ConfigurationError(
                f"column {column!r} of {table!r} did not take the token: does a trigger set it?"
            )
        if int(stored) > int(token):
            raise stale_token(token, f"{table} {dict(key)!r}", int(stored))

    def refused(self, token: FencingToken, resource: str, stored: Any, lock_name: Any) -> Exception:
        """What to raise when the resource's row did not take the token."""
        if isinstance(lock_name, bytes | bytearray):
            lock_name = bytes(lock_name).decode()
        if lock_name is not None and lock_name != token.lock:
            return other_lock(token, resource, lock_name)
        return stale_token(token, resource, None if stored is None else int(stored))

    def explained(self, driver: Driver, error: Exception, statement: Statement) -> Exception | None:
        """A clearer error than the driver's own, where there is one."""
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
        """The database's code for this error."""

    def driver_of(self, connection: Any) -> Driver:
        """The driver of this connection. Raises TypeError for what is none that is known."""
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
        """Let the driver take the steps."""
        answer = None
        while (statement := _next(steps, answer)) is not None:
            with self._explaining(driver, statement):
                answer = driver.perform(statement)

    async def run_async(self, driver: Driver, steps: Steps) -> None:
        """Let the driver take the steps, in an event loop."""
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
        # What Python names if the await was forgotten.
        coroutine.__qualname__ = f"{type(self).__name__}.check"
        return coroutine

    def upsert_sql(self) -> str:
        """Raises the resource's token and locks its row, or gives no row: where there is ON CONFLICT with RETURNING."""
        return (
            f"INSERT INTO {self._table} AS f (resource, token, lock_name) VALUES (:resource, "
            ":token, :lock) ON CONFLICT (resource) DO UPDATE SET token = excluded.token, "
            "lock_name = excluded.lock_name WHERE f.token <= excluded.token AND (f.lock_name IS "
            "NULL OR f.lock_name = excluded.lock_name) RETURNING 1"
        )

    def _quoted(self, name: str) -> str:
        return ".".join(self.quote_part(part) for part in parts_of(name))

    def quote_part(self, part: str) -> str:
        """One part of a name, as the database wants it quoted."""
        return f"{self.quote}{part}{self.quote}"


def parts_of(name: str) -> list[str]:
    """The schema, if it is named, and the name of a table or column.

    Raises ConfigurationError for what can't be one.
    """
    parts = name.split(".") if isinstance(name, str) else []
    if not parts or not all(_NAME.fullmatch(part) for part in parts):
        raise ConfigurationError(
            "the name of a table or column must be made of letters, digits and underscores, not "
            f"{name!r}"
        )
    return parts


def _next(steps: Steps, answer: Any) -> Statement | None:
    """The next statement of a check; None at its end."""
    try:
        return steps.send(answer)
    except StopIteration:
        return None
