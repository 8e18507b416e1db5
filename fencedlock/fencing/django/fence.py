"""DjangoFence: it checks tokens inside ``transaction.atomic()``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from django.db import IntegrityError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import atomic

from fencedlock.errors import ConfigurationError
from fencedlock.fencing.base import checked_resource
from fencedlock.fencing.mysql import MySQLFence
from fencedlock.fencing.portable import PortableFence
from fencedlock.fencing.postgresql import PostgreSQLFence
from fencedlock.fencing.sql import Driver, Gives, SQLFence, Steps, parts_of
from fencedlock.fencing.sqlite import SQLiteFence
from fencedlock.token import FencingToken


class DjangoDriver(Driver):
    """One of Django's database connections."""

    begin_words = "open one ('with transaction.atomic():')"
    create_words = (
        "add 'fencedlock.fencing.django' to INSTALLED_APPS and run migrate, or call create()"
    )

    def in_transaction(self) -> bool:
        return bool(self.connection.in_atomic_block or not self.connection.get_autocommit())

    def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        if gives is Gives.INSERTED:
            try:
                with atomic(using=self.connection.alias):
                    self.execute(sql, parameters, Gives.NOTHING)
            except IntegrityError:
                return False
            return True
        with self.connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            if gives is Gives.ROW:
                return cursor.fetchone()
            return cursor.rowcount if gives is Gives.COUNT else None

    def origin(self, error: Exception) -> Exception:
        return error.__cause__ if isinstance(error.__cause__, Exception) else error


class DjangoFence:
    """A table of fences in any of Django's databases; checks are inside ``transaction.atomic()``.

    PostgreSQL, MySQL, MariaDB and SQLite get the statements of their own fences. Follow the advice
    of those fences, and for SQLite put ``"transaction_mode": "IMMEDIATE"`` into its OPTIONS. Other
    databases get plain SQL. The migration of the app ``fencedlock.fencing.django`` makes the table
    "fences". If ``table`` is another name, use :meth:`ddl` or :meth:`create`.

    The argument ``using`` is the alias of a database, or its connection.

    Raises ConfigurationError if ``table`` can't be the name of a table, or if it names a schema.
    """

    rooms: ClassVar[Mapping[str, type[SQLFence]]] = {
        "postgresql": PostgreSQLFence,
        "mysql": MySQLFence,
        "sqlite": SQLiteFence,
    }
    """The fences of the databases that have one of their own, by the vendor."""

    def __init__(self, table: str = "fences") -> None:
        self.table: str = table
        if len(parts_of(table)) > 1:
            raise ConfigurationError(
                f"DjangoFence can't name a schema, as {table!r} does: put it on the database's "
                "search path"
            )

    def __repr__(self) -> str:
        return f"DjangoFence({self.table!r})"

    def ddl(self, using: str | BaseDatabaseWrapper = "default") -> str:
        """Return the statements that make the table in this database, for ``migrations.RunSQL``."""
        connection = self._connection(using)
        with connection.schema_editor(collect_sql=True, atomic=False) as editor:
            editor.create_model(self._model())
        return "\n".join(editor.collected_sql)

    def create(self, using: str | BaseDatabaseWrapper = "default") -> None:
        """Make the table if it does not exist."""
        connection = self._connection(using)
        with connection.cursor() as cursor:
            tables = connection.introspection.table_names(cursor)
        if self.table not in tables:
            with connection.schema_editor() as editor:
                editor.create_model(self._model())

    def check(
        self, using: str | BaseDatabaseWrapper, token: FencingToken, resource: str | None = None
    ) -> None:
        """Check the token in this transaction, and refuse it if the resource has seen a higher one.

        Call it **first**, before anything is read. It works like
        :meth:`fencedlock.fencing.sql.SQLFence.check`, and raises the same errors.
        """
        name = checked_resource(token, resource)
        self._check(using, lambda room: room.check_steps(token, name))

    def check_row(
        self,
        using: str | BaseDatabaseWrapper,
        token: FencingToken,
        table: str,
        key: Mapping[str, Any],
        *,
        column: str = "fence",
    ) -> None:
        """Check the token as :meth:`check` does, but keep it in the guarded row itself.

        It works like :meth:`fencedlock.fencing.sql.SQLFence.check_row`, and raises the same errors.
        """
        checked_resource(token, None)
        self._check(using, lambda room: room.row_steps(token, table, key, column))

    def _check(
        self, using: str | BaseDatabaseWrapper, steps_of: Callable[[SQLFence], Steps]
    ) -> None:
        connection = self._connection(using)
        native = self.rooms.get(connection.vendor)
        room = (
            PortableFence(self.table, connection.ops.quote_name)
            if native is None
            else native(self.table)
        )
        driver = DjangoDriver(connection)
        room.run(driver, room.steps(driver, steps_of(room)))

    @staticmethod
    def _connection(using: str | BaseDatabaseWrapper) -> BaseDatabaseWrapper:
        if isinstance(using, str):
            return connections[using]
        if hasattr(using, "schema_editor") and hasattr(using, "in_atomic_block"):
            return using
        raise TypeError(
            "name the database by its alias, as 'default', or by its connection, and not by "
            f"{type(using).__name__}"
        )

    def _model(self) -> Any:
        """Return a model of this table that is in no registry of Django's."""
        from django.apps.registry import Apps

        from fencedlock.fencing.django.models import FenceRow

        meta = type("Meta", (), {"app_label": "fencedlock", "db_table": self.table, "apps": Apps()})
        return type("Fence", (FenceRow,), {"__module__": FenceRow.__module__, "Meta": meta})
